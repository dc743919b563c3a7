"""Train a masked diffusion language model from a Qwen3 checkpoint.

    python -m train.run --mode pretrain --config pretrain
    python -m train.run --mode sft --config sft --training.lr 2e-5 --project.output_dir runs/chat

Any key of the configuration is a flag, in full or, where that is unambiguous, by its last part. The run folder
is a model folder: give it to sample.generate or converters.to_hf. The same command goes on where it stopped.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwen3llada_jax import cli, sharding
from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets
from qwen3llada_jax.io.atomic_files import check_folder, make_folder, remove_parts, write_text
from qwen3llada_jax.model import attention, model
from qwen3llada_jax.process import compilation_cache

from .checkpoint.base_model import BaseModel, find_base_model, settled
from .checkpoint.initial_state import check_before_data, first_state, newest_update, origin_of
from .config.parse import ConfigFlags, as_yaml
from .config.schema import Config
from .config.validate import MOST
from .data import shuffle
from .data.batches import Batches, check_eval_rows, lengths_of, load_eval_rows, trained_on_too, training_batches
from .data.prefetch import prefetch
from .data.show_rows import shown
from .evaluate import batches_of
from .loop import Ahead, Ready, compiler, run_loop
from .monitor import samples, trackers
from .monitor.banner import banner, check_disk
from .monitor.profiler import Profile
from .monitor.run_log import info, warn
from .objective import objective_of, trained_objective
from .optim import bad_updates
from .runtime import distributed
from .runtime.preemption import leave_on_sigterm
from .runtime.run_lock import only_run_in
from .runtime.run_owner import Owner, check_owner, write_owner
from .runtime.versions import versions
from .step import (
    eval_params,
    make_eval_step,
    make_train_step,
    rows_of_a_pass,
    rows_sharding,
    runtime_of,
    state_shardings,
    to_devices,
)

# Files that a run writes itself, beside the tokenizer's.
WRITTEN = ("config.json", "training.yaml", "versions.json", "run.json", "metrics.jsonl", "samples.jsonl",
           "wandb_id.txt")  # fmt: skip


class Look(NamedTuple):
    """What of a run is to be shown before it begins, and whether that is all."""

    rows: int = 0
    only: bool = False


def rows(text: str) -> int:
    """Read how many rows to show."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give the number of rows, as in --show-rows 3, not {text!r}")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class Flags(ConfigFlags):
    dry_run: bool = flag("open model and data, say what they are, and stop; nothing is written", False)
    show_rows: Annotated[int, rows] = flag("show the first N rows as they are trained on", 0, metavar="N")


def main() -> None:
    flags = cli.parse(Flags)
    if flags.dry_run:
        cli.check_output()
    config, look = flags.read(), Look(flags.show_rows, flags.dry_run)
    if config.project.device != "auto":
        jax.config.update("jax_platforms", "cuda" if config.project.device == "gpu" else config.project.device)
    distributed.start(config.distributed)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError where no plugin for GPUs is installed
        reason = str(error) or "it was installed without them"
        raise InputError(f"project.device {config.project.device}: JAX finds none here ({reason})") from error
    distributed.check()
    if jax.process_count() == 1:
        compilation_cache.keep_programs()
    with distributed.parted_on_error():
        train(config, look)


def train(config: Config, look: Look = Look()) -> None:
    """A whole run, the only one in its folder and in that of its records; or only a look, and nothing is written.

    Raises:
        InputError: anything wrong with configuration, data, model or disk; nearly all of it before compiling.
    """
    output = buckets.place(config.project.output_dir)
    logs = buckets.place(config.project.log_dir or output)
    for folder in (output / "checkpoints", logs):
        check_folder(folder, or_bucket=True)
    if (output / "params").exists() or any(output.glob("*.safetensors*")):
        raise InputError(f"{output} is a model folder, not a run; choose another project.output_dir")
    trackers.require(config)
    if look.only:
        with leave_on_sigterm():
            prepare(config, output, logs, (), look)
        return
    with ExitStack() as held:
        holds = [held.enter_context(only_run_in(output))]
        if buckets.real(logs) != buckets.real(output):
            holds.append(held.enter_context(only_run_in(logs, "project.log_dir")))
        with leave_on_sigterm():
            ready = prepare(config, output, logs, holds, look)
        if ready is not None:
            base = ready.base.config
            config = settled(config, ready.base.blocks, base.enable_thinking, shift=base.shift)
            run_loop(config, output, logs, ready)


