"""One pass of the sampler: what the model proposes, what the rules choose, what is written."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import slots
from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.passes import memory as memories
from qwen3llada_jax.sampling.passes.block_starts import places_from
from qwen3llada_jax.sampling.passes.choice import best_first, first_of, of_first_part, to_unmask
from qwen3llada_jax.sampling.passes.forward import hidden_of_blocks
from qwen3llada_jax.sampling.passes.proposals import Proposal, allowed_ids, propose
from qwen3llada_jax.sampling.slots import Rule, tie_of
from qwen3llada_jax.sampling.state import Canvas, GenerationInputs, SamplerState

_NOT_A_PLACE = 1 << 30  # beyond every place in an answer


def unmask(
    model: Qwen3LLaDA,
    state: SamplerState,
    inputs: GenerationInputs,
    parameters: Parameters,
    structure: Structure,
    is_block_start: bool,
) -> SamplerState:
    """One pass of the model and what it writes.

    A row whose logits are not finite writes nothing and is done, with places still masked.

    Args:
        is_block_start: compute all that a row needs that begins a block; else only what lies within blocks.
    """
    canvas, S, L = state.canvas, structure.block_length, state.canvas.tokens.shape[1]
    B, G = state.to_write.shape
    rows = jnp.arange(B)[:, None]
    alive = ~state.done

    first = jnp.zeros_like(state.block) if G > 1 else state.block * S
    where = places_from(canvas, first, G * S)
    is_place = canvas.places < L
    if structure.block_origin == "start":
        is_place &= ~inputs.is_given.at[rows, canvas.places].get(mode="fill", fill_value=True)
    number = jnp.cumsum(is_place, axis=1) - 1  # among the positions to write: a block may have fewer than S
    place = jnp.take_along_axis(number, first[:, None] + jnp.arange(G * S), axis=1, mode="clip")

    def at(array: Array, fill: Any) -> Array:
        return array.at[rows, where].get(mode="fill", fill_value=fill)

    waits = is_masked = at(canvas.is_masked, False) & alive[:, None]
    if parameters.sub_block_length is not None:
        is_masked = of_first_part(waits.reshape(B, G, S), parameters.sub_block_length, structure).reshape(B, G * S)
    looked, written = is_masked, None
    if parameters.edit is not None or slots.verifies(parameters.remask):
        written = (at(canvas.written_at, -1) >= 0) & alive[:, None]
        looked = is_masked | written
    before = None
    if state.memory is not None:
        nothing = memories.nothing_like(state.memory, parameters, model.config.vocab_size)
        before = memories.of_those(state.begins, nothing, state.memory), nothing
    passes = None
    if not set(slots.PASSES).isdisjoint(slots.looks_at(parameters.draw, "draw")):
        passes = state.step, jnp.minimum(inputs.steps, S)
    hidden, cache = hidden_of_blocks(model, state, inputs, where, structure, is_block_start)
    keys = jax.vmap(jax.random.fold_in)(inputs.keys, state.step)
    present = None if parameters.repetition_penalty is None else _present(canvas, model.config.vocab_size)
    allowed, eos = allowed_ids(model.config, inputs, structure)
    standing = None if written is None else at(canvas.tokens, 0)
    proposal = propose(
        hidden, model.head, looked, place, keys, present, allowed, eos, parameters, standing, before, passes
    )
    if before is not None and written is not None:  # what is masked again begins anew
        proposal = proposal._replace(memory=memories.of_those(is_masked, proposal.memory, before[1]))
    # One logit that is NaN or infinite makes the probability of whatever is proposed there NaN.
    is_broken = (looked & ~jnp.isfinite(proposal.probability)).any(axis=1)

    def blocks(x: Array) -> Array:
        return x.reshape(B, G, S, *x.shape[2:])

    masked = blocks(is_masked)
    to_write = jnp.where(state.begins[:, None], blocks(waits).sum(axis=2), state.to_write)
    goes_last = blocks(is_in(eos, proposal.token)) if structure.is_eos_last else jnp.zeros_like(masked)
    order = best_first(blocks(proposal.confidence), masked, goes_last, tie_of(parameters.order))
    count, order = to_unmask(
        jax.tree.map(blocks, proposal),
        masked,
        goes_last if structure.is_eos_last else None,
        order,
        to_write,
        state.step,
        inputs.steps,
        parameters.commit,
        jnp.full_like(to_write, S) if structure.block_origin == "start" else to_write,
        parameters.finish,
    )

    again, revised = jnp.zeros_like(masked), jnp.where(state.begins[:, None], 0, state.revised)
    if parameters.remask is not None:
        certain = blocks(certainty(parameters.remask, keys, place, at(canvas.confidence, 0.0), proposal.now))
        may = blocks(at(canvas.written_at, -1)) >= 0
        budget = jnp.asarray(parameters.remask.revise).astype(jnp.int32)
        budget = budget[:, None] if budget.ndim else budget
        if slots.verifies(parameters.remask):
            may &= certain < 0
            last = (blocks(at(canvas.written_at, -1)) == canvas.passes[:, None, None] - 1).sum(axis=2)
            extra = number_that_fails(may, last, masked, count, to_write, state.step, inputs.steps)
            extra = jnp.minimum(extra, budget - revised)
        else:
            rate = -(-budget // inputs.steps[:, None])
            extra = jnp.minimum(rate, budget - revised)
            extra = jnp.minimum(extra, jnp.minimum(may.sum(axis=2), masked.sum(axis=2) - count))
            count = count + extra
        again = best_first(-certain, may, jnp.zeros_like(may), tie_of(parameters.remask))
        again = first_of(again, extra) & may
        revised = revised + extra
    keep = (first_of(order, count) & masked).reshape(B, G * S) & ~is_broken[:, None]
    again = again.reshape(B, G * S) & ~is_broken[:, None]
    edits = None
    if parameters.edit is not None:
        assert written is not None
        edits = written & ~again & ~is_broken[:, None] & (proposal.token != standing)
        edits &= replaced(parameters.edit, proposal)
        keep |= edits

    def write(array: Array, new: Array | float, blank: Array | float) -> Array:
        value = jnp.where(keep, new, jnp.where(again, blank, at(array, 0)))
        return array.at[rows, where].set(value.astype(array.dtype), mode="drop")

    canvas = canvas._replace(
        tokens=write(canvas.tokens, proposal.token, structure.mask_token_id),
        is_masked=write(canvas.is_masked, False, True),
        written_at=write(canvas.written_at, canvas.passes[:, None], -1),
        confidence=write(canvas.confidence, proposal.probability, 0.0),
        passes=canvas.passes + alive,
        nfe=canvas.nfe + alive * structure.cfg_branches,
    )
    goes_on, full = None, None
    if edits is not None:  # a full block may go on for a while
        assert state.full is not None
        assert parameters.edit is not None
        was_full, is_full = (~x.any(axis=1) for x in (waits, at(canvas.is_masked, False)))
        full = jnp.where(state.begins, 0, state.full) + was_full
        most = jnp.asarray(parameters.edit.edit_passes)
        goes_on = is_full & (full < most) & ~(was_full & ~edits.any(axis=1)) & ~is_broken
    if parameters.stop is not None:
        ended = stopped(canvas, eos, parameters.stop, structure.block_origin)
        canvas = ended if goes_on is None else memories.of_those(is_full & ~goes_on, ended, canvas)
    block_is_full, row_is_full = ~at(canvas.is_masked, False).any(axis=1), ~canvas.is_masked.any(axis=1)
    if goes_on is not None:
        block_is_full, row_is_full = block_is_full & ~goes_on, row_is_full & ~goes_on
    return SamplerState(
        canvas,
        state.block + (block_is_full & alive),
        jnp.where(block_is_full, 0, state.step + 1),
        to_write,
        revised,
        state.done | is_broken | row_is_full,
        cache,
        proposal.memory,
        full,
    )


def stopped(canvas: Canvas, eos: Bool[Array, "#B V"], rule: Rule, block_origin: str = "prompt") -> Canvas:
    """End the rows that a stop rule ends: what is masked behind the end becomes the token there.

    A number that is no place in the answer, or a place that is masked itself, ends nothing.
    """
    (B, T), L = canvas.places.shape, canvas.tokens.shape[1]
    rows, places = jnp.arange(B)[:, None], canvas.places
    if block_origin == "start":  # those of its first block may belong to the prompt
        places = canvas.prompt_length[:, None] + jnp.arange(T)
        places = jnp.where(places < canvas.length[:, None], places, L)
        tokens = canvas.tokens.at[rows, places].get(mode="fill", fill_value=-1)
        masked = canvas.is_masked.at[rows, places].get(mode="fill", fill_value=False)
        is_end = is_in(eos, jnp.maximum(tokens, 0)) & ~masked & (tokens >= 0)
    else:
        tokens, masked = canvas.tokens[rows, places], canvas.is_masked[rows, places]
        is_end = is_in(eos, tokens) & ~masked
    of_row = jax.vmap(lambda rule, *seen: slots.decided(rule, "stop", *seen), (slots.row_axes(rule), 0, 0))
    end = of_row(rule, is_end, masked)[:, None]
    end = jnp.where((end >= 0) & (end < T), end, T).astype(jnp.int32)
    place = jnp.minimum(end, T - 1)
    end = jnp.where(jnp.take_along_axis(masked, place, axis=1), T, end)
    fill = masked & (jnp.arange(T) > end)
    token = jnp.take_along_axis(tokens, place, axis=1)

    def put(array: Array, old: Array, new: Array | float | bool) -> Array:
        return array.at[rows, places].set(jnp.where(fill, new, old).astype(array.dtype))

    return canvas._replace(
        tokens=put(canvas.tokens, tokens, token),
        is_masked=put(canvas.is_masked, masked, False),
        confidence=put(canvas.confidence, canvas.confidence[rows, places], 1.0),
    )


def certainty(
    rule: Rule,
    keys: PRNGKeyArray,
    place: Int[Array, "B S"],
    confidence: Float[Array, "B S"],
    now: Float[Array, "B S"] | None = None,
) -> Float[Array, "B S"]:
    """What a remask rule says of every place; its draws are those that no proposal makes."""

    def one(rule: Rule, key: PRNGKeyArray, place: Array, confidence: Array, more: dict[str, Array]) -> Array:
        key = jax.random.fold_in(key, place)
        return slots.decided(rule, "remask", confidence, key, **more).astype(jnp.float32)

    of_row = jax.vmap(one, (None, None, 0, 0, 0))
    more = {"now": now} if now is not None and slots.verifies(rule) else {}
    return jax.vmap(of_row, (slots.row_axes(rule), 0, 0, 0, 0))(rule, keys, place + _NOT_A_PLACE, confidence, more)


def number_that_fails(
    fails: Bool[Array, "B G S"],
    last: Int[Array, "B G"],
    masked: Bool[Array, "B G S"],
    count: Int[Array, "B G"],
    to_write: Int[Array, "B G"],
    step: Int[Array, " B"],
    steps: Int[Array, " B"],
) -> Int[Array, "B G"]:
    """How many of the tokens that fail are masked again: the passes that are left must suffice for all masks.

    Fewer than the pass before wrote (`last`), and none in a pass that writes one (WINO's code).
    """
    many = jnp.where(count > 1, jnp.minimum(fails.sum(axis=2), last - 1), 0)
    step, steps = step[:, None], steps[:, None]
    later = jnp.maximum(to_write // steps, 1) * (steps - step - 1)
    return jnp.clip(many, 0, jnp.maximum(later - (masked.sum(axis=2) - count), 0))


def replaced(rule: Rule, proposal: Proposal) -> Bool[Array, "B S"]:
    """Where an edit rule takes the proposed token for the one that stands there."""
    one = jax.vmap(lambda rule, *seen: slots.decided(rule, "edit", *seen) != 0, (None, 0, 0))
    return jax.vmap(one, (slots.row_axes(rule), 0, 0))(rule, proposal.probability, proposal.now)


def is_in(ids: Bool[Array, "#B V"], tokens: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Whether each token is one of its row's ids."""
    return ids[0][tokens] if len(ids) == 1 else jnp.take_along_axis(ids, tokens, axis=1)


def _present(canvas: Canvas, vocab_size: int) -> Bool[Array, "B V"]:
    """Which ids stand in each row: in its prompt or among what is written."""
    B, L = canvas.tokens.shape
    known = ~canvas.is_masked & (jnp.arange(L)[None] < canvas.length[:, None])
    rows = jnp.broadcast_to(jnp.arange(B)[:, None], (B, L))
    return jnp.zeros((B, vocab_size), bool).at[rows, canvas.tokens].max(known)
