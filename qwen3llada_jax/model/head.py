"""The streamed head: logits of the positions that count, a slice of them at a time, never a [B, L, V] array.

Training, sampling and likelihood all read the vocabulary through `stream`: the positions that count (a training
step's noised ones, a sampler's masked ones) are dealt to the front and go through the head slice by slice, as many
slices as they fill.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Logits held at once, in elements: 512 MB of float32.
_ELEMENTS = 1 << 27


def stream(
    rows: Float[Array, "R ... D"],
    table: Float[Array, "V D"],
    where: Bool[Array, " R"],
    work: Callable[[Any, Float[Array, "C ... D"], Float[Array, "C ... V"], Int[Array, " C"], Int[Array, " C"]], Any],
    carry: Any,
    chunk: int,
) -> Any:
    """Fold `work` over the logits of the rows `where`, `chunk` rows at a time.

    Args:
        work: (carry, x, logits, here, into) → carry. `here` are the slice's rows; `into` the same, but R (out of
            range: a scatter with mode "drop" leaves it out) for the rows that only fill the last slice.
    """
    R = rows.shape[0]
    order, count = jnp.pad(jnp.argsort(~where, stable=True), (0, -R % chunk)), where.sum()

    def one(i: Array, carry: Any) -> Any:
        here = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
        into = jnp.where(i * chunk + jnp.arange(chunk) < count, here, R)
        x = rows[here]
        logits = jnp.einsum("c...d,vd->c...v", x, table, preferred_element_type=jnp.float32)
        return work(carry, x, logits, here, into)

    return jax.lax.fori_loop(0, -(-count // chunk), one, carry)


def positions_at_once(positions: int, vocab: int) -> int:
    """An eighth of the positions in multiples of 128, at least 256, while their logits fit in 512 MB."""
    fits = max(1, _ELEMENTS // vocab)
    fits = 1 << int(np.log2(fits))  # a power of two suits every kind of matrix unit
    return min(fits, max(256, -(-positions // 8 // 128) * 128))
