"""Models on disk: what a model folder holds, and opening one, wherever it came from.

    DIR/config.json         the architecture, Hugging Face's keys plus mask_token_id and the visibility
    DIR/params/             the parameters, an orbax item of their own, each in its own dtype
    DIR/tokenizer.json …    the tokenizer and generation config, as they were

A training run is such a folder too, with `checkpoints/<step>/params` in place of `params`; one of its
checkpoints opens by its own path, and a Hugging Face folder of safetensors directly.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qwen3llada_jax import arguments
from qwen3llada_jax.checkpoint import hf_import
from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.errors import InputError, listed
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
    """Open a model folder, a training run (its newest step), `RUN/checkpoints/<n>`, or a folder of safetensors.

    Its config names every id that ends a text and how many ids are tokens, as the tokenizer's files have them, and how
    its publishers sample from it, as generation_config.json has it.

    Args:
        dtype: of the parameters, and of the computation unless `runtime` says otherwise; None: as stored.
        mesh: where to put the parameters; None: the first device.
        visibility: what the model was trained with, or is to be adapted to (`ModelConfig`); None: as its files say, by
            the rules of `trained_with`.
        block_length: likewise.
        shift: likewise.
        block_origin: likewise.

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
        from qwen3llada_jax.checkpoint import stored_params  # see there

        return stored_params.restore_params(item, config, dtype, mesh)
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
        from qwen3llada_jax.checkpoint import stored_params  # see there

        stored_params.check_params(item, config)
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


def check_finite(params: Any, whose: Path | str) -> None:
    """Refuse weights that are NaN or infinite: whatever is computed with them is nonsense.

    Raises:
        InputError: naming some of the tensors.
    """
    weights = flatten(params)
    if jax.default_backend() == "cpu" and jax.process_count() == 1:  # to compile it takes a second, and it lies here
        finite = {name: np.isfinite(np.asarray(x)).all() for name, x in weights.items()}
    else:
        finite = jax.jit(lambda tensors: {name: jnp.isfinite(x).all() for name, x in tensors.items()})(weights)
    bad = [name for name, is_finite in jax.device_get(finite).items() if not is_finite]
    if bad:
        raise InputError(f"{whose}: weights that are NaN or infinite, in {listed(bad, most=3)}; take whole ones")


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
