"""From a Hugging Face folder to our parameter tree, one stacked weight at a time."""

import mmap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3llada_jax import sharding
from qwen3llada_jax.checkpoint.hf_names import flatten, hf_tensors, likely_cause, ours_of, unflatten
from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.families.records import Family
from qwen3llada_jax.io import buckets
from qwen3llada_jax.io.safetensors_folder import Reader, StoredTensor, mapped, reader, stored_tensors
from qwen3llada_jax.model import model
from qwen3llada_jax.model.config import ModelConfig


@dataclass(frozen=True)
class Stack:
    """One of our weights and the stored tensors it is made of, in the order of memory."""

    name: str
    shape: tuple[int, ...]
    parts: dict[str, StoredTensor]

    @property
    def dtype(self) -> np.dtype:
        """The narrowest dtype that holds every part exactly."""
        dtypes = {part.dtype for part in self.parts.values()}
        return dtypes.pop() if len(dtypes) == 1 else max((np.dtype(np.float32), *dtypes), key=lambda d: d.itemsize)


def plan(folder: Path, config: ModelConfig) -> list[Stack]:
    """Pair every weight of the model with the tensors of a folder.

    Raises:
        InputError: tensors that are missing, unexpected or of another shape, all of them listed.
    """
    tensors = stored_tensors(folder)
    _, shapes, roles = model.abstract(config)
    flat_roles, names = flatten(roles), config.family.names
    problems, stacks, expected = [], [], set()
    for name, leaf in flatten(shapes).items():
        parts = hf_tensors(name, leaf.shape, flat_roles[name], names)
        expected |= set(parts)
        for hf, (_, shape) in parts.items():
            if hf not in tensors:
                problems.append(f"missing {hf}" + (" (tie_word_embeddings is false)" if name == "lm_head" else ""))
            elif tensors[hf].shape != shape:
                problems.append(f"{hf} has shape {list(tensors[hf].shape)} where the config says {list(shape)}")
        stacks.append(Stack(name, leaf.shape, {hf: tensors[hf] for hf in parts if hf in tensors}))
    if config.tie_word_embeddings:
        expected.add(names["lm_head"])
    problems += [f"unexpected {name}" for name in sorted(set(tensors) - expected)]
    if problems:
        cause = likely_cause(config.family, expected, set(tensors)) or _of_another_shape(config, expected, set(tensors))
        because = f" ({cause})" if cause else ""
        raise InputError(f"{folder}: weights and config.json do not agree{because}: {listed(problems, '; ')}")
    return stacks


def _of_another_shape(config: ModelConfig, expected: set[str], stored: set[str]) -> str | None:
    """What in the config is the likely cause of tensors that are missing or too many."""
    names, family = config.family.names, config.family
    missing, unexpected = expected - stored - {names["lm_head"]}, stored - expected - {names["lm_head"]}
    lacks, has = ({ours_of(name, names)[0] for name in side} for side in (missing, unexpected))
    norms, biases = {"layers.q_norm", "layers.k_norm"}, {f"layers.{part}_bias" for part in "qkvo"}
    if lacks and lacks <= norms:
        return f"no norms of queries and keys: this is a Qwen2 or Llama, not {family.name}"
    if has and has <= norms:
        return f"norms of queries and keys: this is a Qwen3 or SDAR, not {family.name}"
    if has and has <= biases and not lacks:
        if has != {f"layers.{part}_bias" for part in family.biases}:
            whose = ", ".join(sorted(name.removeprefix("layers.")[0] for name in has if name))
            return f"biases of {whose} only: this is a Qwen2, not {family.name}"
        return "they have biases; set attention_bias to true in config.json"
    if lacks and lacks <= biases and not has:
        if family.has_own_biases:
            return f"no biases: this is a Llama, not {family.name}"
        return "they have no biases; set attention_bias to false in config.json"
    layers = 1 + max((at[0] for ours, at in (ours_of(name, names) for name in stored) if ours and at), default=-1)
    if layers and layers != config.num_hidden_layers:
        return f"config.json has num_hidden_layers {config.num_hidden_layers}, the weights {layers}"
    return None


