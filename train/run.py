"""Train a masked diffusion language model from a Qwen3 checkpoint.

    python -m train.run --mode pretrain --config configs/pretrain.yaml
    python -m train.run --mode sft --config configs/sft.yaml --training.lr 2e-5 --project.output_dir runs/chat

Any key of the configuration is a flag, in full or, where that is unambiguous, by its last part. The run folder
is a model folder: give it to sample.generate or converters.to_hf. The same command goes on where it stopped.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen3llada_jax import attention, checkpoint, command_line, model, sharding
from qwen3llada_jax.config import ModelConfig
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import make_folder, write_text
from qwen3llada_jax.model import Qwen3LLaDA, Runtime
from train import checkpoints, data, guard, trackers
from train.config import Config
from train.meter import Meter, peak_of_run
from train.optim import optimiser, schedule
from train.prefetch import prefetch
from train.profile import Profile
from train.read_config import as_yaml, help_text, read_config
from train.samples import sampler, write_samples
from train.start import Start, find_start
from train.step import DeviceBatch, make_eval_step, make_train_step, state_shardings, summarise
from train.watch import Watch, say


def main() -> None:
    config = parse(sys.argv[1:])
    if config.project.device != "auto":
        jax.config.update("jax_platforms", "cuda" if config.project.device == "gpu" else config.project.device)
    train(config)


def train(config: Config) -> None:
    """A whole run: config → model → mesh → data → state → loop.

    Raises:
        InputError: anything wrong with configuration, data, model or disk; nearly all of it before compiling.
    """
    output = Path(config.project.output_dir)
    if (output / "params").exists():
        raise InputError(f"{output} is a model folder, not a run; choose another project.output_dir")
    trackers.require(config)

    # ---- model: architecture, tokenizer, mask token -------------------------------------------------------
    start = find_start(config)
    tokenizer, architecture = start.tokenizer, start.config
    runtime = Runtime(
        "bfloat16" if config.training.bf16 else "float32", config.training.attention, config.training.remat
    )
    attention.choose(runtime.attention, jnp.dtype(runtime.dtype), config.training.max_length, architecture.head_dim)
    graphdef, _, _ = model.abstract(architecture, runtime=runtime)
    if config.evaluation.prompts:
        sampler(config).for_model(architecture)  # refuse impossible settings now, not at the first evaluation
    say(f"starting from {start.folder}, mask token {architecture.mask_token_id}, visibility {architecture.visibility}")

    # ---- mesh ---------------------------------------------------------------------------------------------
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows_at_once = config.training.batch_size // config.micro_batches
    if rows_at_once % ways:
        raise InputError(
            f"{rows_at_once} rows of a forward pass do not divide over data × fsdp = {ways}; change batch_size"
        )

    # ---- data ---------------------------------------------------------------------------------------------
    rows = load_rows(config, tokenizer, config.dataset.name, config.dataset.split, "dataset.split")
    check_ids(rows, architecture, config.dataset.name)
    say(f"training data: {rows.report}")
    held_out = None
    if config.evaluation.do_eval_loss:
        if config.evaluation.eval_name is None and not data.has_splits(config.dataset.name):
            raise InputError(
                f"{config.dataset.name} has no splits, so nothing is held out: set evaluation.eval_name, "
                "or evaluation.do_eval_loss: false"
            )
        name = config.evaluation.eval_name or config.dataset.name
        held_out = load_rows(config, tokenizer, name, config.evaluation.eval_split, "evaluation.eval_split")
        check_ids(held_out, architecture, name)
        say(f"held-out data: {held_out.report}")
    per_epoch = len(rows) / config.training.batch_size
    steps = config.training.max_steps or max(1, math.ceil(config.training.epochs * per_epoch))

    # ---- state: 1. this run's newest checkpoint, 2. another run's, 3. the starting weights ----------------
    tx = guard.watched(optimiser(config, steps), config.training)
    shapes, shardings = state_shardings(architecture, tx, mesh)
    with jax.set_mesh(mesh):
        state = first_state(config, output, start, tx, shapes, shardings, mesh)
    first = int(state["step"])
    if first >= steps:
        say(f"{output}: already at update {first} of {steps}, nothing to do")
        return
    logs = Path(config.project.log_dir or output)
    profile = Profile(logs / "profile", config.project.profile, first, steps)

    # ---- run folder ---------------------------------------------------------------------------------------
    make_folder(output)
    checkpoint.write_config(output, architecture)
    checkpoint.copy_tokenizer(start.folder, output)
    write_text(output / "training.yaml", as_yaml(config))
    make_folder(logs)

    # ---- loop ---------------------------------------------------------------------------------------------
    live = architecture.live_vocab_size or architecture.vocab_size
    assert architecture.mask_token_id is not None
    seed_key = jax.random.key(config.project.seed)
    step_fn = make_train_step(graphdef, config, tx, shardings, seed_key, architecture.mask_token_id, live)
    eval_fn = make_eval_step(graphdef, config, architecture.mask_token_id, live)
    rate = schedule(config, steps)
    every = config.evaluation
    manager = checkpoints.open_checkpoints(output, config.training.save_total_limit)
    meter = Meter(architecture, peak_of_run(config))
    skips = "skip" in (config.training.on_nan, config.training.on_spike)

    def batches() -> Iterator[tuple[data.Batch, DeviceBatch]]:
        for step in range(first, steps):
            numbers = data.row_numbers(step, config.training.batch_size, len(rows), config.project.seed)
            batch = data.make_batch(rows, numbers, tokenizer.eos_token_id, length=config.training.max_length)
            yield batch, to_devices(batch, mesh)

    with (
        jax.set_mesh(mesh),
        manager,
        Watch(config, logs, first, steps) as watch,
        closing(prefetch(batches())) as ahead,
    ):
        unseen = None  # metrics of an update that nobody has waited for
        for step in range(first, steps):
            with meter.waiting():
                batch, on_devices = next(ahead)
            profile.before(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fn(state, on_devices)
            done = step + 1
            meter.count(batch)
            if unseen is not None:  # one update late, while the devices are busy with the next
                guard.report(step, unseen, config.training, watch.say)
            if profile.after(done, metrics):
                watch.say(f"{done:>7}  trace of {config.project.profile} update(s) in {profile.folder}")
            logs_now = done % every.steps == 0 or done == steps or step == 0
            evaluates_now = done % every.eval_every_steps == 0 or done == steps
            saves_now = done % config.training.save_steps == 0 or done == steps
            unseen = None if logs_now or evaluates_now or saves_now else metrics
            if unseen is None:
                guard.report(done, metrics, config.training, watch.say)
            if logs_now:
                values = {k: float(v) for k, v in metrics.items() if k not in ("verdict", "skipped")}
                skipped = int(metrics["skipped"])
                if skips:
                    values["skipped"] = skipped
                watch.metrics({"step": done, "lr": float(rate(step - skipped)), **values, **meter.read()})
            with meter.paused(metrics) if evaluates_now or saves_now else nullcontext():
                if evaluates_now and held_out is not None:
                    losses = evaluate(eval_fn, state["params"], held_out, tokenizer.eos_token_id, config, mesh)
                    watch.metrics({"step": done, **losses})
                if evaluates_now and every.prompts:
                    write_samples(nnx.merge(graphdef, state["params"]), tokenizer, config, done, watch)
                if saves_now:
                    checkpoints.save(manager, state, config, architecture)
            watch.advance()
    say(f"{output}: {steps} updates; sample from it with: python -m sample.generate --model {output}")


def parse(arguments: list[str]) -> Config:
    """The configuration of a command line: --config FILE, --mode, and any key as a flag."""
    if any(a in ("-h", "--help") for a in arguments):
        print(f"{__doc__}\nkeys of the configuration:\n{help_text()}")
        raise SystemExit(0)
    path, overrides = None, []
    words = list(reversed(arguments))
    while words:
        word = words.pop()
        if not word.startswith("--"):
            raise InputError(f"unexpected {word!r}: options are --key value (see --help)")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not equals:
            if not words:
                raise InputError(f"--{name} needs a value")
            value = words.pop()
        if name == "config":
            path = Path(value)
        else:
            overrides.append((name, value))
    return read_config(path, overrides)


def load_rows(config: Config, tokenizer: Any, name: str | None, split: str, split_key: str) -> data.Rows:
    """The rows of a dataset in the run's mode."""
    assert name is not None
    length, workers = config.training.max_length, config.dataset.num_proc
    dataset = data.load(name, config.dataset.config, split, split_key=split_key)
    if config.training.mode == "sft":
        return data.sft_rows(dataset, tokenizer, length=length, num_proc=workers, name=name)
    column = data.text_column(dataset, config.dataset.text_field, name)
    pack = config.dataset.pack_to_max_length
    return data.pretraining_rows(dataset, tokenizer, column, length=length, pack=pack, num_proc=workers, name=name)


