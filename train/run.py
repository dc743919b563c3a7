"""Train a masked diffusion language model from a Qwen3 checkpoint.

    python -m train.run --mode pretrain --config configs/pretrain.yaml
    python -m train.run --mode sft --config configs/sft.yaml --training.lr 2e-5 --project.output_dir runs/chat

Any key of the configuration is a flag, in full or, where that is unambiguous, by its last part. The run folder
is a model folder: give it to sample.generate or converters.to_hf. The same command goes on where it stopped.

    --dry-run        open model and data, say what they are, and stop; nothing is written
    --show-rows N    show the first N rows as they are trained on
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from qwen3llada_jax import attention, checkpoint, command_line, model, sharding, tokens
from qwen3llada_jax.config import ModelConfig
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import check_folder, make_folder, remove_parts, write_text
from qwen3llada_jax.model import Runtime
from train import checkpoints, data, distributed, guard, order, samples, trackers
from train.batches import Batches, held_out_rows, lengths_of, trained_on_too, training_batches
from train.check_config import MOST
from train.config import Config
from train.evaluate import evaluate
from train.lock import only_run_in
from train.meter import Meter, peak_of_run
from train.optim import schedule
from train.prefetch import prefetch
from train.profile import Profile
from train.read_config import as_yaml, full_name, help_text, read_config
from train.show_rows import shown
from train.signals import leave_on_sigterm, stop_requests
from train.start import find_start
from train.state import first_state
from train.step import (
    DeviceBatch,
    make_eval_step,
    make_train_step,
    rows_of_a_pass,
    rows_sharding,
    state_shardings,
    to_devices,
    weights,
)
from train.versions import versions
from train.watch import Watch, notice, say


class Look(NamedTuple):
    """What of a run is to be shown before it begins, and whether that is all."""

    rows: int = 0
    only: bool = False


def main() -> None:
    look, arguments = look_of(sys.argv[1:])
    config = parse(arguments)
    if config.project.device != "auto":
        jax.config.update("jax_platforms", "cuda" if config.project.device == "gpu" else config.project.device)
    distributed.start(config.distributed)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError where no plugin for GPUs is installed
        reason = str(error) or "it was installed without them"
        raise InputError(f"project.device {config.project.device}: JAX finds none here ({reason})") from error
    distributed.check()
    train(config, look)


def train(config: Config, look: Look = Look()) -> None:
    """A whole run, the only one in its folder; or only what it would read, and nothing is written.

    Raises:
        InputError: anything wrong with configuration, data, model or disk; nearly all of it before compiling.
    """
    output = Path(config.project.output_dir)
    logs = Path(config.project.log_dir or output)
    for folder in (output / "checkpoints", logs):
        check_folder(folder)
    if (output / "params").exists() or any(output.glob("*.safetensors*")):
        raise InputError(f"{output} is a model folder, not a run; choose another project.output_dir")
    trackers.require(config)
    with leave_on_sigterm(), nullcontext(lambda: None) if look.only else only_run_in(output) as take_folder:
        _train(config, look, output, logs, take_folder)


def _train(config: Config, look: Look, output: Path, logs: Path, take_folder: Callable[[], None]) -> None:
    """config → model → mesh → data → state → loop."""
    # ---- model: architecture, tokenizer, mask token -------------------------------------------------------
    start = find_start(config)
    tokenizer, architecture = start.tokenizer, start.config
    runtime = Runtime(config.dtype, config.training.attention, config.training.remat)
    for length in lengths_of(config):
        attention.choose(runtime.attention, jnp.dtype(config.dtype), length, architecture.head_dim)
    graphdef, _, _ = model.abstract(architecture, runtime=runtime)
    if config.evaluation.prompts:
        samples.check(config, architecture, tokenizer)
    assert architecture.mask_token_id is not None
    text = tokens.token_text(tokenizer, architecture.mask_token_id)
    meaning = "" if text is None else f" ({text!r}, which the model cannot tell from a mask where texts hold it)"
    say(
        f"starting from {start.folder}, mask token {architecture.mask_token_id}{meaning}, "
        f"visibility {architecture.visibility}"
    )

    # ---- mesh ---------------------------------------------------------------------------------------------
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    rows_of_a_pass(config, mesh)  # refuses those that do not divide

    # ---- data ---------------------------------------------------------------------------------------------
    slots = order.host_slots(rows_sharding(mesh), config.training.batch_size)
    batches = training_batches(config, tokenizer, architecture.vocab_size, slots)
    say("training data: " + batches.report.replace("\n", "\n  "))
    held_out = None
    if config.evaluation.do_eval_loss:
        held_out = held_out_rows(config, tokenizer, architecture.vocab_size)
        say("held-out data: " + held_out.report.replace("\n", "\n  "))
        if (warning := trained_on_too(config)) is not None:
            notice(warning)
    if look.rows:
        say(shown(batches, tokenizer, look.rows))
    steps = config.training.max_steps
    if steps is None:
        assert batches.rows_per_epoch is not None  # a stream asks for max_steps
        steps = max(1, math.ceil(config.training.epochs * batches.rows_per_epoch / config.training.batch_size))
        if steps > MOST:
            raise InputError(f"training.epochs {config.training.epochs:g} are more than {MOST} updates; lower it")
    if look.only:
        say(f"dry run: {steps} updates would follow; nothing was written")
        return

    # ---- state: 1. this run's newest checkpoint, 2. another run's, 3. the starting weights ----------------
    tx = guard.watched_optimiser(config, steps)
    shapes, shardings = state_shardings(architecture, tx, mesh, ema=config.training.ema_decay > 0)
    with jax.set_mesh(mesh):
        state, place = first_state(config, output, start, batches.fingerprint, tx, shapes, shardings, mesh)
    first = int(state["step"])
    if first >= steps:
        say(f"{output}: already at update {first} of {steps}, nothing to do")
        return
    batches.restore(place, first)
    profile = Profile(logs / "profile", config.project.profile, first, steps)

    # ---- run folder ---------------------------------------------------------------------------------------
    if distributed.is_main():
        prepare_folder(output, logs, config, architecture, start.folder, take_folder)

    # ---- loop ---------------------------------------------------------------------------------------------
    live = architecture.live_vocab_size or architecture.vocab_size
    seed_key = jax.random.key(config.project.seed)
    step_fn = make_train_step(graphdef, config, tx, shardings, seed_key, architecture.mask_token_id, live)
    eval_fn = make_eval_step(graphdef, config, architecture.mask_token_id, live)
    rate = schedule(config, steps)
    every, keep_best = config.evaluation, config.training.keep_best
    meter = Meter(architecture, peak_of_run(config))
    skips = "skip" in (config.training.on_nan, config.training.on_spike)
    with (
        stop_requests() as should_stop,
        jax.set_mesh(mesh),
        checkpoints.open_checkpoints(output, config.training.save_total_limit, keep_best=keep_best) as manager,
        Watch(config, logs, first, steps) as watch,
        closing(prefetch(feed(batches, first, steps, mesh))) as ahead,
    ):
        lengths: set[int] = set()  # that a step has been compiled for
        unseen = None  # metrics of an update that nobody has waited for
        for step in range(first, steps):
            with meter.waiting():
                batch, on_devices, place = next(ahead)
            if batch.tokens.shape[1] not in lengths:
                lengths.add(batch.tokens.shape[1])
                watch.say(f"{step:>7}  compiling the update for rows of {batch.tokens.shape[1]} tokens")
            profile.before(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fn(state, on_devices)
            done = step + 1
            meter.count(batch)
            watch.advance()
            checkpoints.check_written(manager)
            if unseen is not None:  # one update late, while the devices are busy with the next
                guard.report(step, unseen, config.training, watch.say)
            if profile.after(done, metrics):
                watch.say(f"{done:>7}  trace of {config.project.profile} update(s) in {profile.folder}")
            logs_now = done % every.steps == 0 or done == steps or step == 0
            saves_now = done % config.training.save_steps == 0 or done == steps
            samples_now = done % every.eval_every_steps == 0 or done == steps
            evaluates_now = held_out is not None and (samples_now or (saves_now and keep_best))
            unseen = None if logs_now or samples_now or evaluates_now or saves_now else metrics
            if unseen is None:
                guard.report(done, metrics, config.training, watch.say)
            if logs_now:
                values = {k: float(v) for k, v in metrics.items() if k not in ("verdict", "skipped")}
                skipped = int(metrics["skipped"])
                if skips:
                    values["skipped"] = skipped
                watch.metrics({"step": done, "lr": float(rate(step - skipped)), **values, **meter.read()})
            eval_loss = None
            with meter.paused(metrics) if samples_now or evaluates_now else nullcontext():
                if evaluates_now:
                    assert held_out is not None
                    losses = evaluate(eval_fn, weights(state), held_out, tokenizer.eos_token_id, config, mesh)
                    eval_loss = losses["eval_loss"]
                    watch.metrics({"step": done, **losses})
                if samples_now and every.prompts:
                    samples.write_samples(nnx.merge(graphdef, weights(state)), tokenizer, config, done, watch, mesh)
            stops = should_stop(done)
            if saves_now or stops:
                if unseen is not None:  # nothing bad is saved
                    guard.report(done, metrics, config.training, watch.say)
                with meter.paused(metrics):
                    stands = {"fingerprint": batches.fingerprint, "state": place}
                    checkpoints.save(manager, state, config, architecture, stands, eval_loss)
            if stops:
                break
        best = manager.best_step() if keep_best else None
    if batches.counts():
        say("data read: " + batches.counts().replace("\n", "\n  "))
    if done < steps:
        say(f"{output}: stopped and saved at update {done} of {steps}; the same command goes on from there")
        return
    if best not in (None, steps):
        say(f"lowest held-out loss at update {best}: {output}/checkpoints/{best}")
    say(f"{output}: {steps} updates; sample from it with: python -m sample.generate --model {output}")


def feed(batches: Batches, first: int, steps: int, mesh: Mesh) -> Iterator[tuple[data.Batch, DeviceBatch, Any]]:
    """(batch, the same on its devices, where the data stands after it) of every update."""
    for step in range(first, steps):
        batch = batches.take(step)
        yield batch, to_devices(batch, mesh), batches.state(step + 1)


def prepare_folder(
    output: Path, logs: Path, config: Config, architecture: ModelConfig, source: Path, take_folder: Callable[[], None]
) -> None:
    """Make the run folder a model folder, and say beside it what made it."""
    for folder in (logs, output):
        make_folder(folder)
    take_folder()
    for folder in (logs, output):
        remove_parts(folder)
    checkpoint.write_config(output, architecture)
    checkpoint.copy_tokenizer(source, output)
    write_text(output / "training.yaml", as_yaml(config))
    write_text(output / "versions.json", json.dumps(versions(), indent=2) + "\n")


def look_of(arguments: list[str]) -> tuple[Look, list[str]]:
    """(what --dry-run and --show-rows N ask for, the other arguments).

    Raises:
        InputError: N is no whole number above 0.
    """
    rest, rows, only = [], 0, False
    words = list(reversed(arguments))
    while words:
        word = words.pop()
        name, equals, value = word.replace("_", "-").partition("=")
        if name == "--dry-run" and not equals:
            only = True
        elif name == "--show-rows":
            value = value if equals else words.pop() if words else ""
            if not value.isdecimal() or int(value) < 1:
                raise InputError(f"--show-rows {value or 'alone'}: give the number of rows, as in --show-rows 3")
            rows = int(value)
        else:
            rest.append(word)
    return Look(rows, only), rest


def parse(arguments: list[str]) -> Config:
    """The configuration of a command line: --config FILE, --mode, and any key as a flag."""
    if any(a in ("-h", "--help") for a in arguments):
        print(f"{__doc__}\nkeys of the configuration:\n{help_text()}")
        raise SystemExit(0)
    path: Path | None = None
    overrides = []
    words = list(reversed(arguments))
    while words:
        word = words.pop()
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or not name:
            raise InputError(f"unexpected {word!r}: options are --key value (see --help)")
        if not equals:
            if not words or words[-1].startswith("--"):
                raise InputError(f"--{name} needs a value (one that begins with -- is written --{name}=--…)")
            value = words.pop()
        if name != "config":
            overrides.append((name, value))
        elif path is not None:
            raise InputError(f"--config is given twice ({path} and {value}); leave one of the two out")
        elif not value:
            raise InputError("--config needs a file")
        else:
            path = Path(value)
    names = [full_name(name) for name, _ in overrides]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is given twice; leave one of the two out")
    return read_config(path, overrides)


if __name__ == "__main__":
    command_line.run(main)