def prepare(config: Config, output: Path, logs: Path, holds: Sequence[Callable[[], None]], look: Look) -> Ready | None:
    """config → model → mesh → data → state → folder → compiled programs; None: there is nothing to do.

    Args:
        holds: what to call as soon as the folders exist, to hold them.
    """
    origin = origin_of(config, output)
    if distributed.is_main():
        check_owner(output, logs)

    # ---- model: architecture, tokenizer, mask token -------------------------------------------------------
    base = find_base_model(config, origin.run if origin else None)
    config = settled(config, base.blocks, base.config.enable_thinking, shift=base.config.shift)
    tokenizer, architecture = base.tokenizer, base.config
    runtime = runtime_of(config)
    kernels = [
        attention.choose(runtime.attention, jnp.dtype(config.dtype), length, architecture.head_dim)
        for length in lengths_of(config)
    ]
    graphdef, _, roles = model.abstract(architecture, runtime=runtime)
    if config.evaluation.prompts:
        samples.check(config, architecture, tokenizer)
    assert architecture.mask_token_id is not None
    info(f"starting from {base.folder}, mask token {base.mask_token}, visibility {base.visibility}, shift {base.shift}")
    if base.mask_token.warning:
        warn(base.mask_token.warning)

    # ---- mesh, and all that can be refused before the data are read ---------------------------------------
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    rows_of_a_pass(config, mesh)  # refuses those that do not divide
    steps = config.training.max_steps
    average = config.training.ema_decay > 0
    tx = bad_updates.run_optimizer(config, steps or 1, roles)
    shapes, _ = state_shardings(architecture, tx, mesh, ema=average)
    check_before_data(config, origin, base, shapes)
    check_disk(output, shapes)
    if steps is not None:
        Profile(logs / "profile", config.project.profile, newest_update(origin), steps)
    if config.evaluation.do_eval_loss:
        check_eval_rows(config)

    # ---- data ---------------------------------------------------------------------------------------------
    host_rows = shuffle.host_rows(rows_sharding(mesh), config.training.batch_size)
    lanes = shuffle.lanes_of(rows_sharding(mesh), config.training.batch_size)
    eval_rows = None
    if config.evaluation.do_eval_loss:  # the smaller ones first: what is wrong with them is told sooner
        eval_rows = load_eval_rows(config, tokenizer, architecture.vocab_size)
    batches = training_batches(config, tokenizer, architecture.vocab_size, host_rows, lanes)
    info("training data: " + batches.report.replace("\n", "\n  "))
    if eval_rows is not None:
        info("held-out data: " + eval_rows.report.replace("\n", "\n  "))
        if (warning := trained_on_too(config, batches, eval_rows)) is not None:
            warn(warning)
    if look.rows:
        info(shown(batches, tokenizer, look.rows, shift=architecture.shift, host_rows=host_rows))
    if steps is None:
        assert batches.rows_per_epoch is not None  # a stream asks for max_steps
        steps = max(1, math.ceil(config.training.epochs * batches.rows_per_epoch / config.training.batch_size))
        if steps > MOST:
            raise InputError(f"training.epochs {config.training.epochs:g} are more than {MOST} updates; lower it")
    if look.only:
        for line in banner(config, mesh, kernels, shapes, roles, output, newest_update(origin), steps):
            info(line)
        info("dry run: nothing was trained, and nothing was written")
        return None

    # ---- state: 1. this run's newest checkpoint, 2. another run's, 3. the starting weights ----------------
    tx = bad_updates.run_optimizer(config, steps, roles)
    shapes, shardings = state_shardings(architecture, tx, mesh, ema=average)
    with jax.set_mesh(mesh):
        resumed = first_state(config, output, origin, base, batches.fingerprint, tx, shapes, shardings, mesh)
    first = int(resumed.state["step"])
    if first >= steps and not resumed.ledger.get("owes"):
        info(f"{output}: already at update {first} of {steps}, nothing to do")
        if distributed.is_main() and (output / "checkpoints").is_dir():  # it may have been moved since
            write_owner(output, logs, hold_folders(output, logs, holds))
        return None
    if (told := batches.restore(resumed.place, first)) is not None:
        info(told)
    profile = Profile(logs / "profile", config.project.profile if first < steps else 0, first, steps)

    # ---- run folder ---------------------------------------------------------------------------------------
    if distributed.is_main():
        prepare_folder(output, logs, config, base, holds)
    for line in banner(config, mesh, kernels, shapes, roles, output, first, steps):
        info(line)

    # ---- programs: compiled here, where a stop loses nothing ----------------------------------------------
    live, mask_token = architecture.live_vocab_size or architecture.vocab_size, architecture.mask_token_id
    seed_key = jax.random.key(config.project.seed)
    objective = trained_objective(config, mask_token, live, updates=steps)
    step_fn = make_train_step(graphdef, config, tx, shardings, seed_key, objective)
    eval_fn = make_eval_step(graphdef, objective_of(config, mask_token, live, for_evaluation=True))
    compile_step = compiler(step_fn)
    ahead = prefetch(feed(batches, first, steps, mesh))
    with jax.set_mesh(mesh):
        batch = next(ahead, None)  # none where only an evaluation is left to do
        if batch is not None:
            compile_step(resumed.state, batch.on_devices, info)
        if eval_rows is not None:
            one = next(batches_of(eval_rows, tokenizer.eos_token_id, config, mesh))
            info("compiling the evaluation")
            eval_fn.lower(eval_params(resumed.state), one).compile()
    return Ready(base, mesh, batches, eval_rows, resumed, first, steps, batch, ahead, profile, graphdef, step_fn,
                 eval_fn, compile_step)  # fmt: skip


def feed(batches: Batches, first: int, steps: int, mesh: Mesh) -> Iterator[Ahead]:
    """The batch of every update."""
    for step in range(first, steps):
        batch = batches.take(step)
        yield Ahead(batch, to_devices(batch, mesh), batches.state(step + 1))


def hold_folders(output: Path, logs: Path, holds: Sequence[Callable[[], None]]) -> Owner:
    """Make the folders where they are not there yet, and take them: nobody else can come in between from now on."""
    for folder in (logs, output):
        make_folder(folder)
    for hold in holds:
        hold()
    return check_owner(output, logs)


def prepare_folder(
    output: Path, logs: Path, config: Config, base: BaseModel, holds: Sequence[Callable[[], None]]
) -> None:
    """Make the run folder a model folder, and say beside it what made it, and whose it is."""
    owner = hold_folders(output, logs, holds)
    for folder in (logs, output):
        remove_parts(folder, (*WRITTEN, *model_folder.TOKENIZER_FILES))
    model_folder.write_config(output, base.config)
    if buckets.real(base.folder) != buckets.real(output):
        model_folder.copy_tokenizer(base.folder, output)
    write_text(output / "training.yaml", as_yaml(config))
    write_text(output / "versions.json", json.dumps(versions(), indent=2) + "\n")
    write_owner(output, logs, owner)


if __name__ == "__main__":
    cli.run(main)