def check_ids(rows: data.Rows, architecture: ModelConfig, name: str | None) -> None:
    """Refuse data tokenised for another model."""
    if len(rows.values):
        model.check_tokens(np.array([rows.values.min(), rows.values.max()]), architecture.vocab_size)


def first_state(
    config: Config, output: Path, start: Start, tx: Any, shapes: Any, shardings: Any, mesh: Mesh
) -> dict[str, Any]:
    """The state to go on from."""
    resume = config.training.resume_from
    if resume not in ("never", None) and checkpoint.params_item(output) is not None:
        checkpoints.check_same_run(output, config, start.config)
        state = checkpoints.restore(output, shapes, shardings)
        checkpoints.notice(f"going on from update {int(state['step'])} of {output}")
        return state
    if resume not in ("auto", "never", None):
        other = Path(resume)
        if checkpoint.params_item(other) is None or not (other / "checkpoints").is_dir():
            raise InputError(f"training.resume_from {resume}: no training run with checkpoints there")
        return checkpoints.restore(other, shapes, shardings)
    if (output / "checkpoints").is_dir() and any(p.name.isdigit() for p in (output / "checkpoints").iterdir()):
        raise InputError(
            f"{output} holds the checkpoints of another run; choose another project.output_dir, or resume_from: auto"
        )
    if config.model.from_scratch:
        fresh = lambda: nnx.to_pure_dict(  # noqa: E731
            nnx.state(Qwen3LLaDA(start.config, rngs=nnx.Rngs(config.project.seed)), nnx.Param)
        )
        params = jax.jit(fresh, out_shardings=shardings["params"])()
    else:
        params = checkpoint.load_params(start.folder, start.config, "float32", mesh)
    opt = jax.jit(tx.init, out_shardings=shardings["opt"])(params)
    return {"params": params, "opt": opt, "step": jax.device_put(jnp.int32(0), shardings["step"])}


