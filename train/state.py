"""The state a run goes on from: its newest checkpoint, another run's, or the starting weights."""

import functools
from pathlib import Path
from typing import Any

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
from train.watch import notice


def first_state(
    config: Config,
    output: Path,
    start: Start,
    fingerprint: str,
    tx: optax.GradientTransformation,
    shapes: State,
    shardings: State,
    mesh: Mesh,
) -> tuple[State, Any]:
    """(parameters, moments and step to go on from; where the data stood, None: at its beginning).

    Args:
        fingerprint: of the data, which a run keeps to.

    Raises:
        InputError: a run with other settings, or nothing that can be read.
    """
    goes_on = config.training.resume_from
    resume = functools.partial(checkpoints.resume, config=config, model=start.config, fingerprint=fingerprint,
                               shapes=shapes, shardings=shardings)  # fmt: skip
    if goes_on not in ("never", None) and checkpoints.step_folders(output):
        state, place = resume(output, fork=False)
        notice(f"going on from update {int(state['step'])} of {output}")
        return state, place
    if goes_on not in ("auto", "never", None):
        other = Path(goes_on)
        if not checkpoints.step_folders(other) or not (home(other) / "checkpoints").is_dir():
            raise InputError(f"training.resume_from {other}: no training run with checkpoints there")
        state, place = resume(other, fork=True)
        notice(f"going on from update {int(state['step'])} of {other}, in {output}")
        return state, place
    if checkpoints.step_folders(output):
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
    step = jax.jit(lambda: jnp.int32(0), out_shardings=shardings["step"])()
    state = {"params": params, "opt": opt, "step": step}
    if "ema" in shardings:  # arrays of its own: the step gives the old state up
        state["ema"] = jax.tree.map(jnp.copy, params)
    return state, None
