"""The model on a few positions of each row, with the keys and values of all others remembered.

A pass computes the positions `where` [B, W], puts those of their keys and values that are `wanted` into the cache,
and lets them attend to the whole of it, as far as their mask allows. What few rows begin with is put there by itself
(`with_stretches`), at the price of its own length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.model import attention, coordinates
from qwen3llada_jax.model.coordinates import Coordinates
from qwen3llada_jax.model.embedding import lookup
from qwen3llada_jax.model.layers import Layers, rms_norm
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.model.rope import rope_tables
from qwen3llada_jax.sharding import constrain, platform

AXES = ("layers", "batch", "length", "kv_heads", "head_dim")


class Cache(NamedTuple):
    """Keys (normalized and rotated) and values of every position, layer by layer."""

    keys: Float[Array, "layers B L K H"]
    values: Float[Array, "layers B L K H"]


def blank(model: Qwen3LLaDA, rows: int, length: int) -> Cache:
    """A cache of zeros: 2 · layers · rows · length · K · H numbers of the compute dtype."""
    c = model.config
    shape = (c.num_hidden_layers, rows, length, c.num_key_value_heads, c.head_dim)
    zeros = constrain(jnp.zeros(shape, model.compute_dtype), *AXES)
    return Cache(zeros, zeros)


def hidden_at(
    model: Qwen3LLaDA,
    tokens: Int[Array, "B L"],
    where: Int[Array, "B W"],
    wanted: Bool[Array, "B W"],
    mask: Coordinates,
    cache: Cache,
) -> tuple[Float[Array, "B W D"], Cache]:
    """Final hidden states at the positions `where`, and the cache with the wanted ones renewed.

    Args:
        tokens: the whole rows.
        wanted: the others may be anywhere; what they give is meaningless.
    """
    L = tokens.shape[1]
    rows = jnp.arange(tokens.shape[0])[:, None]
    inside = jnp.minimum(where, L - 1)
    allowed = coordinates.seen_from(mask, inside)  # B W L
    into = jnp.where(wanted, where, L)  # out of range: dropped
    x = constrain(
        lookup(model.embed_tokens[...], tokens[rows, inside], model.compute_dtype), "batch", "length", "act_embed"
    )
    rope = rope_tables(model.config, inside if mask.position is None else coordinates.rows_at(mask.position, inside))

    def layer(carry: tuple[Array, Cache], number: Array | int, weights: Layers) -> tuple[Array, Cache]:
        x, cache = carry
        normed = weights.normed(x)
        q, (k, v) = weights.queries(normed, rope), weights.keys_values(normed, rope)
        cache = Cache(
            constrain(cache.keys.at[number, rows, into].set(k, mode="drop"), *AXES),
            constrain(cache.values.at[number, rows, into].set(v, mode="drop"), *AXES),
        )
        x = x + weights.output(attention.attention(q, cache.keys[number], cache.values[number], allowed, "xla"))
        return weights.with_mlp(x), cache

    x, cache = model.scan_layers(layer, (x, cache), model.config.num_hidden_layers)
    return rms_norm(x, model.norm[...], model.config.rms_norm_eps), cache


def with_stretches(
    model: Qwen3LLaDA,
    tokens: Int[Array, "B L"],
    begin: Int[Array, " B"],
    end: Int[Array, " B"],
    mask: Coordinates,
    cache: Cache,
) -> Cache:
    """The cache with the keys and values of the positions begin … end of each row, as `hidden_at` computes them.

    Piece by piece, layer by layer, so that it costs what there is to compute: nothing for a row that ends where it
    begins. Pieces may see each other, for all of a layer's keys are there before the first of its queries.
    """
    (B, L), config = tokens.shape, model.config
    W = min(32 if platform() == "cpu" else 256, L)  # fewer positions at once would take as long
    pieces = -(-jnp.maximum(end - begin, 0) // W)
    until = jnp.cumsum(pieces)
    cos, sin = rope_tables(config, jnp.arange(L)[None] if mask.position is None else jnp.asarray(mask.position))

    def piece(number: Array) -> tuple[Array, Array, Array]:
        row = jnp.searchsorted(until, number, side="right")
        where = begin[row] + (number - until[row] + pieces[row]) * W + jnp.arange(W)
        return row, jnp.minimum(where, L - 1)[None], jnp.where(where < end[row], where, L)[None]

    def of_row(array: Array, row: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(array), row if len(array) > 1 else 0, 1)

    def turned(row: Array, inside: Array) -> tuple[Array, Array]:
        return coordinates.rows_at(of_row(cos, row), inside), coordinates.rows_at(of_row(sin, row), inside)

    def looked_up(number: Array, x: Array) -> Array:
        row, inside, into = piece(number)
        found = lookup(model.embed_tokens[...], tokens[row, inside], model.compute_dtype)
        return x.at[row, into].set(found, mode="drop")

    def layer(carry: tuple[Array, Cache], layer_number: Array | int, weights: Layers) -> tuple[Array, Cache]:
        def remembered(number: Array, cache: Cache) -> Cache:
            row, inside, into = piece(number)
            new = weights.keys_values(weights.normed(x[row, inside]), turned(row, inside))
            both = zip(cache, new, strict=True)
            return Cache(*(old.at[layer_number, row, into].set(x, mode="drop") for old, x in both))

        def attended(number: Array, x: Array) -> Array:
            row, inside, into = piece(number)
            here = x[row, inside]
            q = weights.queries(weights.normed(here), turned(row, inside))
            keys, values = (y[layer_number, row][None] for y in cache)
            allowed = coordinates.seen_from(jax.tree.map(lambda y: of_row(y, row), mask), inside)
            here = here + weights.output(attention.attention(q, keys, values, allowed, "xla"))
            return x.at[row, into].set(weights.with_mlp(here), mode="drop")

        x, cache = carry
        cache = jax.lax.fori_loop(0, until[-1], remembered, cache)
        is_last = jnp.asarray(layer_number) == config.num_hidden_layers - 1  # nobody asks what it gives
        return jax.lax.fori_loop(0, jnp.where(is_last, 0, until[-1]), attended, x), cache

    blank = jnp.zeros((B, L, config.hidden_size), model.compute_dtype)
    x = jax.lax.fori_loop(0, until[-1], looked_up, blank)
    return model.scan_layers(layer, (x, cache), config.num_hidden_layers)[1]
