"""Opening a model to write with: first what can be refused without its weights, then the weights."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import qwen3llada_jax as q
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import model_folder
from qwen3llada_jax.io.atomic_files import expanded, put_back
from qwen3llada_jax.model.config import ModelConfig, read_config_json
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.text import tokens
from qwen3llada_jax.text.text_ends import with_text_ends


@dataclass(frozen=True)
class Folder:
    """A model folder whose weights are not read yet.

    Attributes:
        config: with every id that ends a text, as `q.load` gives it.
    """

    path: Path
    config: ModelConfig
    tokenizer: Any
    mesh: Mesh | None

    @property
    def ways(self) -> int:
        """A batch has a multiple of so many rows: the mesh splits it."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def ending(self, settings: SamplerConfig) -> SamplerConfig:
        """Settings under which the sampler ends a text where the programs do, unless they say otherwise."""
        ends = self.config.eos_token_ids if settings.eos_token_ids is None else settings.eos_token_ids
        return dataclasses.replace(settings, eos_token_ids=ends)

    def thinks(self, asked: bool | None) -> bool:
        """Whether answers begin with a reasoning: as asked for, else as the model was taught."""
        return self.config.enable_thinking if asked is None else asked

    @contextmanager
    def on_mesh(self) -> Iterator[None]:
        """Everything inside runs on the mesh, if there is one."""
        if self.mesh is None:
            yield
        else:
            with jax.set_mesh(self.mesh):
                yield


def look_at(flags: Any) -> Folder:
    """What a model folder holds beside the weights, and the mesh that the flags ask for.

    Raises:
        InputError: no model there, no tokenizer, or a mesh that the devices do not make.
    """
    path = named(flags.model)
    config = with_text_ends(model_folder.read_model_config(path), path)
    tokenizer = tokens.load_tokenizer(path)
    sizes = {axis: getattr(flags, f"mesh_{axis}") for axis in ("data", "fsdp", "tensor")}
    sizes = {axis: size for axis, size in sizes.items() if size is not None}
    return Folder(path, config, tokenizer, q.make_mesh(**sizes) if sizes else None)


def named(model: str) -> Path:
    """The folder that --model names.

    Raises:
        InputError: nothing, a file, or what looks like a model on the hub.
    """
    if not model.strip():
        raise InputError("--model '' names no folder; give a model folder or a training run")
    path = expanded(model)
    put_back(path)
    if path.is_file():
        raise InputError(f"--model {path}: is a file; give the folder that holds it")
    if not path.exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        raise InputError(
            f"--model {model}: no such folder; if it is a model on the hub, import it first: "
            f"python -m converters.from_hf --src {model} --dst models/{path.name}"
        )
    return path


def identity(path: Path) -> str:
    """Which weights stand there now: a run that trained on has others."""
    item = model_folder.params_item(path)
    files = [item] if item is not None else sorted(path.glob("*.safetensors"))
    return " ".join([str(path.resolve()), *(f"{f.name}:{f.stat().st_mtime_ns}" for f in files if f is not None)])


def load(folder: Folder, dtype: str | None) -> q.Qwen3LLaDA:
    """Read the weights."""
    return model_folder.load(folder.path, dtype, mesh=folder.mesh)


def say_if_unadapted(folder: Folder) -> None:
    """A line on standard error when a model has only ever looked to the left."""
    source = read_config_json(folder.path)
    is_plain = model_folder.params_item(folder.path) is None and source.get("mask_token_id") is None
    if source.get("is_adapted") is False or is_plain:
        print(
            f"{folder.path}: is fresh from its import and has not learned to fill masks, so what it writes is noise; "
            "adapt it first: python -m train.run --mode pretrain",
            file=sys.stderr,
        )


def say_if_approximate(settings: SamplerConfig, config: ModelConfig) -> None:
    """A line on standard error when a cache changes what is written, in any dtype."""
    if not q.is_exact(settings, config):
        visibility = settings.visibility or config.visibility
        print(
            f"cache {settings.cache}: approximate under visibility {visibility}, where keys and values of all tokens "
            "change with every written one; --cache none is exact",
            file=sys.stderr,
        )


def say_if_rounded(model: q.Qwen3LLaDA, settings: SamplerConfig, rows: int = 1) -> None:
    """A line on standard error when the dtype is too coarse for batch and cache to leave every token as it is."""
    dtype = str(np.dtype(model.compute_dtype))
    causes = [f"the batch ({rows} texts)"] * (rows > 1) + [f"the cache ({settings.cache})"] * (settings.cache != "none")
    if dtype != "float32" and causes:
        print(
            f"computing in {dtype}: its rounding differs with {' and '.join(causes)}, and may put another token first "
            "where two are near; --dtype float32 keeps them apart",
            file=sys.stderr,
        )
