"""Attention by plain matmuls, forward and backward written out so that little is kept and nothing large is copied.

The query heads that share a key head are rows of one matmul, so keys are never repeated. With
e = exp((q kᵀ − max) / √H) the result is e v / Σe: arrays of L × S are never divided, scaled or transposed, and e alone
of them is kept for the backward pass. Where even that is too much, a stretch of queries is worked on at a time and none
is kept (the idea of FlashAttention, arXiv 2205.14135, at the size of a CPU's memory).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Elements of L × S, over rows and heads: what is too much to keep in every layer (256 MB of float32), and what is
# worked on at a time then.
_TOO_MANY, _AT_ONCE = 1 << 26, 1 << 24


def dense_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    allowed: Bool[Array, "R L S"] | None,
) -> Float[Array, "B L N H"]:
    """softmax(q kᵀ / √H) v over the keys that `allowed` (R = B or 1) lets each query see; logits in float32."""
    (B, L, N, _), S = q.shape, k.shape[1]
    if B * N * L * S > _TOO_MANY:
        return _by_stretches(q, k, v, allowed, max(1, _AT_ONCE // (B * N * S)))
    return _attend(q, k, v, allowed)


def attention_with_own(
    q: Float[Array, "B L N H"],
    near_k: Float[Array, "B L K H"],
    near_v: Float[Array, "B L K H"],
    own: Bool[Array, "R P s s"] | None,
    far_k: Float[Array, "B S K H"],
    far_v: Float[Array, "B S K H"],
    allowed: Bool[Array, "R L S"] | None,
    size: int,
) -> Float[Array, "B L N H"]:
    """The same over the keys of each query's own part, `size` of the near ones, and over the far ones.

    Args:
        own: who sees whom within each of the P = L / size parts (or one rule for all); None: everyone everyone.
    """
    (B, L, _, H), parts = q.shape, q.shape[1] // size
    rule = None if own is None else jnp.broadcast_to(own, (B, parts, size, size)).reshape(B * parts, size, size)
    own_keys = _unnormalized(*_heads_first(*(x.reshape(B * parts, size, -1, H) for x in (q, near_k, near_v))), rule)
    near = [  # B · P rows of `size` queries, as B rows of all
        jnp.moveaxis(x.reshape(B, parts, *x.shape[1:]), 1, 3).reshape(B, *x.shape[1:3], L, -1) for x in own_keys
    ]
    if far_k.shape[1] == 0:
        return _heads_last(near[0] / near[1], q)
    far = _unnormalized(*_heads_first(q, far_k, far_v), allowed)
    # Each is relative to its own highest logit; what is done about that changes neither result nor gradient.
    highest = jnp.maximum(near[2], far[2])
    by = [jnp.exp((x[2] - highest) * H**-0.5) for x in (near, far)]
    out, total = (near[i] * by[0] + far[i] * by[1] for i in (0, 1))
    return _heads_last(out / total, q)


def _heads_first(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Queries [B K G L H], keys and values [B K S H]."""
    B, L, _, H = q.shape
    rows = q.reshape(B, L, k.shape[2], -1, H).transpose(0, 2, 3, 1, 4)
    return rows, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


def _heads_last(out: Array, q: Array) -> Array:
    """[B K G L H] as [B L N H], in q's dtype."""
    return out.astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _attend(q: Array, k: Array, v: Array, allowed: Array | None) -> Array:
    out, total, _ = _unnormalized(*_heads_first(q, k, v), allowed)
    return _heads_last(out / total, q)


def _by_stretches(q: Array, k: Array, v: Array, allowed: Array | None, size: int) -> Array:
    """`size` queries at a time."""
    B, L = q.shape[:2]
    count = -(-L // size)
    size = -(-L // count)

    def stretches(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, count * size - L)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(len(x), count, size, *x.shape[2:]), 1, 0)

    parts = stretches(q), None if allowed is None else stretches(allowed)
    one = jax.checkpoint(_attend)
    _, out = jax.lax.scan(lambda _, part: (None, one(part[0], k, v, part[1])), None, parts)
    return jnp.moveaxis(out, 0, 1).reshape(B, count * size, *q.shape[2:])[:, :L]


@jax.custom_vjp
def _unnormalized(
    q: Float[Array, "B K G L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    allowed: Bool[Array, "R L S"] | None,
) -> tuple[Float[Array, "B K G L H"], Float[Array, "B K G L 1"], Float[Array, "B K G L 1"]]:
    """(e v, Σe, highest of q kᵀ), float32; the last counts as a constant."""
    return _forward(q, k, v, allowed)[0]


def _forward(q: Array, k: Array, v: Array, allowed: Array | None) -> tuple[Any, Any]:
    logits = jnp.einsum("bkglh,bksh->bkgls", q, k, preferred_element_type=jnp.float32)
    if allowed is not None:
        logits = jnp.where(allowed[:, None, None], logits, jnp.finfo(jnp.float32).min)
    highest = logits.max(axis=-1, keepdims=True)
    e = jnp.exp((logits - highest) * q.shape[-1] ** -0.5)
    total, e = e.sum(axis=-1, keepdims=True), e.astype(v.dtype)
    out = jnp.einsum("bkgls,bksh->bkglh", e, v, preferred_element_type=jnp.float32)
    return (out, total, highest), (q, k, v, e)


def _backward(kept: Any, of_results: Any) -> tuple[Array, Array, Array, None]:
    (q, k, v, e), (of_out, of_total, _) = kept, of_results
    of_out, root = of_out.astype(v.dtype), q.shape[-1] ** -0.5
    of_e = jnp.einsum("bkglh,bksh->bkgls", of_out, v, preferred_element_type=jnp.float32) + of_total
    of_logits = (e * of_e).astype(v.dtype)
    # The small array is the left one: the other way round XLA would transpose the one of L × S first.
    of_v = jnp.einsum("bkglh,bkgls->bkhs", of_out, e, preferred_element_type=jnp.float32)
    of_k = jnp.einsum("bkglh,bkgls->bkhs", q, of_logits, preferred_element_type=jnp.float32) * root
    of_q = jnp.einsum("bkgls,bksh->bkglh", of_logits, k, preferred_element_type=jnp.float32) * root
    # Without the barrier XLA makes matmul and swap one matmul that a CPU is slow at, and in bfloat16 has not at all.
    of_k, of_v = (x.swapaxes(2, 3) for x in jax.lax.optimization_barrier((of_k, of_v)))
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), None


_unnormalized.defvjp(_forward, _backward)
