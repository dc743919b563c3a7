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
