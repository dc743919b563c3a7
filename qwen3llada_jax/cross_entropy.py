"""Cross-entropy over a large vocabulary without the [B, L, V] logits.

The head is applied to a slice of the length at a time, in the forward pass and again in the backward pass.
Slices run along L so that a batch split over devices stays where it is.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Logits held at once, in elements: 256 MB of float32.
_ELEMENTS = 1 << 26


@jax.named_scope("cross_entropy")
def cross_entropy(
    hidden: Float[Array, "B L D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B L"],
    *,
    smoothing: float = 0.0,
    chunk: int | None = None,
) -> Float[Array, "B L"]:
    """−log softmax(hidden · headᵀ)[target] of every position, float32.

    Args:
        smoothing: a of (1 − a) · ce + a · mean_v(−log softmax_v), label smoothing.
        chunk: positions per slice, a divisor of L; None: as many as fit in 256 MB of logits.
    """
    B, L, _ = hidden.shape
    if chunk is None:
        chunk = largest_divisor(L, at_most=max(1, _ELEMENTS // (B * head.shape[0])))
    if chunk == L:
        return _dense(hidden, head, targets, smoothing)

    def one(_: None, part: tuple[Array, Array]) -> tuple[None, Array]:
        return None, _dense(part[0], head, part[1], smoothing)

    slices = tuple(x.reshape(B, L // chunk, chunk, *x.shape[2:]).swapaxes(0, 1) for x in (hidden, targets))
    _, ce = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), None, slices)
    return ce.swapaxes(0, 1).reshape(B, L)


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`."""
    return max(d for d in range(1, min(number, at_most) + 1) if number % d == 0)


def _dense(hidden: Array, head: Array, targets: Array, smoothing: float) -> Array:
    logits = jnp.einsum("bld,vd->blv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    ce = total - picked
    return (1 - smoothing) * ce + smoothing * (total - logits.mean(axis=-1)) if smoothing else ce
