"""Attention by plain matmuls, forward and backward written out so that little is kept and nothing large is copied.

The query heads that share a key head are rows of one matmul, so keys are never repeated. With
e = exp((q kᵀ − max) / √H) the result is e v / Σe: arrays of L × S are never divided, scaled or transposed, and e alone
of them is kept for the backward pass. A CPU works through them a part at a time that stays in its cache, and elsewhere
rows so long that they would fill the memory go a stretch of queries at a time: then none is kept, and e computed again
(the idea of FlashAttention, arXiv 2205.14135).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qwen3llada_jax import sharding

# Elements of L × S, over rows and heads: what stays in the caches of a CPU's cores (4 MB of float32); what is too much
# to hold at once elsewhere (256 MB), and what is worked on at a time then.
_IN_CACHE, _TOO_MANY, _AT_ONCE = 1 << 20, 1 << 26, 1 << 24
# Rows of L that a part has at the least on a CPU: each product packs its keys anew, which fewer would not be worth.
_ROWS_OF_A_PART = 256

# What may be split, and its axis in queries [B K G L H], keys, values [B K S H] and in who sees whom [R L S].
_Axes = tuple[int, int | None, int | None, int | None]
_ROWS, _HEADS, _QUERIES = (0, 0, 0, 0), (1, 1, 1, None), (3, None, None, 1)
_ALL: tuple[_Axes, ...] = (_ROWS, _HEADS, _QUERIES)


def dense_attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    allowed: Bool[Array, "R L S"] | None,
) -> Float[Array, "B L N H"]:
    """softmax(q kᵀ / √H) v over the keys that `allowed` (R = B or 1) lets each query see; logits in float32."""
    out, total, _ = _in_parts(*_heads_first(q, k, v), allowed)
    return _heads_last(out / total, q)


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
    own_keys = _in_parts(*_heads_first(*(x.reshape(B * parts, size, -1, H) for x in (q, near_k, near_v))), rule)
    near = [  # B · P rows of `size` queries, as B rows of all
        jnp.moveaxis(x.reshape(B, parts, *x.shape[1:]), 1, 3).reshape(B, *x.shape[1:3], L, -1) for x in own_keys
    ]
    if far_k.shape[1] == 0:
        return _heads_last(near[0] / near[1], q)
    far = _in_parts(*_heads_first(q, far_k, far_v), allowed)
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


def _in_parts(q: Array, k: Array, v: Array, allowed: Array | None) -> tuple[Array, Array, Array]:
    """`_unnormalized`, in parts where that is better."""
    S = k.shape[2]
    if sharding.is_one_cpu():
        too_many = most = max(_IN_CACHE, _ROWS_OF_A_PART * S)
        ways = _ALL
    else:  # rows and heads may lie on several devices; queries never do
        too_many, most, ways = _TOO_MANY, _AT_ONCE, (_QUERIES,)
    if q[..., 0].size * S <= too_many:
        return _unnormalized(True, q, k, v, allowed)
    return _split(q, k, v, allowed, most, ways)


def _split(
    q: Array, k: Array, v: Array, allowed: Array | None, most: int, ways: tuple[_Axes, ...]
) -> tuple[Array, Array, Array]:
    """At most so many elements at a time: split the first of the ways, and where one of those is too much, the next."""
    elements = q[..., 0].size * k.shape[2]
    if elements <= most or not ways:
        return _unnormalized(False, q, k, v, allowed)
    arrays: tuple[Any, ...] = (q, k, v, allowed)
    axes = ways[0]
    if allowed is None or (axes == _ROWS and len(allowed) == 1):
        axes = (*axes[:3], None)
    whole = q.shape[axes[0]]
    if whole == 1:
        return _split(q, k, v, allowed, most, ways[1:])
    size = max(1, most * whole // elements)
    while axes[0] != _QUERIES[0] and whole % size:  # of queries the last part is filled up
        size -= 1
    count = -(-whole // size)
    size = -(-whole // count)

    def parts(x: Array, axis: int) -> Array:
        x = jnp.pad(x, [(0, (count * size - n) * (i == axis)) for i, n in enumerate(x.shape)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)

    def one(part: list[Any]) -> tuple[Array, Array, Array]:
        q, k, v, allowed = (x if y is None else y for x, y in zip(arrays, part, strict=True))
        return _split(q, k, v, allowed, most, ways[1:])

    def joined(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, axes[0])
        x = x.reshape(*x.shape[: axes[0]], count * size, *x.shape[axes[0] + 2 :])
        return jax.lax.slice_in_dim(x, 0, whole, axis=axes[0])

    divided = [None if axis is None else parts(x, axis) for x, axis in zip(arrays, axes, strict=True)]
    return jax.tree.map(joined, jax.lax.map(one, divided))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unnormalized(
    keep: bool,
    q: Float[Array, "B K G L H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    allowed: Bool[Array, "R L S"] | None,
) -> tuple[Float[Array, "B K G L H"], Float[Array, "B K G L 1"], Float[Array, "B K G L 1"]]:
    """(e v, Σe, highest of q kᵀ), float32; the last counts as a constant. `keep` e, or compute it again."""
    return _forward(keep, q, k, v, allowed)[0]


def _forward(keep: bool, q: Array, k: Array, v: Array, allowed: Array | None) -> tuple[Any, Any]:
    logits = _logits(q, k, allowed)
    highest = logits.max(axis=-1, keepdims=True)
    e = jnp.exp((logits - highest) * q.shape[-1] ** -0.5)
    total, e = e.sum(axis=-1, keepdims=True), e.astype(v.dtype)
    out = jnp.einsum("bkgls,bksh->bkglh", e, v, preferred_element_type=jnp.float32)
    return (out, total, highest), (q, k, v, e if keep else None, allowed, highest)


def _logits(q: Array, k: Array, allowed: Array | None) -> Array:
    logits = jnp.einsum("bkglh,bksh->bkgls", q, k, preferred_element_type=jnp.float32)
    return logits if allowed is None else jnp.where(allowed[:, None, None], logits, jnp.finfo(jnp.float32).min)


def _backward(keep: bool, kept: Any, of_results: Any) -> tuple[Array, Array, Array, None]:
    (q, k, v, e, allowed, highest), (of_out, of_total, _) = kept, of_results
    of_out, root = of_out.astype(v.dtype), q.shape[-1] ** -0.5
    if not keep:
        with jax.named_scope("rematted_computation"):  # `checkpoint`'s name for it, which a plan knows
            e = jnp.exp((_logits(q, k, allowed) - highest) * root).astype(v.dtype)
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
