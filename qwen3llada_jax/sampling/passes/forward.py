"""What a pass of the sampler computes of the model, and what it remembers from the passes before.

With a cache (kv_cache.py) a pass computes the current block only:

| visibility                       | cache  | remembered                 | renewed                   | tokens      |
|----------------------------------|--------|----------------------------|---------------------------|-------------|
| block_bias                       | prefix | prompt                     | never                     | the same    |
| the same, with shift             | prefix | and the block before       | when a block is finished  | the same    |
| block_causal                     | prefix | prompt and finished blocks | when a block is finished  | the same    |
| of a draft (speculation.py)      | prefix | prompt and kept tokens     | as they are verified      | the same    |
| full, or the prompt sees answers | prefix | what stands before a block | at the block's beginning  | approximate |
| full, or the prompt sees answers | dual   | also what follows it       | at the block's beginning  | approximate |

Nothing after a block is visible under block_bias and block_causal, so there `dual` is `prefix`. Wherever blocks are
counted from (`ModelConfig.block_origin`), a prompt in blocks of its own never changes either; where a block begins with
its tail, that tail is computed with the block.

With shift a token is predicted at the position before it, which for the first of a block is the last before the block:
it is computed beside the block. Of an autoregressive model (blocks of one token) it is all that a pass computes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax import arguments, sharding
from qwen3llada_jax.model import kv_cache as kv
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.coordinates import Coordinates, block_of, until_of
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.config import SamplerConfig, prefix_cache_is_exact
from qwen3llada_jax.sampling.parameters import Structure
from qwen3llada_jax.sampling.passes.block_starts import block_before, places_from
from qwen3llada_jax.sampling.state import Canvas, GenerationInputs, SamplerState


def is_exact(config: SamplerConfig, model: ModelConfig | Qwen3LLaDA, dtype: Any = None) -> bool:
    """Does the cache give, token for token, what sampling without one gives?

    Under `block_bias` and `block_causal` it computes the same sums in another order. Float32 rounds them alike but for
    1e-6 or so, which decides only ties that `slots.TIE` breaks by place; bfloat16 and float16 round a hundred times
    as coarsely, and now and then another token comes first.

    Args:
        config: whose `cache` None is what `for_model` makes of it.
        model: of a `ModelConfig` alone the compute dtype is not known: give it, or float32 is meant.
        dtype: of the computation, by name or as JAX's or numpy's type; None: the model's.

    Raises:
        InputError: no such dtype.
    """
    if not isinstance(model, ModelConfig):
        dtype, model = model.compute_dtype if dtype is None else dtype, model.config
    keeps = prefix_cache_is_exact(config, model)
    is_float32 = dtype is None or arguments.dtype("dtype", dtype) == "float32"
    return config.cache == "none" or (config.cache is None and not keeps) or (keeps and is_float32)


def with_finished_blocks(
    model: Qwen3LLaDA, state: SamplerState, inputs: GenerationInputs, structure: Structure, most: int
) -> SamplerState:
    """The state whose cache knows the block before of the rows that begin one, `most` of them at most; the next pass is
    then as one within blocks."""
    cache, S, G = state.cache, structure.block_length, structure.cfg_branches
    assert cache is not None
    where = places_from(state.canvas, state.block * S, S)
    tokens, mask = _inputs(model, state.canvas, inputs, structure, _current(inputs, where))
    before, renewed = block_before(state, where, structure)
    rows = jnp.argsort(~renewed[:, 0])[:most]
    branches = (rows[:, None] * G + jnp.arange(G)).ravel()
    mask = jax.tree.map(lambda x: x[branches] if len(x) > 1 else x, mask)
    before, renewed = (jnp.repeat(x[rows], G, axis=0) for x in (before, renewed))
    return state._replace(cache=kv.hidden_at(model, tokens[branches], before, renewed, mask, cache, branches)[1])


def hidden_of_blocks(
    model: Qwen3LLaDA,
    state: SamplerState,
    inputs: GenerationInputs,
    where: Int[Array, "B S"],
    structure: Structure,
    is_block_start: bool,
) -> tuple[Float[Array, "B S G D"], kv.Cache | None]:
    """Hidden states that predict the block's positions, with and (under guidance) without the prompt."""
    canvas, cache, L = state.canvas, state.cache, state.canvas.tokens.shape[1]
    if cache is None:
        return _uncached(model, canvas, inputs, where, structure), None
    before_this_pass, current = cache, _current(inputs, where)
    S, own = where.shape[1], (where < L) & ~state.done[:, None]

    def at(where: Array, wanted: Array) -> tuple[Array, kv.Cache]:
        return _cached(model, canvas, inputs, where, wanted, before_this_pass, structure, current)

    is_exact = prefix_cache_is_exact(structure, model.config)
    if structure.shift:
        return _shifted(at, state, where, own, structure, is_block_start, is_exact)
    if is_exact:
        if not (is_block_start and structure.visibility == "block_causal"):
            return at(where, own)
        before, renewed = block_before(state, where, structure)
        hidden, cache = at(jnp.concatenate([before, where], axis=1), jnp.concatenate([renewed, own], axis=1))
        return hidden[:, S:], cache
    if is_block_start:
        hidden, cache = at(*_renewed(state, where, own, structure))
        return _pick(hidden, where), cache
    if structure.cache == "dual":
        return at(where, own)
    hidden, cache = at(*_following(state, where))
    return hidden[:, :S], cache