def to_devices(batch: data.Batch, mesh: Mesh, slots: np.ndarray | None = None) -> DeviceBatch:
    """Lay a batch's rows over `data` and `fsdp`; every host passes the whole batch, and keeps its part.

    `slots` number the rows for their noise; default: by their place in the batch.
    """
    rows_sharding = NamedSharding(mesh, P(("data", "fsdp")))

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, rows_sharding, lambda index: array[index])

    slots = np.arange(len(batch.rows)) if slots is None else slots
    return DeviceBatch(put(batch.tokens), put(batch.prompt_length), put(batch.real_length), put(slots.astype(np.int32)))


def evaluate(eval_fn: Any, params: Any, rows: data.Rows, pad_id: int, config: Config, mesh: Mesh) -> dict[str, float]:
    """Metrics over the held-out rows: the same rows under the same noise every time, however they are batched."""
    size = config.training.batch_size // config.micro_batches
    whole = max(1, min(len(rows) // config.training.batch_size, config.evaluation.eval_max_batches))
    total: dict[str, Any] = {}
    for start in range(0, whole * config.training.batch_size, size):
        slots = np.arange(start, start + size)
        batch = data.make_batch(rows, slots % len(rows), pad_id, length=config.training.max_length)
        sums = jax.device_get(eval_fn(params, to_devices(batch, mesh, slots)))
        total = {k: total.get(k, 0.0) + v.astype(np.float64) for k, v in sums.items()}
    metrics = summarise(jnp.float32(total["loss"] / total["weight"]), total)
    return {f"eval_{k}": float(v) for k, v in metrics.items()}


if __name__ == "__main__":
    command_line.run(main)
