"""The model on a few positions of each row, with the keys and values of all others remembered.

A pass computes the positions `where` [B, W], puts those of their keys and values that are `wanted` into the cache,
and lets them attend to the whole of it, as far as their mask allows. What few rows begin with is put there by itself
(`with_stretches`), at the price of its own length.
"""

import functools
from collections.abc import Sequence
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
from qwen3llada_jax.sharding import constrain, is_one_cpu, platform

_WORTHWHILE = 512  # places, over all rows
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
    of_cache: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B W D"], Cache]:
    """Final hidden states at the positions `where`, and the cache with the wanted ones renewed.

    Args:
        tokens: the whole rows.
        wanted: the others may be anywhere; what they give is meaningless.
        of_cache: which of the cache's rows they are; None: all of them.
    """
    L = tokens.shape[1]
    rows = jnp.arange(tokens.shape[0])[:, None]
    kept, begins = (rows, [0]) if of_cache is None else (of_cache[:, None], list(of_cache))
    inside = jnp.minimum(where, L - 1)
    into = jnp.where(wanted, where, L)  # out of range: dropped
    sight = _sight(mask, inside, wanted.any(axis=1, keepdims=True) & (where < L))
    x = constrain(
        lookup(model.embed_tokens[...], tokens[rows, inside], model.compute_dtype), "batch", "length", "act_embed"
    )
    rope = rope_tables(model.config, inside if mask.position is None else coordinates.rows_at(mask.position, inside))

    def layer(carry: tuple[Array, Cache], number: Array | int, weights: Layers) -> tuple[Array, Cache]:
        x, cache = carry
        normed = weights.normed(x)
        q, (k, v) = weights.queries(normed, rope), weights.keys_values(normed, rope)
        cache = Cache(
            constrain(cache.keys.at[number, kept, into].set(k, mode="drop"), *AXES),
            constrain(cache.values.at[number, kept, into].set(v, mode="drop"), *AXES),
        )
        x = x + weights.output(_attended(q, cache, number, begins, sight))
        return weights.with_mlp(x), cache

    x, cache = model.scan_layers(layer, (x, cache), model.config.num_hidden_layers)
    return rms_norm(x, model.norm[...], model.config.rms_norm_eps), cache


class _Sight(NamedTuple):
    """Which keys each query sees, and how far those of all reach: the shortest of some lengths that has them."""

    allowed: Bool[Array, "B W L"]
    lengths: tuple[int, ...]
    which: Int[Array, ""]


def _sight(mask: Coordinates, inside: Int[Array, "B W"], counts: Bool[Array, "B W"]) -> _Sight:
    """What the queries `inside` see; of those that do not count it may be less.

    A CPU takes the longer the more keys it reads, and few rows are full; a short length more is compiled for longer
    than few rows would gain.
    """
    allowed = coordinates.seen_from(mask, inside)
    assert isinstance(allowed, jax.Array)
    B, _, L = allowed.shape
    least = max(64, _WORTHWHILE // B)
    lengths = (*(least << i for i in range(20) if least << i < L), L) if is_one_cpu() else (L,)
    reach = ((allowed & counts[..., None]).any(axis=(0, 1)) * jnp.arange(1, L + 1)).max()
    return _Sight(allowed, lengths, jnp.searchsorted(jnp.array(lengths), reach))


def _attended(
    q: Float[Array, "B W N H"], cache: Cache, layer: Array | int, begins: Sequence[Array | int], sight: _Sight
) -> Float[Array, "B W N H"]:
    """Attention to what a layer's cache remembers of the rows from each of `begins` on, B / len(begins) of them."""

    def remembered(x: Array, length: int) -> Array:
        size = (1, len(q) // len(begins), length, *x.shape[3:])  # slices, for a CPU gathers number by number
        return jnp.concatenate([jax.lax.dynamic_slice(x, (layer, row, 0, 0, 0), size)[0] for row in begins])

    def over(length: int) -> Array:
        keys, values = (remembered(x, length) for x in cache)
        return attention.attention(q, keys, values, sight.allowed[..., :length], "xla")

    return jax.lax.switch(sight.which, [functools.partial(over, length) for length in sight.lengths])


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
            sight = _sight(jax.tree.map(lambda y: of_row(y, row), mask), inside, into < L)
            here = here + weights.output(_attended(q, cache, layer_number, [row], sight))
            return x.at[row, into].set(weights.with_mlp(here), mode="drop")

        x, cache = carry
        cache = jax.lax.fori_loop(0, until[-1], remembered, cache)
        is_last = jnp.asarray(layer_number) == config.num_hidden_layers - 1  # nobody asks what it gives
        return jax.lax.fori_loop(0, jnp.where(is_last, 0, until[-1]), attended, x), cache

    blank = jnp.zeros((B, L, config.hidden_size), model.compute_dtype)
    x = jax.lax.fori_loop(0, until[-1], looked_up, blank)
    return model.scan_layers(layer, (x, cache), config.num_hidden_layers)[1]
