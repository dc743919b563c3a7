"""How many floating-point operations the model itself asks for, and how many a device could do.

    training FLOPs per token = 6 · N_matmul + 12 · layers · L · N · H

(PaLM, arXiv 2204.02311, appendix B): forward 2 and backward 4 for every weight of a matmul, the head included and
the embedding lookup not; and QKᵀ and its product with V over all L keys, for attention here sees both ways.
What remat computes twice does not count, nor is anything taken off for positions a mask hides or the loss leaves out;
but for rows of block diffusion, [noisy ; clean], most of whose pairs are hidden by design (`training_flops_of_row`).
"""

from typing import NamedTuple

import jax

from qwen3llada_jax.model import model
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.roles import by_role

# Published dense bfloat16 peaks, TFLOP/s of one JAX device; the first name found in `device_kind` counts.
PEAK_TFLOPS = (
    ("tpu v4", 275.0),
    ("tpu v5 lite", 197.0),
    ("tpu v5e", 197.0),
    ("tpu v5", 459.0),  # v5p, which names itself "TPU v5" too
    ("tpu v6", 918.0),
    ("tpu7x", 1153.5),  # two devices a chip of 2,307
    ("gb200", 2500.0),
    ("b200", 2250.0),
    ("gh200", 989.4),
    ("h200 nvl", 835.5),
    ("h200", 989.4),
    ("h100 nvl", 835.5),
    ("h100 pcie", 756.5),
    ("h100", 989.4),
    ("a100", 311.9),
    ("l40s", 362.0),
    ("l4", 121.0),
    ("a10g", 70.0),
    ("a10", 125.0),
)


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied with: all projections, and the head (tied or not)."""
    _, shapes, roles = model.abstract(config)
    return sum(jax.tree.leaves(by_role(roles, lambda role, w: role.multiplied(w.shape))(shapes)))


def training_flops_per_token(config: ModelConfig, length: int) -> int:
    """FLOPs of one token's share of forward and backward pass, in rows of `length` tokens."""
    attention = config.num_hidden_layers * length * config.num_attention_heads * config.head_dim
    return 6 * matmul_parameters(config) + 12 * attention


class Reading(NamedTuple):
    """How often, and as what, an update reads its rows.

    Attributes:
        times: 2 where every row is read twice.
        block_length: of [noisy ; clean] rows; None: rows are read as they are.
        asks_clean: whether the clean half is asked for its next tokens.
    """

    times: int = 1
    block_length: int | None = None
    asks_clean: bool = False


Readings = tuple[tuple[float, Reading], ...]  # of updates that differ, each with its share of them


def mean_training_flops_of_row(config: ModelConfig, length: int, readings: Readings) -> int:
    """FLOPs that a row of `length` tokens needs, forward and backward, in the mean over updates."""
    return round(sum(share * training_flops_of_row(config, length, reading) for share, reading in readings))


def training_flops_of_row(config: ModelConfig, length: int, reading: Reading) -> int:
    """FLOPs that a row of `length` tokens needs, forward and backward.

    Of [noisy ; clean] 2 L tokens go through the layers; the clean half's last layer gives keys and values alone, and
    the head sees the noisy half, unless the clean half is asked, too. Pairs of attention count as they are seen, in
    whole blocks.
    """
    if reading.block_length is None:
        return reading.times * length * training_flops_per_token(config, length)
    head, S, layers = config.vocab_size * config.hidden_size, reading.block_length, config.num_hidden_layers
    layer = (matmul_parameters(config) - head) // layers
    starts = range(0, length, S)
    noisy = clean = sum(S * (start + S) for start in starts)
    weights, pairs = 2 * layers * layer * length + head * length, layers * (noisy + clean)
    if reading.asks_clean:
        weights += head * length
    else:
        weights -= (layer - 2 * config.hidden_size * config.num_key_value_heads * config.head_dim) * length
        pairs -= clean
    return reading.times * (6 * weights + 12 * pairs * config.num_attention_heads * config.head_dim)


def peak_flops(device: jax.Device) -> float | None:
    """Published dense bfloat16 FLOP/s of a device; None where none is known (a CPU, say)."""
    kind = device.device_kind.lower()
    words = kind.replace("-", " ").split()
    for name, tflops in PEAK_TFLOPS:
        # Whole words, so that an L4 is no L40 and an A10 no A100; TPU kinds may carry a letter ("TPU v5p", "v6e").
        if kind.startswith(name) if name.startswith("tpu") else f" {name} " in f" {' '.join(words)} ":
            return tflops * 1e12
    return None