def _shifted(
    at: Callable[[Array, Array], tuple[Array, kv.Cache]],
    state: SamplerState,
    where: Int[Array, "B S"],
    own: Bool[Array, "B S"],
    structure: Structure,
    is_block_start: bool,
    is_exact: bool,
) -> tuple[Float[Array, "B S G D"], kv.Cache]:
    """The same of a model whose tokens are predicted at the position before, with a cache.

    Under an exact cache, and one of what stands before a block, the places of a block follow one another.
    """
    S, before, nobody = where.shape[1], jnp.maximum(where - 1, 0), jnp.zeros_like(own)

    def with_earlier(earlier: Array, renewed: Array, follows: Array, wanted: Array) -> tuple[Array, kv.Cache]:
        return at(jnp.concatenate([earlier, follows], axis=1), jnp.concatenate([renewed, wanted], axis=1))

    if structure.is_autoregressive:
        return at(before, own)
    if is_block_start and is_exact:  # the block before, or the prompt's end
        hidden, cache = with_earlier(*block_before(state, where, structure), where, own)
        return hidden[:, S - 1 : 2 * S - 1], cache
    if is_block_start:
        hidden, cache = at(*_renewed(state, where, own, structure))
        return _pick(hidden, before), cache
    if structure.cache == "dual":  # holes are anywhere
        hidden, cache = with_earlier(before, nobody, where, own)
    else:
        follows = (where, own) if is_exact else _following(state, where)
        hidden, cache = with_earlier(before[:, :1], nobody[:, :1], *follows)
    return hidden[:, :S], cache


