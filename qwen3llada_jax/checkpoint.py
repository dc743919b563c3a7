"""Models on disk: what a model folder holds, and opening one, wherever it came from.

    DIR/config.json         the architecture, Hugging Face's keys plus mask_token_id and the visibility
    DIR/params/             the parameters, an orbax item of their own, each in its own dtype
    DIR/tokenizer.json …    the tokenizer and generation config, as they were

A training run is such a folder too, with `checkpoints/<step>/params` in place of `params`; one of its
checkpoints opens by its own path, and a Hugging Face folder of safetensors directly.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from qwen3llada_jax import arguments, hf_import, model, sharding
from qwen3llada_jax.config import ModelConfig, read_model_config
from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.files import home, write_text
from qwen3llada_jax.hf_names import flatten
from qwen3llada_jax.model import Qwen3LLaDA, Runtime

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
) -> Qwen3LLaDA:
    """Open a model folder, a training run (its newest step), RUN/checkpoints/<n>, or a folder of safetensors.

    Args:
        dtype: of the parameters, and of the computation unless `runtime` says otherwise; None: as stored.
        mesh: where to put the parameters; None: the first device.

    Raises:
        InputError: nothing there to open, or it is damaged.
    """
    path = Path(path)
    config = read_model_config(path)
    params = load_params(path, config, dtype, mesh)
    graphdef, _, _ = model.abstract(config, runtime=runtime or Runtime())
    return nnx.merge(graphdef, params)


def load_params(path: Path, config: ModelConfig, dtype: str | None = None, mesh: Mesh | None = None) -> dict[str, Any]:
    """The parameter tree of any folder that `load` opens."""
    dtype = None if dtype is None else arguments.dtype("dtype", dtype)
    item = params_item(path)
    if item is not None:
        return _restore_params(item, config, dtype, mesh)
    if any(path.glob("*.safetensors*")):
        return hf_import.import_params(path, config, dtype, mesh)
    raise InputError(
        f"{path}: no weights in it; a model folder holds params/, a training run checkpoints/, "
        "a Hugging Face folder *.safetensors"
    )


def params_item(path: Path) -> Path | None:
    """The orbax item with a folder's parameters, of a run's newest finished step; None if it has none.

    Where a run keeps a moving average of its weights (`ema`), that is what one wants to use.
    """
    if (path / "params").is_dir():
        return path / "ema" if (path / "ema").is_dir() else path / "params"
    steps = [p for p in (path / "checkpoints").glob("*") if p.name.isdigit() and (p / "params").is_dir()]
    return params_item(max(steps, key=lambda p: int(p.name))) if steps else None


def save_params(item: Path, params: dict[str, Any]) -> None:
    """Write a parameter tree as an orbax item (uncompressed: weights do not shrink, and memory would double).

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    with writing(item), ocp.Checkpointer(params_handler()) as checkpointer:
        checkpointer.save(Path(item).absolute(), args=ocp.args.PyTreeSave(params))


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn a failed write (tensorstore reports it as a ValueError) into an InputError that names `place`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(f"{place}: cannot be written ({short(error)})") from error


def params_handler() -> ocp.PyTreeCheckpointHandler:
    """How parameters are stored, in a model folder and in a training run alike."""
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def write_config(folder: Path, config: ModelConfig, extra: dict[str, Any] | None = None) -> None:
    """Write `config.json`; `extra` adds keys to it."""
    write_text(Path(folder) / "config.json", json.dumps(config.to_hf() | (extra or {}), indent=2) + "\n")


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer and generation config that `source` has; returns their names.

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    source = home(source)
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        with writing(Path(target) / name):
            shutil.copyfile(source / name, Path(target) / name)
    return names


def _restore_params(item: Path, config: ModelConfig, dtype: str | None, mesh: Mesh | None) -> dict[str, Any]:
    _, shapes, axes = model.abstract(config)

    def damaged(reason: str) -> InputError:
        return InputError(f"{item}: damaged parameters ({reason}); convert or copy the model again")

    with reading(damaged), ocp.Checkpointer(params_handler()) as checkpointer:
        metadata = checkpointer.metadata(item.absolute()).item_metadata
        if metadata is None:
            raise ValueError("its metadata cannot be read")
        stored = metadata.tree
        _check_stored(item, flatten(stored), flatten(shapes))
        where = SingleDeviceSharding(jax.devices()[0])
        placed = sharding.shardings(axes, shapes, mesh) if mesh else jax.tree.map(lambda _: where, shapes)
        target = jax.tree.map(
            lambda want, have, place: jax.ShapeDtypeStruct(want.shape, np.dtype(dtype or have.dtype), sharding=place),
            shapes,
            stored,
            placed,
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        return checkpointer.restore(item.absolute(), args=ocp.args.PyTreeRestore(item=target, restore_args=arguments))


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


@contextmanager
def reading(damaged: Callable[[str], Exception]) -> Iterator[None]:
    """Turn orbax's errors about a stored item that cannot be read into `damaged(reason)`; others pass."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # An array cut short is reported as a bare Exception around its cause.
        wrapped = type(error) is Exception and isinstance(error.__cause__, Exception)
        cause = error.__cause__ if wrapped else error
        if not isinstance(cause, (ValueError, OSError, KeyError, TypeError)):
            raise
        raise damaged(short(cause)) from error


def short(error: Exception) -> str:
    """The part of an error's text that says what happened, on one line."""
    text = " ".join(str(error).split())
    cause = re.search(r"Failed to (write|open|read)[^\[]*", text)  # at the end of tensorstore's long chain
    if cause:
        return cause.group().strip()
    return text if len(text) < 300 else text[:300] + "…"
