"""Cross-entropy over a large vocabulary: only where it counts, through the streamed head.

Loss and gradients come from one pass: with known weights w the gradient of Σ w · ce in a position's logits is
w · (softmax − onehot), so nothing is computed again on the way back.

On a mesh each device works through its own rows: the head is gathered over `fsdp` once, its gradient is
scattered over `fsdp` once, and over `tensor` each device holds a share of the vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax import bfloat16, fsdp, sharding
from qwen3llada_jax.model.head import positions_at_once, stream


class _Mesh(NamedTuple):
    """Names of the mesh axes that rows, hidden size and vocabulary are split over; empty outside a mesh."""

    rows: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()


def cross_entropy(
    hidden: Float[Array, "B L D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B L"],
    weight: Float[Array, "B L"],
    where: Bool[Array, "B L"],
    *,
    smoothing: float = 0.0,
    chunk: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
    """(Σ weight · ce, ce), ce = −log softmax(hidden · headᵀ)[target] in float32.

    Only the sum has gradients (in `hidden` and `head`).

    Args:
        where: the positions to look at; everywhere else ce is 0.
        smoothing: a of (1 − a) · ce + a · mean_v(−log softmax_v), label smoothing, in the sum alone.
        chunk: positions that go through the head at once; None: an eighth of them, as far as their logits fit
            in 512 MB.
    """
    arrays = (jnp.asarray(x) for x in (hidden, head, targets, weight, where))
    return _cross_entropy(*arrays, smoothing, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _cross_entropy(hidden, head, targets, weight, where, smoothing, chunk):  # noqa: ANN001, ANN202
    total, ce, _, _ = _stream(hidden, head, targets, weight, where, smoothing, chunk, gradients=False)
    return total, ce


def _forward(hidden, head, targets, weight, where, smoothing, chunk):  # noqa: ANN001, ANN202
    total, ce, of_hidden, of_head = _stream(hidden, head, targets, weight, where, smoothing, chunk, gradients=True)
    return (total, ce), (of_hidden, of_head.astype(head.dtype))


def _backward(smoothing, chunk, gradients, cotangents):  # noqa: ANN001, ANN202
    of_hidden, of_head = gradients
    scale = cotangents[0]
    return of_hidden * scale.astype(of_hidden.dtype), of_head * scale.astype(of_head.dtype), None, None, None


_cross_entropy.defvjp(_forward, _backward)


@jax.named_scope("cross_entropy")
def _stream(hidden, head, targets, weight, where, smoothing, chunk, *, gradients):  # noqa: ANN001, ANN202
    """(sum, ce, gradient in hidden, gradient in head), each device on its own rows."""
    on = _Mesh(*(sharding.mesh_axes(axis) for axis in ("batch", "embed", "vocab")))
    work = functools.partial(_local, smoothing=smoothing, chunk=chunk, gradients=gradients, on=on)
    rows, table = ("batch",), ("vocab", "embed")
    results = ((), rows, rows, table) if gradients else ((), rows, (), ())
    return sharding.per_device(work, (rows, table, rows, rows, rows), results)(hidden, head, targets, weight, where)


def _local(hidden, head, targets, weight, where, *, smoothing, chunk, gradients, on):  # noqa: ANN001, ANN202
    B, L, D = hidden.shape
    R, dtype = B * L, hidden.dtype
    table = head.astype(dtype)  # V D, of this device's share of the vocabulary
    if on.hidden:
        table = jax.lax.all_gather(table, on.hidden, axis=1, tiled=True)
    V = table.shape[0]
    whole, first_id = V, 0
    if on.vocab:
        whole, first_id = V * jax.lax.axis_size(on.vocab), V * jax.lax.axis_index(on.vocab)
    C = min(R, chunk or positions_at_once(R, V))

    rows, targets, weight, where = hidden.reshape(R, D), targets.reshape(R), weight.reshape(R), where.reshape(R)

    def one(carry, x, logits, here, into):  # noqa: ANN001, ANN202
        total, ce, of_rows, of_table = carry
        w = jnp.where(into < R, weight[here], 0.0)
        target = targets[here] - first_id
        is_target = jnp.arange(V) == target[:, None]
        highest = _over(jax.lax.pmax, logits.max(axis=1), on.vocab)
        log_sum = highest + jnp.log(_over(jax.lax.psum, jnp.exp(logits - highest[:, None]).sum(axis=1), on.vocab))
        picked = _over(jax.lax.psum, jnp.where(is_target, logits, 0.0).sum(axis=1), on.vocab)
        plain = log_sum - picked
        smooth = plain
        if smoothing:
            mean = _over(jax.lax.psum, logits.sum(axis=1), on.vocab) / whole
            smooth = (1 - smoothing) * plain + smoothing * (log_sum - mean)
        total = total + (w * smooth).sum()
        ce = ce.at[into].set(plain, mode="drop")
        if gradients:
            softmax = jnp.exp(logits - log_sum[:, None])
            of_logits = w[:, None] * (softmax - (1 - smoothing) * is_target - smoothing / whole)
            of_logits = of_logits.astype(dtype)
            of_x = jnp.einsum("cv,vd->cd", of_logits, table, preferred_element_type=jnp.float32)
            of_rows = of_rows.at[into].set(_over(jax.lax.psum, of_x, on.vocab).astype(dtype), mode="drop")
            of_table = of_table + bfloat16.summed_over_rows(of_logits, x)
        return total, ce, of_rows, of_table

    zeros = (jnp.float32(0), jnp.zeros(R, jnp.float32), jnp.zeros((), dtype), jnp.zeros(()))
    if gradients:
        zeros = (*zeros[:2], jnp.zeros((R, D), dtype), jnp.zeros((V, D), jnp.float32))
    total, ce, of_rows, of_table = stream(rows, table, where, one, zeros, C)
    if gradients:
        of_rows = of_rows.reshape(B, L, D)
        of_table = fsdp.reduce_gradient(of_table, on.hidden, on.rows)
    return _over(jax.lax.psum, total, on.rows), ce.reshape(B, L), of_rows, of_table


def _over(reduce, x, axes):  # noqa: ANN001, ANN202
    return reduce(x, axes) if axes else x
