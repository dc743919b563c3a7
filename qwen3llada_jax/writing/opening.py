"""Opening a model to write with: its configuration, tokenizer and ends first, its weights when all else is in order."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.io import buckets, objects
from qwen3llada_jax.io.atomic_files import expanded
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.text import mask_token, tokens


@dataclass(frozen=True)
class Folder:
    """A model folder whose weights are not read.

    Attributes:
        path: a model folder, a training run, or a folder of safetensors.
        config: with every id that ends a text, as `q.load` gives it, and, of an autoregressive model, a mask token.
        tokenizer: the folder's.
        mesh: that the model runs on; None: the first device.
    """

    path: Path
    config: ModelConfig
    tokenizer: Any
    mesh: Mesh | None = None

    @property
    def ways(self) -> int:
        """A batch has a multiple of so many rows: the mesh splits it."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def ending(self, settings: SamplerConfig) -> SamplerConfig:
        """Name what the settings leave open: the ids that end a text, all that model and tokenizer have, and the mask.

        An autoregressive model's own files need not name a mask token.
        """
        ends = self.config.eos_token_ids if settings.eos_token_ids is None else settings.eos_token_ids
        mask = self.config.mask_token_id if settings.mask_token_id is None else settings.mask_token_id
        return dataclasses.replace(settings, eos_token_ids=ends, mask_token_id=mask)

    def thinks(self, asked: bool | None = None) -> bool:
        """Say whether answers begin with a reasoning: as asked for, else as the model was taught."""
        return self.config.enable_thinking if asked is None else asked

    @contextmanager
    def on_mesh(self) -> Iterator[None]:
        """Run everything inside on the mesh, if there is one."""
        if self.mesh is None:
            yield
        else:
            with jax.set_mesh(self.mesh):
                yield

    def load(self, dtype: str | None = None) -> Qwen3LLaDA:
        """Read the weights, as `q.load` does.

        Raises:
            InputError: there are none, or they are damaged.
        """
        return model_folder.load(self.path, dtype, mesh=self.mesh)

    def identity(self) -> str:
        """Tell the weights that stand there now from others: a run that trained on has others."""
        item = model_folder.params_item(self.path)
        if buckets.is_bucket(self.path):
            return f"{self.path} {item}:{objects.generation(self.path if item is None else item)}"
        files = sorted(self.path.glob("*.safetensors")) if item is None else [item]
        return " ".join([str(self.path.resolve()), *(f"{f.name}:{f.stat().st_mtime_ns}" for f in files)])


def open_folder(path: str | Path, mesh: Mesh | None = None) -> Folder:
    """Read what a model folder holds beside its weights.

    Args:
        path: as `q.load` takes it.
        mesh: to run the model on; None: the first device.

    Raises:
        InputError: no model there, no tokenizer, or no token of an autoregressive model's that may be its mask.
    """
    path = expanded(path)
    config = model_folder.whole_config(path)
    tokenizer = tokens.load_tokenizer(path)
    if config.is_autoregressive and config.mask_token_id is None:
        mask = mask_token.choose("auto", path, config, tokenizer, "--mask-token-id")
        config = dataclasses.replace(config, mask_token_id=mask and mask.id)
    return Folder(path, config, tokenizer, mesh)
