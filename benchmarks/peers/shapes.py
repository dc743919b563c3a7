"""The shapes of model that are measured, as arguments of Qwen3's configuration, and what their passes cost."""

from collections.abc import Mapping
from typing import Any

Shape = Mapping[str, Any]


def shape(
    hidden: int, layers: int, vocab: int, *, heads: int = 8, key_heads: int = 4, head_dim: int | None = None
) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "vocab_size": vocab,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "head_dim": head_dim or hidden // heads,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "max_position_embeddings": 40_960,
    }  # fmt: skip


TINY = shape(64, 2, 512)
SMALL = shape(256, 6, 4096)
LARGE = shape(512, 12, 32_000)
QWEN3_06B = shape(1024, 28, 151_936, heads=16, key_heads=8, head_dim=128)


def forward_flops(shape: Shape, rows: int, length: int) -> float:
    """2 for every weight of a matmul and token, the head included; and two products of attention over all pairs."""
    D, N, K = (shape[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    layer = 2 * D * (N + K) * shape["head_dim"] + 3 * D * shape["intermediate_size"]
    weights = shape["num_hidden_layers"] * layer + D * shape["vocab_size"]
    return 2.0 * rows * length * weights + attention_flops(shape, rows, length)


def attention_flops(shape: Shape, rows: int, length: int) -> float:
    """Attention's part of it."""
    wide = shape["num_attention_heads"] * shape["head_dim"]
    return 4.0 * rows * length * length * wide * shape["num_hidden_layers"]


def training_flops(shape: Shape, rows: int, length: int) -> float:
    """Forward and backward: three times as much (PaLM, arXiv 2204.02311, appendix B)."""
    return 3 * forward_flops(shape, rows, length)
