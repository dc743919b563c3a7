"""One pass of the sampler: what the model proposes, what the rules choose, what is written."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.sampling.config import Dials, SamplerConfig
from qwen3llada_jax.sampling.forward import hidden_of_blocks, streams
from qwen3llada_jax.sampling.proposals import Proposal, propose, writable
from qwen3llada_jax.sampling.state import Canvas, Page, Progress

_NOT_A_PLACE = 1 << 30  # beyond every place in an answer
TIE = 1e-5  # confidences nearer to each other are equal: what float32 rounds away differs from batch to batch
_HAS_TIES = ("low_confidence", "margin", "entropy")  # rules on that scale whose order is the model's alone


def unmask(model: Qwen3LLaDA, state: Progress, page: Page, dials: Dials, config: SamplerConfig, wide: bool) -> Progress:
    """One pass of the model and what it writes.

    A row whose logits are not finite writes nothing and is done, with places still masked.

    Args:
        wide: compute all that a row needs that begins a block; else only what lies within blocks.
    """
    canvas, S, L = state.canvas, config.block_length, state.canvas.tokens.shape[1]
    assert S is not None
    B, G = state.to_write.shape
    rows = jnp.arange(B)[:, None]
    alive = ~state.done

    first = jnp.zeros_like(state.block) if G > 1 else state.block * S
    place = first[:, None] + jnp.arange(G * S)  # B GS
    where = jnp.take_along_axis(canvas.places, place, axis=1, mode="fill", fill_value=L)
    number = jnp.cumsum(canvas.places < L, axis=1) - 1  # among the positions to write: a block may have fewer than S
    place = jnp.take_along_axis(number, place, axis=1, mode="clip")

    def at(array: Array, fill: Any) -> Array:
        return array.at[rows, where].get(mode="fill", fill_value=fill)

    is_masked = at(canvas.is_masked, False) & alive[:, None]
    hidden, cache = hidden_of_blocks(model, state, page, where, config, wide)
    keys = jax.vmap(jax.random.fold_in)(page.keys, state.step)
    present = _present(canvas, model.config.vocab_size) if config.repetition_penalty != 1 else None
    allowed, eos = writable(model.config, config)
    proposal = propose(hidden, model.head, is_masked, place, keys, present, allowed, eos, dials, config)
    # One logit that is NaN or infinite makes the probability of whatever is proposed there NaN.
    is_broken = (is_masked & ~jnp.isfinite(proposal.probability)).any(axis=1)

    def blocks(x: Array) -> Array:
        return x.reshape(B, G, S)

    masked = blocks(is_masked)
    to_write = jnp.where(state.begins[:, None], masked.sum(axis=2), state.to_write)
    goes_last = blocks(eos[proposal.token]) if config.eos == "last" else jnp.zeros_like(masked)
    has_ties = config.remasking in _HAS_TIES
    order = best_first(blocks(proposal.confidence), masked, goes_last, TIE if has_ties else 0.0)
    count = how_many(
        jax.tree.map(blocks, proposal), masked, goes_last, order, to_write, state.step, page.steps, dials, config
    )

    again, revised = jnp.zeros_like(masked), jnp.where(state.begins[:, None], 0, state.revised)
    if config.revise:
        written = blocks(at(canvas.written_at, -1)) >= 0
        rate = -(-dials.revise // page.steps[:, None])
        extra = jnp.minimum(rate, dials.revise - revised)
        extra = jnp.minimum(extra, jnp.minimum(written.sum(axis=2), masked.sum(axis=2) - count))
        sure = blocks(at(canvas.confidence, 0.0))
        if config.revise_by == "random":
            at_random = jax.vmap(jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)), (None, 0)))
            sure = blocks(at_random(keys, place + _NOT_A_PLACE))  # draws that no proposal makes
        tie = 0.0 if config.revise_by == "random" else TIE
        again = first_of(best_first(-sure, written, jnp.zeros_like(written), tie), extra) & written
        count, revised = count + extra, revised + extra
    keep = (first_of(order, count) & masked).reshape(B, G * S) & ~is_broken[:, None]
    again = again.reshape(B, G * S) & ~is_broken[:, None]

    def write(array: Array, new: Array | float, blank: Array | float) -> Array:
        value = jnp.where(keep, new, jnp.where(again, blank, at(array, 0)))
        return array.at[rows, where].set(value.astype(array.dtype), mode="drop")

    canvas = canvas._replace(
        tokens=write(canvas.tokens, proposal.token, config.mask_token_id or 0),
        is_masked=write(canvas.is_masked, False, True),
        written_at=write(canvas.written_at, canvas.passes[:, None], -1),
        confidence=write(canvas.confidence, proposal.probability, 0.0),
        passes=canvas.passes + alive,
        nfe=canvas.nfe + alive * streams(config),
    )
    if config.stop_at_eos and config.eos_token_ids:
        canvas = _stop_at_eos(canvas, eos)
    block_is_full = ~at(canvas.is_masked, False).any(axis=1)
    return Progress(
        canvas,
        state.block + (block_is_full & alive),
        jnp.where(block_is_full, 0, state.step + 1),
        to_write,
        revised,
        state.done | is_broken | ~canvas.is_masked.any(axis=1),
        cache,
    )


def best_first(
    confidence: Float[Array, "B G S"],
    eligible: Bool[Array, "B G S"],
    goes_last: Bool[Array, "B G S"],
    tie: float = 0.0,
) -> Int[Array, "B G S"]:
    """The positions of each block by falling confidence, the first of equals first; the ineligible at the end.

    Args:
        tie: a position is equal to the one before it in that order when it is behind by no more than this.
    """
    rank = jnp.where(eligible, goes_last.astype(jnp.int32), 2)
    order = jnp.lexsort((-confidence, rank), axis=-1)
    if not tie:
        return order
    sorted_confidence, sorted_rank = (jnp.take_along_axis(x, order, axis=-1) for x in (confidence, rank))
    falls = sorted_confidence[..., :-1] - sorted_confidence[..., 1:] > tie
    is_next = falls | (sorted_rank[..., :-1] != sorted_rank[..., 1:])
    group = jnp.pad(jnp.cumsum(is_next, axis=-1), [(0, 0)] * (order.ndim - 1) + [(1, 0)])
    by_place = jnp.lexsort((order, group), axis=-1)
    return jnp.take_along_axis(order, by_place, axis=-1)


def first_of(order: Int[Array, "B G S"], count: Int[Array, "B G"]) -> Bool[Array, "B G S"]:
    """True at the first `count` positions of `order`."""
    return jnp.argsort(order, axis=-1) < count[..., None]


def how_many(
    proposal: Proposal,
    is_masked: Bool[Array, "B G S"],
    goes_last: Bool[Array, "B G S"],
    order: Int[Array, "B G S"],
    to_write: Int[Array, "B G"],
    step: Int[Array, " B"],
    steps: Int[Array, " B"],
    dials: Dials,
    config: SamplerConfig,
) -> Int[Array, "B G"]:
    """How many masked positions of each block are written in this pass.

    An even share of what was masked when the block began, the first passes one more where it does not divide; or
    what an adaptive rule allows, at least one and at least that share.
    """
    step, steps = step[:, None], steps[:, None]
    count = to_write // steps + (step < to_write % steps)
    if config.adaptive:
        looked_at = proposal.entropy if config.adaptive == "entropy_bound" else proposal.probability
        inner = jnp.take_along_axis(is_masked, order, axis=2)
        sure = getattr(rules, config.adaptive)(jnp.take_along_axis(looked_at, order, axis=2), inner, dials.level)
        if config.eos == "last":
            others = (is_masked & ~goes_last).sum(axis=2)
            sure = jnp.where(others > 0, jnp.minimum(sure, others), sure)
        count = jnp.maximum(jnp.maximum(sure, 1), count)
    return jnp.minimum(count, is_masked.sum(axis=2))


def _stop_at_eos(canvas: Canvas, eos: Bool[Array, " V"]) -> Canvas:
    """End the rows that have an EOS with nothing masked before it: what is still masked becomes that EOS."""
    T = canvas.places.shape[1]
    rows = jnp.arange(canvas.places.shape[0])[:, None]
    tokens, masked = canvas.tokens[rows, canvas.places], canvas.is_masked[rows, canvas.places]
    ends = eos[tokens] & ~masked
    first_end = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1), T)
    first_mask = jnp.where(masked.any(axis=1), jnp.argmax(masked, axis=1), T)
    fill = masked & (first_end < first_mask)[:, None]
    end = jnp.take_along_axis(tokens, jnp.minimum(first_end, T - 1)[:, None], axis=1)

    def put(array: Array, old: Array, new: Array | float | bool) -> Array:
        return array.at[rows, canvas.places].set(jnp.where(fill, new, old).astype(array.dtype))

    return canvas._replace(
        tokens=put(canvas.tokens, tokens, end),
        is_masked=put(canvas.is_masked, masked, False),
        confidence=put(canvas.confidence, canvas.confidence[rows, canvas.places], 1.0),
    )


def _present(canvas: Canvas, vocab_size: int) -> Bool[Array, "B V"]:
    """Which ids stand in each row: in its prompt or among what is written."""
    B, L = canvas.tokens.shape
    known = ~canvas.is_masked & (jnp.arange(L)[None] < canvas.length[:, None])
    rows = jnp.broadcast_to(jnp.arange(B)[:, None], (B, L))
    return jnp.zeros((B, vocab_size), bool).at[rows, canvas.tokens].max(known)
