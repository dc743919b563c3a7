"""The state a run goes on from: its newest checkpoint, another run's, or the starting weights."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from qwen3llada_jax import checkpoint
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import home
from qwen3llada_jax.model import Qwen3LLaDA
from train import checkpoints
from train.config import Config
from train.start import Start
from train.step import State
from train.stored import DamagedError, RefusedError, read_meta, step_folders
from train.watch import notice


class Origin(NamedTuple):
    """The run whose newest checkpoint is gone on from; `is_fork`: another run than the one in `project.output_dir`."""

    run: Path
    is_fork: bool


def origin_of(config: Config, output: Path) -> Origin | None:
    """What `training.resume_from` means here; None: the run begins with the starting weights.

    Raises:
        InputError: no checkpoint where one is named, or some of another run in `output`.
    """
    goes_on, own = config.training.resume_from, step_folders(output)
    if goes_on in ("never", None):
        if own:
            raise InputError(
                f"{output} holds the checkpoints of another run; choose another project.output_dir, or resume_from: "
                "auto"
            )
        return None
    if goes_on == "auto":
        return Origin(output, is_fork=False) if own else None
    other = Path(goes_on)
    if own:
        _check_goes_on(other, output, own)
        return Origin(output, is_fork=False)
    if not step_folders(other) or not (home(other) / "checkpoints").is_dir():
        raise InputError(f"training.resume_from {other}: no training run with checkpoints there")
    return Origin(other, is_fork=True)


def _check_goes_on(other: Path, output: Path, own: Sequence[Path]) -> None:
    """Refuse to go on with `output`'s newest checkpoint where `training.resume_from` names something else.

    That checkpoint itself, or its run, may be named; and what a fork began with: the same command goes on with it.
    """
    named = os.path.realpath(other)
    if named in (os.path.realpath(output), *map(os.path.realpath, own[:1])):
        return
    begun_with = []
    for step in own:
        with suppress(DamagedError, RefusedError):  # whoever resumes says what is wrong with it
            begun_with.append(read_meta(step)["config"].get("training.resume_from"))
    if not begun_with or str(other) in begun_with or named in (os.path.realpath(b) for b in begun_with if b):
        return
    raise InputError(
        f"training.resume_from {other} is not what {output} goes on from: it holds checkpoints of its own, up to "
        f"{os.path.relpath(own[0])}; leave resume_from out to go on with that, or choose another project.output_dir "
        f"for a run that begins with {other}"
    )


def newest_update(origin: Origin | None) -> int:
    """Updates that a run has seen when it goes on, if its newest checkpoint can be read."""
    return int(step_folders(origin.run)[0].name) if origin is not None else 0


def check_before_data(config: Config, origin: Origin | None, start: Start, shapes: State) -> None:
    """Refuse what `first_state` will, as far as it can be told without the data.

    Raises:
        InputError: as in `first_state`.
    """
    if origin is not None:
        checkpoints.check_before_data(origin.run, config, start.config, shapes, fork=origin.is_fork)
    elif not config.model.from_scratch:
        checkpoint.check_params(start.folder, start.config)


def first_state(
    config: Config,
    output: Path,
    origin: Origin | None,
    start: Start,
    fingerprint: str,
    tx: optax.GradientTransformation,
    shapes: State,
    shardings: State,
    mesh: Mesh,
) -> checkpoints.Resumed:
    """Parameters, moments and step to go on from, and where data and counts stood.

    Args:
        fingerprint: of the data, which a run keeps to.

    Raises:
        InputError: a run with other settings, or nothing that can be read.
    """
    if origin is not None:
        found = checkpoints.resume(origin.run, config, start.config, fingerprint, shapes, shardings,
                                   fork=origin.is_fork)  # fmt: skip
        into = f", in {output}" if origin.is_fork else ""
        notice(f"going on from update {int(found.state['step'])} of {origin.run}{into}")
        return found
    if config.model.from_scratch:
        fresh = lambda: nnx.to_pure_dict(  # noqa: E731
            nnx.state(Qwen3LLaDA(start.config, rngs=nnx.Rngs(config.project.seed)), nnx.Param)
        )
        params = jax.jit(fresh, out_shardings=shardings["params"])()
    else:
        params = checkpoint.load_params(start.folder, start.config, "float32", mesh)
    opt = jax.jit(tx.init, out_shardings=shardings["opt"])(params)
    step = jax.jit(lambda: jnp.int32(0), out_shardings=shardings["step"])()
    state = {"params": params, "opt": opt, "step": step}
    if "ema" in shardings:  # arrays of its own: the step gives the old state up
        state["ema"] = jax.tree.map(jnp.copy, params)
    return checkpoints.Resumed(state, None, {})