def _renewed(
    state: SamplerState, where: Int[Array, "B S"], own: Bool[Array, "B S"], structure: Structure
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """Where an approximate cache is renewed when some row begins a block: all of that row."""
    B, L = state.canvas.tokens.shape
    whole = jnp.broadcast_to(jnp.arange(L), (B, L))
    follows = (whole >= where[:, :1]) & ~state.done[:, None]  # what a row within its block computes
    if structure.cache == "dual":
        follows = jnp.zeros((B, L), bool).at[jnp.arange(B)[:, None], where].set(own, mode="drop")
    return whole, state.begins[:, None] | follows


def _following(state: SamplerState, where: Int[Array, "B S"]) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """The block and all behind it, which a cache of what stands before it does not remember."""
    follows = where[:, :1] + jnp.arange(state.canvas.places.shape[1])
    return follows, (follows < state.canvas.tokens.shape[1]) & ~state.done[:, None]


def hidden_of_draft(
    model: Qwen3LLaDA,
    canvas: Canvas,
    inputs: GenerationInputs,
    where: Int[Array, "B W"],
    wanted: Bool[Array, "B W"],
    begins: Int[Array, " B"],
    cache: kv.Cache | None,
    structure: Structure,
) -> tuple[Float[Array, "B W G D"], kv.Cache | None]:
    """Hidden states at the positions `where`, of text that is read from left to right and a block that `begins` behind
    it; of the others (not `wanted`) what is given means nothing."""
    L = canvas.tokens.shape[1]
    inputs = inputs._replace(block=block_of(jnp.arange(L)[None], begins, structure.block_length))
    current = jnp.zeros_like(begins)
    if cache is not None:
        return _cached(model, canvas, inputs, where, wanted, cache, structure, current)
    inside = jnp.repeat(jnp.minimum(where, L - 1), structure.cfg_branches, axis=0)
    read = _inputs(model, canvas, inputs, structure, current)
    return _by_branch(model.hidden(*read, where=inside), structure.cfg_branches), None


def first_cache(model: Qwen3LLaDA, canvas: Canvas, inputs: GenerationInputs, structure: Structure) -> kv.Cache | None:
    """An empty cache, or one that knows the prompt where it never changes."""
    if structure.cache == "none":
        return None
    B, L = canvas.tokens.shape
    cache = kv.blank(model, B * structure.cfg_branches, L)
    P = L - canvas.places.shape[1]  # no prompt is longer
    if prefix_cache_is_exact(structure, model.config) and P:
        where = jnp.broadcast_to(jnp.arange(P), (B, P))
        _, cache = _cached(model, canvas, inputs, where, where < still_of(canvas, structure)[:, None], cache, structure)
    return cache


def with_new_rows(
    model: Qwen3LLaDA,
    cache: kv.Cache,
    canvas: Canvas,
    inputs: GenerationInputs,
    structure: Structure,
    is_new: Bool[Array, " B"],
    known: Int[Array, " B"],
) -> kv.Cache:
    """A cache in which some rows begin: nothing of whoever had them is left, and their prompts are known.

    So many tokens of each are `known` before.

    What was left would never be seen, but a NaN among it spoils a sum in which it counts for nothing. It costs what is
    new, unless rows lie over several devices, which all compute then.
    """
    B, L = canvas.tokens.shape
    clears, is_exact = jnp.repeat(is_new, structure.cfg_branches), prefix_cache_is_exact(structure, model.config)
    still = jnp.where(is_new, still_of(canvas, structure), 0)
    begin, end = (jnp.repeat(x, structure.cfg_branches) for x in (jnp.minimum(known, still), still))
    place = jnp.arange(L)
    if sharding.ways("batch") > 1:
        cache = kv.Cache(
            *(jnp.where((clears[:, None] & (place >= begin[:, None]))[..., None, None], 0, x) for x in cache)
        )
        where = jnp.broadcast_to(place, (B, L))
        wanted = (where < still[:, None]) & (where >= known[:, None])
        return _cached(model, canvas, inputs, where, wanted, cache, structure)[1] if is_exact else cache
    first = jnp.argsort(~clears)

    def cleared(number: Array, cache: kv.Cache) -> kv.Cache:
        row = first[number]
        stays = (place < begin[row])[:, None, None]
        return kv.Cache(*(x.at[:, row].set(jnp.where(stays, x[:, row], 0)) for x in cache))

    cache = jax.lax.fori_loop(0, clears.sum(), cleared, cache)
    if not is_exact:
        return cache
    tokens, mask = _inputs(model, canvas, inputs, structure, None)
    return kv.with_stretches(model, tokens, begin, end, mask, cache)


def still_of(canvas: Canvas, structure: Structure) -> Int[Array, " B"]:
    """How much of each prompt never changes: what is in no block that is to be written."""
    if structure.block_origin != "start":
        return canvas.prompt_length
    return canvas.prompt_length // structure.block_length * structure.block_length


def _pick(hidden: Float[Array, "B L G D"], where: Int[Array, "B S"]) -> Float[Array, "B S G D"]:
    return jnp.take_along_axis(hidden, where[:, :, None, None], axis=1, mode="clip")


def _uncached(
    model: Qwen3LLaDA, canvas: Canvas, inputs: GenerationInputs, where: Int[Array, "B S"], structure: Structure
) -> Float[Array, "B S G D"]:
    inside = jnp.repeat(jnp.minimum(where, canvas.tokens.shape[1] - 1), structure.cfg_branches, axis=0)
    if structure.shift:
        inside = jnp.maximum(inside - 1, 0)
    read = _inputs(model, canvas, inputs, structure, _current(inputs, where))
    return _by_branch(model.hidden(*read, where=inside), structure.cfg_branches)


def _current(inputs: GenerationInputs, where: Int[Array, "B S"]) -> Int[Array, " B"] | None:
    """The number of the block that each row writes; None: there are none."""
    if inputs.block is None:
        return None
    return jnp.take_along_axis(inputs.block, where[:, :1], axis=1, mode="clip")[:, 0]


def _cached(
    model: Qwen3LLaDA,
    canvas: Canvas,
    inputs: GenerationInputs,
    where: Int[Array, "B W"],
    wanted: Bool[Array, "B W"],
    cache: kv.Cache,
    structure: Structure,
    current: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B W G D"], kv.Cache]:
    tokens, mask = _inputs(model, canvas, inputs, structure, current)
    where, wanted = (jnp.repeat(x, structure.cfg_branches, axis=0) for x in (where, wanted))
    hidden, cache = kv.hidden_at(model, tokens, where, wanted, mask, cache)
    return _by_branch(hidden, structure.cfg_branches), cache


def _inputs(
    model: Qwen3LLaDA,
    canvas: Canvas,
    inputs: GenerationInputs,
    structure: Structure,
    current: Int[Array, " B"] | None,
) -> tuple[Array, Coordinates]:
    """Tokens and visibility; under guidance each row twice, as it is and with masks for what was given."""
    B, L = canvas.tokens.shape
    tokens, block, length = canvas.tokens, inputs.block, canvas.length
    if structure.cfg_branches == 2:
        without = jnp.where(inputs.is_given, structure.mask_token_id, tokens)
        tokens = jnp.stack([tokens, without], axis=1).reshape(2 * B, L)
        block, current = (None if x is None else jnp.repeat(x, 2, axis=0) for x in (block, current))
        length = jnp.repeat(length, 2, axis=0)
    return tokens, coordinates_of(model.config, structure, block, length, L, current)


def coordinates_of(
    model: ModelConfig,
    structure: Structure,
    block: Int[Array, "B L"] | None,
    length: Int[Array, " B"],
    L: int,
    current: Int[Array, " B"] | None = None,
) -> Coordinates:
    """Who sees whom in rows of `length` tokens, padded to L.

    Args:
        block: each token's (`layout.blocks_of`); None under `full`.
        current: the block that each row writes, which matters where context is read from left to right
            (`causal_context`, or to verify a draft); None: all is context.
    """
    place = jnp.arange(L)[None]
    segment = jnp.where(place < length[:, None], 0, -1)
    if block is None:
        return Coordinates(segment=segment)
    if (model.causal_context or structure.speculate) and structure.visibility == "block_causal":
        is_context = jnp.ones_like(block, bool) if current is None else block < current[:, None]
        return Coordinates(segment=segment, block=jnp.where(is_context, place, L + block), clean=is_context)
    until = until_of(structure.visibility, block, prompt_sees_answer=model.prompt_sees_answer)
    return Coordinates(segment=segment, block=block, until=until)


def _by_branch(hidden: Float[Array, "GB W D"], G: int) -> Float[Array, "B W G D"]:
    return hidden.reshape(-1, G, *hidden.shape[1:]).swapaxes(1, 2)
