"""The state a run goes on from: its newest checkpoint, another run's, or the starting weights."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets
from qwen3llada_jax.io.atomic_files import run_of
from qwen3llada_jax.model.model import Qwen3LLaDA

from ..config.schema import Config
from ..monitor.run_log import warn
from ..step import State
from . import manager
from .base_model import BaseModel
from .resume_check import go_on_elsewhere
from .stored import DamagedError, RefusedError, read_meta, step_folders


class Origin(NamedTuple):
    """The run whose newest checkpoint is gone on from; `is_fork`: another run than the one in `project.output_dir`."""

    run: Path
    is_fork: bool


def origin_of(config: Config, output: Path) -> Origin | None:
    """What `training.resume_from` means here; None: the run begins with the starting weights.

    Raises:
        InputError: no checkpoint where one is named, some of another run in `output`, or another one named than the
            newest of those in `output`.
    """
    goes_on = config.training.resume_from
    if goes_on not in ("never", None) and step_folders(output):
        if goes_on != "auto":
            _check_is_own(goes_on, output)
        return Origin(output, is_fork=False)
    if goes_on not in ("auto", "never", None):
        other = buckets.place(goes_on)
        if not step_folders(other) or not (run_of(other) / "checkpoints").is_dir():
            raise InputError(f"training.resume_from {other}: no training run with checkpoints there")
        return Origin(other, is_fork=True)
    if step_folders(output):
        raise InputError(
            f"{output} holds the checkpoints of another run; choose another project.output_dir, or resume_from: auto"
        )
    return None


def _check_is_own(named: str, output: Path) -> None:
    """Refuse a `resume_from` that the checkpoints of `output` would silently stand before.

    What it may name is the run itself, its newest checkpoint, or what the run began with: the same command goes on.

    Raises:
        InputError: it names something else, or nothing.
    """
    own = step_folders(output)
    if buckets.real(named) in (buckets.real(output), buckets.real(own[0])):
        return
    for step in own:
        with suppress(DamagedError, RefusedError):  # `resume` says so
            told = read_meta(step)["config"].get("training.resume_from")
            if told is not None and (told == named or buckets.real(told) == buckets.real(named)):
                return
    if not step_folders(buckets.place(named)):
        raise InputError(f"training.resume_from {named}: no training run with checkpoints there")
    raise InputError(
        f"training.resume_from {named}: {output} has checkpoints, and goes on from its newest, {own[0].name}; leave "
        f"resume_from out, or {go_on_elsewhere(buckets.place(named))}"
    )


def newest_update(origin: Origin | None) -> int:
    """Updates that a run has seen when it goes on, if its newest checkpoint can be read."""
    return int(step_folders(origin.run)[0].name) if origin is not None else 0


def check_before_data(config: Config, origin: Origin | None, base: BaseModel, shapes: State) -> None:
    """Refuse what `first_state` will, as far as it can be told without the data.

    Raises:
        InputError: as in `first_state`.
    """
    if origin is not None:
        manager.check_before_data(origin.run, config, base.config, shapes, fork=origin.is_fork)
    elif not config.model.from_scratch:
        model_folder.check_params(base.folder, base.config)


def first_state(
    config: Config,
    output: Path,
    origin: Origin | None,
    base: BaseModel,
    fingerprint: str,
    tx: optax.GradientTransformation,
    shapes: State,
    shardings: State,
    mesh: Mesh,
) -> manager.Resumed:
    """Parameters, moments and step to go on from, and where data and counts stood.

    Args:
        fingerprint: of the data, which a run keeps to.

    Raises:
        InputError: a run with other settings, nothing that can be read, or weights that are not finite.
    """
    if origin is not None:
        found = manager.resume(origin.run, config, base.config, fingerprint, shapes, shardings,
                                   fork=origin.is_fork)  # fmt: skip
        model_folder.check_finite(found.state["params"], f"{origin.run}, update {int(found.state['step'])}")
        into = f", in {output}" if origin.is_fork else ""
        warn(f"going on from update {int(found.state['step'])} of {origin.run}{into}")
        return found
    if config.model.from_scratch:
        fresh = lambda: nnx.to_pure_dict(  # noqa: E731
            nnx.state(Qwen3LLaDA(base.config, rngs=nnx.Rngs(config.project.seed)), nnx.Param)
        )
        params = jax.jit(fresh, out_shardings=shardings["params"])()
    else:
        params = model_folder.load_params(base.folder, base.config, "float32", mesh)
        model_folder.check_finite(params, base.folder)
    opt = jax.jit(tx.init, out_shardings=shardings["opt"])(params)
    step = jax.jit(lambda: jnp.int32(0), out_shardings=shardings["step"])()
    state = {"params": params, "opt": opt, "step": step}
    if "ema" in shardings:  # arrays of its own: the step gives the old state up
        state["ema"] = jax.tree.map(jnp.copy, params)
    return manager.Resumed(state, None, {})
