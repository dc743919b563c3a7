"""The first of the highest, of as many as a vocabulary has."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3llada_jax import sharding

_MOST = 128  # of a part


def likeliest(scores: Float[Array, " V"]) -> Int[Array, ""]:
    """`jnp.argmax(scores)`, on a CPU several times as fast: the highest of each part, then the place in the best part.

    Of an argmax XLA makes one comparison after the other there, of a maximum many at once. With NaN it is any index.
    """
    size = next((size for size in range(_MOST, 1, -1) if len(scores) % size == 0), 1)
    if sharding.platform() != "cpu" or size in (1, len(scores)):
        return jnp.argmax(scores)
    parts = scores.reshape(-1, size)
    part = jnp.argmax(parts.max(axis=1))
    return part * size + jnp.argmax(parts[part])
