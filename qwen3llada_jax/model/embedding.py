"""Looking tokens up in an embedding table that may be spread over a mesh.

Each device looks up its own rows of the batch: the table is gathered over `fsdp` in the compute dtype, its
gradient is added up in float32 (half of all noised tokens are one and the same id) and scattered back. Over
`tensor` each device holds a share of the vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen3llada_jax import fsdp, sharding

TABLE, ROWS = ("vocab", "embed"), ("batch",)


@jax.named_scope("embedding")
def lookup(table: Float[Array, "V D"], tokens: Int[Array, "B L"], dtype: Any) -> Float[Array, "B L D"]:
    """The rows of `table` that the tokens name, as `dtype`."""
    if tokens.shape[0] % sharding.ways("batch"):  # a few prompts on a large mesh: the compiler finds its own way
        return table[tokens].astype(dtype)
    return _lookup(table, tokens, jnp.dtype(dtype), table.shape[0], table.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _lookup(table: Array, tokens: Array, dtype: Any, vocab: int, table_dtype: Any) -> Array:
    hidden, split = sharding.mesh_axes("embed"), sharding.mesh_axes("vocab")

    def local(table: Array, tokens: Array) -> Array:
        table = table.astype(dtype)
        if hidden:
            table = jax.lax.all_gather(table, hidden, axis=1, tiled=True)
        place, is_here = _place(tokens, table.shape[0], split)
        rows = jnp.where(is_here[..., None], table[place], 0)
        return jax.lax.psum(rows, split) if split else rows

    return sharding.per_device(local, (TABLE, ROWS), ROWS)(table, tokens)


def _forward(table: Array, tokens: Array, dtype: Any, vocab: int, table_dtype: Any) -> tuple[Array, Array]:
    return _lookup(table, tokens, dtype, vocab, table_dtype), tokens


def _backward(dtype: Any, vocab: int, table_dtype: Any, tokens: Array, gradient: Array) -> tuple[Array, None]:
    hidden, split, batch = (sharding.mesh_axes(axis) for axis in ("embed", "vocab", "batch"))

    def local(gradient: Array, tokens: Array) -> Array:
        size = vocab // (jax.lax.axis_size(split) if split else 1)
        place, is_here = _place(tokens, size, split)
        place = jnp.where(is_here, place, size)  # outside: dropped
        table = jnp.zeros((size, gradient.shape[-1]), jnp.float32)
        table = table.at[place].add(gradient.astype(jnp.float32), mode="drop")
        return fsdp.reduce_gradient(table, hidden, batch)

    return sharding.per_device(local, (ROWS, ROWS), TABLE)(gradient, tokens).astype(table_dtype), None


_lookup.defvjp(_forward, _backward)


def _place(tokens: Array, size: int, split: tuple[str, ...]) -> tuple[Array, Array]:
    """Where each token lies in this device's share of the vocabulary, and whether it does."""
    if not split:
        return tokens, jnp.ones(tokens.shape, bool)
    place = tokens - size * jax.lax.axis_index(split)
    is_here = (place >= 0) & (place < size)
    return jnp.where(is_here, place, 0), is_here
