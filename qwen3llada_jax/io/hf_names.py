"""The one table between Hugging Face's names for Qwen3's weights and ours, read both ways.

Our weights are theirs stacked over layers; a head dimension is split off where there is one. The bytes of
one layer are the same on both sides, so converting is copying.
"""

from typing import Any

HF_TO_OURS: dict[str, str] = {
    "model.embed_tokens.weight": "embed_tokens",
    "model.layers.{}.input_layernorm.weight": "layers.input_norm",
    "model.layers.{}.self_attn.q_proj.weight": "layers.q_proj",
    "model.layers.{}.self_attn.k_proj.weight": "layers.k_proj",
    "model.layers.{}.self_attn.v_proj.weight": "layers.v_proj",
    "model.layers.{}.self_attn.o_proj.weight": "layers.o_proj",
    "model.layers.{}.self_attn.q_proj.bias": "layers.q_bias",
    "model.layers.{}.self_attn.k_proj.bias": "layers.k_bias",
    "model.layers.{}.self_attn.v_proj.bias": "layers.v_bias",
    "model.layers.{}.self_attn.o_proj.bias": "layers.o_bias",
    "model.layers.{}.self_attn.q_norm.weight": "layers.q_norm",
    "model.layers.{}.self_attn.k_norm.weight": "layers.k_norm",
    "model.layers.{}.post_attention_layernorm.weight": "layers.mlp_norm",
    "model.layers.{}.mlp.gate_proj.weight": "layers.gate_proj",
    "model.layers.{}.mlp.up_proj.weight": "layers.up_proj",
    "model.layers.{}.mlp.down_proj.weight": "layers.down_proj",
    "model.norm.weight": "norm",
    "lm_head.weight": "lm_head",
}
OURS_TO_HF: dict[str, str] = {ours: hf for hf, ours in HF_TO_OURS.items()}
TIED_HEAD = "lm_head.weight"


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


def hf_tensors(ours: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes of one of our weights: one per layer when it is stacked, in order."""
    name = OURS_TO_HF[ours]
    is_stacked = axes[0] == "layers"
    sizes: list[int] = []
    for axis, size in list(zip(axes, shape, strict=True))[is_stacked:]:
        if axis == "head_dim" and sizes:
            sizes[-1] *= size  # PyTorch keeps heads × head_dim as one dimension
        else:
            sizes.append(size)
    return {name.format(i): tuple(sizes) for i in range(shape[0] if is_stacked else 1)}


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


def likely_cause(expected: set[str], stored: set[str]) -> str | None:
    """Why the names of a folder's tensors are others than a Qwen3's, where they share one difference."""

    def fit(names: set[str]) -> bool:
        return len(names & expected) > len(stored) / 2

    if fit(stored):
        return None
    if fit({f"model.{name}" for name in stored}):
        return "the names lack `model.`: saved from the bare Qwen3Model; save them from Qwen3ForCausalLM"
    if any("lora_" in name for name in stored):
        return "these are the weights of a LoRA adapter; merge it into its model and import that"
    for prefix, why in _PREFIXES.items():
        bare = {name.removeprefix(prefix) for name in stored}
        if bare != stored and (fit(bare) or fit({f"model.{name}" for name in bare})):
            return f"the names begin with `{prefix}`: {why}; save them from the plain Qwen3ForCausalLM"
    return None
