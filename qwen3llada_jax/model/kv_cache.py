"""The model on a few positions of each row, with the keys and values of all others remembered.

A pass computes the positions `where` [B, W], puts those of their keys and values that are `wanted` into the cache,
and lets them attend to the whole of it, as far as their mask allows.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.model import attention, coordinates
from qwen3llada_jax.model.coordinates import Coordinates
from qwen3llada_jax.model.embedding import lookup
from qwen3llada_jax.model.layers import Layers, rms_norm
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.model.rope import rope_tables
from qwen3llada_jax.sharding import constrain

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
