"""How weights travel over the `fsdp` axis: gathered where they are used, their gradients scattered back.

What the compiler does well is left to it (GSPMD); sums that it would make whole on every device are scattered here.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from qwen3llada_jax import bfloat16
from qwen3llada_jax.sharding import FSDP, RULES, mesh_axes, per_device, spec, ways

_TILE, _LANES = 8, 128  # a TPU holds the last two axes of an array in tiles of 8 × 128


def gather(weight: Array, axes: tuple[str, ...], dtype: Any) -> Array:
    """A weight as `dtype`, its `fsdp` shares gathered; the gradient is scattered back to where the weight lies.

    Left to itself the compiler may contract over the shares instead and sum up activations, which are larger.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return weight.astype(dtype)
    whole = P(*(None if RULES[axis] == FSDP else RULES[axis] for axis in axes))
    return _gather(weight, jnp.dtype(dtype), spec(axes), whole, weight.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _gather(weight: Array, dtype: Any, split: P, whole: P, weight_dtype: Any) -> Array:
    cast = jax.lax.with_sharding_constraint(weight.astype(dtype), split)  # cast before it travels
    return jax.lax.with_sharding_constraint(cast, whole)


def _gather_forward(weight: Array, dtype: Any, split: P, whole: P, weight_dtype: Any) -> tuple[Array, None]:
    return _gather(weight, dtype, split, whole, weight_dtype), None


def _gather_backward(dtype: Any, split: P, whole: P, weight_dtype: Any, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, split).astype(weight_dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def product(x: Float[Array, "R I"], weight: Float[Array, "O I"], axes: tuple[str, str]) -> Float[Array, "R O"]:
    """x · weightᵀ, of a weight that `gather` gave.

    The compiler scatters the weight's gradient, but on TPUs not in shares that are no whole tiles (hidden size 5,120
    over 256: 20 columns). Those are scattered here. On one CPU bfloat16 is multiplied as `bfloat16` says.

    Args:
        axes: logical axes of the weight, [outputs, inputs].
    """
    if bfloat16.is_native(x, weight):
        return bfloat16.product(x, weight)
    hidden = next((size for size, axis in zip(weight.shape, axes, strict=True) if RULES[axis] == FSDP), 0)
    if ways("embed") == 1 or hidden % (_TILE * ways("embed")) == 0 or x.shape[0] % ways("batch"):
        return jnp.einsum("ri,oi->ro", x, weight)
    return _product(x, weight, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, weight: Array, axes: tuple[str, str]) -> Array:
    return jnp.einsum("ri,oi->ro", x, weight)


def _product_forward(x: Array, weight: Array, axes: tuple[str, str]) -> tuple[Array, tuple[Array, Array]]:
    return jnp.einsum("ri,oi->ro", x, weight), (x, weight)


def _product_backward(axes: tuple[str, str], kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = kept
    rows, split = mesh_axes("batch"), mesh_axes("embed")
    of_outputs, of_inputs = (("batch", "act_embed" if RULES[axis] == FSDP else axis) for axis in axes)

    def of_weight(x: Array, gradient: Array) -> Array:
        hidden_last = RULES[axes[1]] == FSDP
        whole = jnp.einsum("ra,rb->ab", *((gradient, x) if hidden_last else (x, gradient)))
        share = _sum_over(_scatter_columns(whole, split), rows, split)
        return share if hidden_last else share.T

    scattered = per_device(of_weight, (of_inputs, of_outputs), axes)
    return jnp.einsum("ro,oi->ri", gradient, weight), scattered(x, gradient)


_product.defvjp(_product_forward, _product_backward)


def reduce_gradient(gradient: Float[Array, "R C"], split: tuple[str, ...], rows: tuple[str, ...]) -> Array:
    """Inside `per_device`: sum a table's gradient over the devices' rows, keeping its share of the columns.

    Args:
        split: mesh axes that the columns are split over.
        rows: mesh axes that the rows of the batch are split over.
    """
    if split:
        # TPUs add up the whole table on every device instead, unless its rows are a power of two (Qwen3's 151,936
        # are 128 times a prime).
        sizes = _powers_of_two(gradient.shape[0])
        *pieces, last = jnp.split(gradient, np.cumsum(sizes)[:-1])
        pieces.append(jnp.pad(last, ((0, sizes[-1] - last.shape[0]), (0, 0))))
        scattered = [_scatter_columns(piece, split) for piece in pieces]
        gradient = jnp.concatenate(scattered)[: gradient.shape[0]]
    return _sum_over(gradient, rows, split)


def _scatter_columns(x: Float[Array, "R C"], split: tuple[str, ...]) -> Array:
    """Inside `per_device`: the sum over the devices of `split`, each with its share of the columns.

    TPUs add up all of it on every device instead, unless the columns come first in memory (shares of less than 128
    lanes) and a share is whole tiles of theirs.
    """
    parts = jax.lax.axis_size(split)
    rows, share = x.shape[0], x.shape[1] // parts
    if share % _TILE == 0:
        x = with_layout_constraint(x, Layout((1, 0)))
        return jax.lax.psum_scatter(x, split, scatter_dimension=1, tiled=True)
    shares = x.T.reshape(parts, -1, math.gcd(share * rows, _LANES))
    return jax.lax.psum_scatter(shares, split, tiled=True).reshape(share, rows).T


def _sum_over(x: Array, axes: tuple[str, ...], but: tuple[str, ...]) -> Array:
    others = tuple(axis for axis in axes if axis not in but)
    return jax.lax.psum(x, others) if others else x


def _powers_of_two(rows: int, smallest: int = 512) -> list[int]:
    """Falling powers of two that `rows` fit into, all but the last of them filled."""
    sizes = []
    while rows > 0:
        sizes.append(max(smallest, 1 << (rows.bit_length() - 1)))
        rows -= sizes[-1]
    return sizes
