"""Between Hugging Face's names for weights and ours, both ways, by a family's table (families.py).

Our weights are theirs stacked over layers (and experts); a head dimension is split off where there is one. The bytes of
one tensor are the same on both sides, so converting is copying.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from qwen3llada_jax.families.records import FAMILIES, Family
from qwen3llada_jax.model.roles import Role

_NUMBER = re.compile(r"(?<=\.)\d{1,6}(?=\.)")


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """{"layers": {"q_proj": x}} → {"layers.q_proj": x}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= {f"{key}.{k}": v for k, v in flatten(value).items()} if isinstance(value, dict) else {key: value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


class Part(NamedTuple):
    """One of the tensors that a weight is made of: its place along the stacked axes, and its shape in the file."""

    at: tuple[int, ...]
    shape: tuple[int, ...]


def hf_tensors(ours: str, shape: tuple[int, ...], role: Role, names: Mapping[str, str]) -> dict[str, Part]:
    """Hugging Face's names of one of our weights: one for each place in its stack, in the order of memory."""
    places = shape[: len(role.stacked)]
    sizes: list[int] = []
    for axis, size in zip(role.outputs + role.inputs, shape[len(places) :], strict=True):
        if axis == "head_dim" and sizes:
            sizes[-1] *= size  # PyTorch keeps heads × head_dim as one dimension
        else:
            sizes.append(size)
    return {names[ours].format(*at): Part(at, tuple(sizes)) for at in np.ndindex(*places)}


def ours_of(hf: str, names: Mapping[str, str]) -> tuple[str | None, tuple[int, ...]]:
    """Our weight (None: of no name in the table) that a tensor is a part of, and its place along the stacked axes."""
    weights = {theirs: ours for ours, theirs in names.items()}
    return weights.get(_NUMBER.sub("{}", hf)), tuple(map(int, _NUMBER.findall(hf)))


# What others put before (or leave out of) these names, and what it means.
_PREFIXES = {
    "module.": "they were saved from a DistributedDataParallel model",
    "_orig_mod.": "they were saved from a compiled model",
    "base_model.model.": "they were saved from a PEFT model",
    "model.language_model.": "they are the text part of a model for images",
    "language_model.": "they are the text part of a model for images",
    "transformer.": "they were saved by another library",
    "_fsdp_wrapped_module.": "they were saved from an FSDP model",
}


def likely_cause(family: Family, expected: set[str], stored: set[str]) -> str | None:
    """Why the names of a folder's tensors are others than its family's, where they share one difference."""
    whole = family.architectures[0]

    def fit(names: set[str]) -> bool:
        return len(names & expected) > len(stored) / 2

    if fit(stored):
        return None
    if fit({f"model.{name}" for name in stored}):
        return f"the names lack `model.`: saved from the model without its head; save them from {whole}"
    if any("lora_" in name for name in stored):
        return "these are the weights of a LoRA adapter; merge it into its model and import that"
    for other in FAMILIES.values():
        if sum(ours_of(name, other.names)[0] is not None for name in stored) > len(stored) / 2:
            return (
                f"the names are those of {other.name}, where model_type is {family.model_type}; take the config.json "
                "that the weights came with"
            )
    for prefix, why in _PREFIXES.items():
        bare = {name.removeprefix(prefix) for name in stored}
        if bare != stored and (fit(bare) or fit({f"model.{name}" for name in bare})):
            return f"the names begin with `{prefix}`: {why}; save them from the plain {whole}"
    return None
