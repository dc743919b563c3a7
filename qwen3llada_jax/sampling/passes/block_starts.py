"""Where a row begins a block the one before it has become final: which passes are of that kind, and what they renew."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from qwen3llada_jax import sharding
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.config import prefix_cache_is_exact
from qwen3llada_jax.sampling.parameters import Structure
from qwen3llada_jax.sampling.state import Canvas, SamplerState


def block_start_differs(model: Qwen3LLaDA, structure: Structure) -> bool:
    """Does a row that begins a block need more computed than one within it?"""
    if structure.cache == "none" or structure.is_autoregressive:
        return False
    is_exact = prefix_cache_is_exact(structure, model.config)
    return not (is_exact and structure.visibility == "block_bias" and not structure.shift)


def are_block_starts(model: Qwen3LLaDA, state: SamplerState, structure: Structure) -> Bool[Array, " B"]:
    """Of which rows the next pass is a block start's; with an exact cache not the first, whose past is known."""
    return _leaves_one(state) if prefix_cache_is_exact(structure, model.config) else state.begins


def most_that_begin_apart(model: Qwen3LLaDA, structure: Structure, rows: int) -> int:
    """How many rows that begin a block had better have the one before, which is final now, computed by themselves than
    in a pass of twice the width for all: on one CPU, which takes the longer the more is computed. 0: none."""
    if not (block_start_differs(model, structure) and prefix_cache_is_exact(structure, model.config)):
        return 0
    return rows // 4 if rows >= 8 and sharding.is_one_cpu() else 0


def block_before(
    state: SamplerState, where: Int[Array, "B S"], structure: Structure
) -> tuple[Int[Array, "B S"], Bool[Array, "B S"]]:
    """The places of the block before the one `where`, and whether they are final only now."""
    S = where.shape[1]
    before = jnp.maximum(where - S, 0)
    if not structure.shift:
        before = places_from(state.canvas, jnp.maximum(state.block - 1, 0) * S, S)
    return before, jnp.broadcast_to(_leaves_one(state)[:, None], before.shape)


def places_from(canvas: Canvas, first: Int[Array, " B"], many: int) -> Int[Array, "B many"]:
    """Where in each row so many places of its answer lie, from the `first` on; beyond the last: the row's length."""
    place = first[:, None] + jnp.arange(many)
    return jnp.take_along_axis(canvas.places, place, axis=1, mode="fill", fill_value=canvas.tokens.shape[1])


def _leaves_one(state: SamplerState) -> Bool[Array, " B"]:
    return state.begins & (state.block > 0)