def import_params(
    folder: Path, config: ModelConfig, dtype: str | None = None, mesh: Mesh | None = None
) -> dict[str, Any]:
    """The parameters of a Hugging Face folder, on the mesh (default: the first device).

    Holds the finished parameters and one stacked weight at a time. On one CPU a weight that is one tensor of its file
    (embedding, head) is mapped, not read, where it lies as JAX wants it.

    Args:
        dtype: of all parameters; None keeps each as it is stored.

    Raises:
        InputError: files or tensors that do not fit the config.
    """
    stacks = plan(folder, config)
    tensors, head = stored_tensors(folder), config.family.names["lm_head"]
    _, shapes, roles = model.abstract(config)
    placed = None if mesh is None else flatten(sharding.shardings(roles, shapes, mesh))
    params = {}
    if config.tie_word_embeddings and head in tensors and not tied_head_matches(tensors, config.family):
        raise InputError(
            f"{folder}: tie_word_embeddings is true but {head} is not the embedding; set it to false in config.json"
        )
    may_map = mesh is None and sharding.platform() == "cpu" and not buckets.is_bucket(folder)
    with reader(t.file for t in tensors.values()) as read:
        for stack in stacks:
            array = mapped_stack(stack, dtype) if may_map else None
            array = read_stack(stack, dtype, read) if array is None else array
            params[stack.name] = _to_device(array, None if placed is None else placed[stack.name])
    return unflatten(params)


def mapped_stack(stack: Stack, dtype: str | None) -> np.ndarray | None:
    """One of our weights where it lies in its file; None where it must be copied.

    A stack of layers must: it is one piece of memory, and XLA takes a layer out of it.
    """
    first, *others = stack.parts.values()
    if others or np.dtype(dtype or first.dtype) != first.dtype or first.offset % _ALIGNMENT:
        return None
    return mapped(first).reshape(stack.shape)


def read_stack(stack: Stack, dtype: str | None, read: Reader) -> np.ndarray:
    """One of our weights as a numpy array of `dtype` (None: as stored)."""
    out = _aligned_empty(stack.shape, np.dtype(dtype) if dtype else stack.dtype)
    slices = out.reshape(len(stack.parts), -1)
    read.fill(zip(stack.parts.values(), slices, strict=True))
    return out


def as_stored(folder: Path, config: ModelConfig) -> ModelConfig:
    """The config of a folder whose head is another than its embedding though its config.json calls it tied.

    Some families save such heads: PyTorch did not tie them, or they were trained apart.
    """
    if not has_tied_head(folder, config) or tied_head_matches(stored_tensors(folder), config.family):
        return config
    return replace(config, tie_word_embeddings=False)


def has_tied_head(folder: Path, config: ModelConfig) -> bool:
    """Whether the folder stores the head although it is tied to the embedding."""
    return config.tie_word_embeddings and config.family.names["lm_head"] in stored_tensors(folder)


def tied_head_matches(tensors: dict[str, StoredTensor], family: Family) -> bool:
    """Whether a stored head is, byte for byte, the embedding; compared some rows at a time."""
    embedding, head = tensors[family.names["embed_tokens"]], tensors[family.names["lm_head"]]
    if (embedding.shape, embedding.dtype) != (head.shape, head.dtype):
        return False
    rows, width = embedding.shape
    with reader({embedding.file, head.file}) as read:
        for start in range(0, rows, 4096):
            count = min(4096, rows - start)
            pair = np.empty((2, count, width), embedding.dtype)
            skip = start * width * embedding.dtype.itemsize
            parts = [replace(t, shape=(count, width), offset=t.offset + skip) for t in (embedding, head)]
            read.fill(zip(parts, pair, strict=True))
            if pair[0].tobytes() != pair[1].tobytes():
                return False
    return True


_ALIGNMENT = 64  # bytes: what JAX on CPU takes over without a copy begins at a multiple of it


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Fresh memory on a page boundary: what JAX on CPU takes over without a copy.

    Mapped directly, and all at once where that is had, which takes a quarter less than page by page. Not in the huge
    pages that numpy asks for: where a virtual machine has given memory back, their first touch takes twice as long.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(-1, max(size, 1), flags=flags), np.uint8, size).view(dtype).reshape(shape)


def _to_device(array: np.ndarray, where: jax.sharding.Sharding | None) -> jax.Array:
    if where is not None and not where.is_fully_addressable:  # several processes: each gives its devices' parts
        return jax.make_array_from_callback(array.shape, where, lambda at: array[at])
    # The array is never written again, so it may be taken over rather than copied.
    return jax.block_until_ready(jax.device_put(array, where, may_alias=True))
