"""Models on disk: what a model folder holds, and opening one, wherever it came from.

    DIR/config.json         the architecture, Hugging Face's keys plus mask_token_id and the visibility
    DIR/params/             the parameters, an orbax item of their own, each in its own dtype
    DIR/tokenizer.json …    the tokenizer and generation config, as they were

A training run is such a folder too, with `checkpoints/<step>/params` in place of `params`; one of its
checkpoints opens by its own path, and a Hugging Face folder of safetensors directly.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from qwen3llada_jax import arguments, sharding
from qwen3llada_jax.checkpoint import hf_import
from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.errors import InputError, brief, listed
from qwen3llada_jax.io import buckets
from qwen3llada_jax.io.atomic_files import copy_file, expanded, home, write_text
from qwen3llada_jax.model import model
from qwen3llada_jax.model.config import ModelConfig, read_model_config
from qwen3llada_jax.model.model import Qwen3LLaDA, Runtime
from qwen3llada_jax.text.sampling_defaults import with_sampling
from qwen3llada_jax.text.text_ends import with_text_ends

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def load(
    path: str | Path,
    dtype: str | None = None,
    *,
    mesh: Mesh | None = None,
    runtime: Runtime | None = None,
    visibility: str | None = None,
    block_length: int | None = None,
    shift: bool | None = None,
    block_origin: str | None = None,
) -> Qwen3LLaDA:
    """Open a model folder, a training run (its newest step), RUN/checkpoints/<n>, or a folder of safetensors.

    Its config names every id that ends a text and how many ids are tokens, as the tokenizer's files have them, and how
    its publishers sample from it, as generation_config.json has it.

    Args:
        dtype: of the parameters, and of the computation unless `runtime` says otherwise; None: as stored.
        mesh: where to put the parameters; None: the first device.
        visibility, block_length, shift, block_origin: what the model was trained with, or is to be adapted to
            (`ModelConfig`); None: as its files say, by the rules of `trained_with`.

    Raises:
        InputError: nothing there to open, it is damaged, or nothing says what the model sees.
    """
    path = expanded(path)
    said = {"visibility": visibility, "block_length": block_length, "shift": shift, "block_origin": block_origin}
    config = whole_config(path, said)
    params = load_params(path, config, dtype, mesh)
    graphdef, _, _ = model.abstract(config, runtime=runtime or Runtime())
    return nnx.merge(graphdef, params)


def whole_config(path: Path, said: Mapping[str, Any] | None = None) -> ModelConfig:
    """The config of a folder as `load` gives it: `read_config`, with text ends, live ids and sampling settings."""
    return with_sampling(with_text_ends(read_config(path, said), path), path)


def read_config(path: Path, said: Mapping[str, Any] | None = None) -> ModelConfig:
    """The config of any folder that `load` opens: what its config.json says, and its weights.

    Args:
        said: as `ModelConfig.from_hf` takes it.

    Raises:
        InputError: as `read_model_config`.
    """
    config = read_model_config(path, said)
    if config.family.may_untie and params_item(path) is None and any(path.glob("*.safetensors*")):
        return hf_import.as_stored(path, config)
    return config


def load_params(path: Path, config: ModelConfig, dtype: str | None = None, mesh: Mesh | None = None) -> dict[str, Any]:
    """The parameter tree of any folder that `load` opens."""
    dtype = None if dtype is None else arguments.dtype("dtype", dtype)
    item = params_item(path)
    if item is not None:
        return _restore_params(item, config, dtype, mesh)
    if any(path.glob("*.safetensors*")):
        return hf_import.import_params(path, config, dtype, mesh)
    raise _no_weights(path)


def check_params(path: Path, config: ModelConfig) -> None:
    """Refuse weights that are not there or not those of the model, without reading them.

    Raises:
        InputError: as in `load`.
    """
    item = params_item(path)
    if item is not None:
        with _reading(item):
            _check_stored(item, flatten(_stored(item)), flatten(model.abstract(config)[1]))
    elif any(path.glob("*.safetensors*")):
        hf_import.plan(path, config)
    else:
        raise _no_weights(path)


def params_item(path: Path) -> Path | None:
    """The orbax item with a folder's parameters, of a run's newest finished step; None if it has none (finished).

    Where a run keeps a moving average of its weights (`ema`), that is what one wants to use.
    """
    if (path / "params").is_dir():
        if not buckets.is_whole(path / "params"):
            return None
        return path / "ema" if (path / "ema").is_dir() else path / "params"
    steps = [
        p for p in (path / "checkpoints").glob("*")
        if p.name.isdigit() and (p / "params").is_dir() and buckets.is_whole(p)
    ]  # fmt: skip
    return params_item(max(steps, key=lambda p: int(p.name))) if steps else None


def save_params(item: Path, params: dict[str, Any]) -> None:
    """Write a parameter tree as an orbax item (uncompressed: weights do not shrink, and memory would double).

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    with writing(item), ocp.Checkpointer(params_handler()) as checkpointer:
        checkpointer.save(buckets.absolute(item), args=ocp.args.PyTreeSave(params))


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


def check_finite(params: Any, whose: Path | str) -> None:
    """Refuse weights that are NaN or infinite: whatever is computed with them is nonsense.

    Raises:
        InputError: naming some of the tensors.
    """
    finite = jax.jit(lambda tensors: {name: jnp.isfinite(x).all() for name, x in tensors.items()})(flatten(params))
    bad = [name for name, is_finite in jax.device_get(finite).items() if not is_finite]
    if bad:
        raise InputError(f"{whose}: weights that are NaN or infinite, in {listed(bad, most=3)}; take whole ones")


def params_handler() -> ocp.PyTreeCheckpointHandler:
    """How parameters are stored, in a model folder and in a training run alike."""
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def write_config(folder: Path, config: ModelConfig, extra: dict[str, Any] | None = None) -> None:
    """Write `config.json`; `extra` adds keys to it."""
    write_text(buckets.place(folder) / "config.json", json.dumps(config.to_hf() | (extra or {}), indent=2) + "\n")


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer and generation config that `source` has; returns their names.

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    source = home(source)
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        copy_file(source / name, buckets.place(target) / name)
    return names


def _no_weights(path: Path) -> InputError:
    return InputError(
        f"{path}: no weights in it; a model folder holds params/, a training run checkpoints/, "
        "a Hugging Face folder *.safetensors"
    )


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


def _restore_params(item: Path, config: ModelConfig, dtype: str | None, mesh: Mesh | None) -> dict[str, Any]:
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
