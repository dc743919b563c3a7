"""Parameters as orbax stores them, in a model folder and in a training run alike, and what its errors mean.

orbax takes half as long to import as JAX, so whoever may do without it imports this module where it is needed.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding

from qwen3llada_jax import sharding
from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.errors import InputError, brief, listed
from qwen3llada_jax.io import buckets
from qwen3llada_jax.model import model
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.process import root_logger

with root_logger.left_as_it_is():
    import orbax.checkpoint as ocp


def save_params(item: Path, params: dict[str, Any]) -> None:
    """Write a parameter tree as an orbax item (uncompressed: weights do not shrink, and memory would double).

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    with writing(item), ocp.Checkpointer(params_handler()) as checkpointer:
        checkpointer.save(buckets.absolute(item), args=ocp.args.PyTreeSave(params))


def restore_params(item: Path, config: ModelConfig, dtype: str | None, mesh: Mesh | None) -> dict[str, Any]:
    """Read the parameter tree of an item.

    Raises:
        InputError: it is damaged, cannot be read, or is not what the config describes.
    """
    _, shapes, roles = model.abstract(config)
    with _reading(item), ocp.Checkpointer(params_handler()) as checkpointer:
        stored = _stored(item)
        _check_stored(item, flatten(stored), flatten(shapes))
        where = SingleDeviceSharding(jax.devices()[0])
        placed = sharding.shardings(roles, shapes, mesh) if mesh else jax.tree.map(lambda _: where, shapes)
        target = jax.tree.map(
            lambda want, have, place: jax.ShapeDtypeStruct(want.shape, np.dtype(dtype or have.dtype), sharding=place),
            shapes,
            stored,
            placed,
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        return checkpointer.restore(
            buckets.absolute(item), args=ocp.args.PyTreeRestore(item=target, restore_args=arguments)
        )


def check_params(item: Path, config: ModelConfig) -> None:
    """Refuse an item that is damaged or not what the config describes, without reading its arrays.

    Raises:
        InputError: saying so.
    """
    with _reading(item):
        _check_stored(item, flatten(_stored(item)), flatten(model.abstract(config)[1]))


def params_handler() -> ocp.PyTreeCheckpointHandler:
    """How parameters are stored."""
    return ocp.PyTreeCheckpointHandler(use_compression=False)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn a failed write (tensorstore reports it as a ValueError) into an InputError that names `place`."""
    try:
        yield
    except InputError:  # says by itself what it is
        raise
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)) and not buckets.is_answer(error):
            raise
        raise InputError(f"{place}: cannot be written ({cause_of(error)})") from error


# How tensorstore begins what it says of files that are missing, cut short, or do not match their own checksums.
_DAMAGE = ("DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND", "FAILED_PRECONDITION")


@contextmanager
def reading(damaged: Callable[[str], Exception], refused: Callable[[str], Exception]) -> Iterator[None]:
    """Turn orbax's errors about a stored item into `damaged(reason)`, where they show damage, else `refused(reason)`.

    A path that it does not like, a file that may not be read, a format that it does not know are no damage, and
    whoever is told so throws good weights away. Errors that are nothing of an item (no memory, say) pass.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # An array cut short is reported as a bare Exception around its cause.
        wrapped = type(error) is Exception and isinstance(error.__cause__, Exception)
        cause: Any = error.__cause__ if wrapped else error
        if not isinstance(cause, (ValueError, OSError, KeyError, TypeError)) and not buckets.is_answer(cause):
            raise
        is_damage = isinstance(cause, (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError))
        is_damage |= str(cause).startswith(_DAMAGE)
        raise (damaged if is_damage else refused)(cause_of(cause)) from error


def cause_of(error: Exception) -> str:
    """The part of an error's text that says what happened, on one line."""
    text = " ".join(str(error).split())
    cause = re.search(r"Failed to (write|open|read)[^\[]*", text)  # at the end of tensorstore's long chain
    return cause.group().strip() if cause else brief(text, 300)


def _stored(item: Path) -> Any:
    """Shapes and dtypes of an item. Asked of the handler: a checkpointer keeps to itself why it cannot read."""
    return params_handler().metadata(epath.Path(buckets.absolute(item))).tree


def _reading(item: Path) -> AbstractContextManager[None]:
    def damaged(reason: str) -> InputError:
        return InputError(f"{item}: damaged parameters ({reason}); convert or copy the model again")

    def refused(reason: str) -> InputError:
        return InputError(
            f"{item}: its parameters cannot be read ({reason}), which need not mean that they are damaged"
        )

    return reading(damaged, refused)


def _check_stored(item: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    problems = [f"missing {name}" for name in sorted(set(wanted) - set(stored))]
    problems += [f"unexpected {name}" for name in sorted(set(stored) - set(wanted))]
    problems += [
        f"{name} has shape {list(stored[name].shape)} where config.json says {list(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(stored))
        if tuple(stored[name].shape) != tuple(wanted[name].shape)
    ]
    if problems:
        raise InputError(f"{item}: parameters and config.json do not agree: {listed(problems, '; ')}")
