"""Where a row ends."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from qwen3llada_jax.sampling.slots import rule


@rule
class AtEos:
    """At an EOS with nothing masked before it."""

    def stop(self, is_end: Bool[Array, " T"], is_masked: Bool[Array, " T"]) -> Array:
        T = is_end.shape[0]
        first_end = jnp.where(is_end.any(), jnp.argmax(is_end), T)
        first_mask = jnp.where(is_masked.any(), jnp.argmax(is_masked), T)
        return jnp.where(first_end < first_mask, first_end, T)
