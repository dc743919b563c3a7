"""Opening a model to write with: first what can be refused without its weights, then the weights."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import qwen3llada_jax as q
from qwen3llada_jax import checkpoint, tokens
from qwen3llada_jax.config import ModelConfig
from qwen3llada_jax.sampler_config import SamplerConfig
from qwen3llada_jax.text_ends import with_text_ends


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
    path = Path(flags.model)
    config = with_text_ends(checkpoint.read_model_config(path), path)
    tokenizer = tokens.load_tokenizer(path)
    sizes = {axis: getattr(flags, f"mesh_{axis}") for axis in ("data", "fsdp", "tensor")}
    sizes = {axis: size for axis, size in sizes.items() if size is not None}
    return Folder(path, config, tokenizer, q.make_mesh(**sizes) if sizes else None)


def load(folder: Folder, dtype: str | None) -> q.Qwen3LLaDA:
    """Read the weights."""
    return checkpoint.load(folder.path, dtype, mesh=folder.mesh)


def say_if_approximate(settings: SamplerConfig, config: ModelConfig) -> None:
    """A line on standard error when a cache changes what is written."""
    if not q.is_exact(settings, config):
        visibility = settings.visibility or config.visibility
        print(
            f"cache {settings.cache}: approximate under visibility {visibility}, where keys and values of all tokens "
            "change with every written one; --cache none is exact",
            file=sys.stderr,
        )
