"""Self-speculation: a model drafts a block by diffusion and verifies it as an autoregressive one.

One set of weights is both (Nemotron-Labs-Diffusion, arXiv 2607.05722; I-DLM, arXiv 2604.11035): with shift, and text
read from left to right, the hidden state of a token predicts the next, and behind it stands a block of masks, each of
which predicts one more. A pass computes, of each row,

    known token, draft                          one behind the other, from left to right
    S masks                                     behind them, a block that sees itself and all of that

so it verifies the draft of the pass before (S − 1 tokens), and drafts what follows it. Of the draft the longest prefix
is kept that the model itself would have written, and one token more, its own: 1 … S tokens a pass. Where all of it
was kept, that token and the masks' are what the next pass verifies. Else the masks stood behind what is not there, and
the next pass verifies nothing: it writes one token and drafts anew.

The text is the autoregressive one: at temperature 0 token for token, above by rejection sampling
(`proposals.verified`), exact in distribution. The cache knows the kept tokens, as they were read from left to right.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.passes.forward import hidden_of_draft
from qwen3llada_jax.sampling.passes.proposals import Proposal, allowed_ids, propose
from qwen3llada_jax.sampling.passes.step import is_in, stopped
from qwen3llada_jax.sampling.state import Canvas, Draft, GenerationInputs, SamplerState


def no_draft(model: Qwen3LLaDA, rows: int, parameters: Parameters, structure: Structure) -> Draft | None:
    """What the first pass verifies: nothing. None: nothing is drafted at all."""
    if not structure.speculate:
        return None
    shape = rows, structure.block_length - 1
    states = (*shape, structure.cfg_branches, model.config.hidden_size)
    is_drawn = isinstance(parameters.draw, rules.Sample)
    hidden = np.zeros(states, model.compute_dtype) if is_drawn else None
    nothing: Any = (np.zeros(shape, np.int32), np.zeros(rows, bool), hidden)
    return Draft(*nothing)


def speculate(
    model: Qwen3LLaDA, state: SamplerState, inputs: GenerationInputs, parameters: Parameters, structure: Structure
) -> SamplerState:
    """One pass: the draft verified, what is kept written, the next drafted.

    A row whose logits are not finite writes nothing and is done, with places still masked.
    """
    canvas, draft, S = state.canvas, state.draft, structure.block_length
    assert draft is not None
    (B, L), alive = canvas.tokens.shape, ~state.done
    rows = jnp.arange(B)[:, None]
    first = jnp.argmax(canvas.is_masked, axis=1)[:, None]  # the place to write
    begin = jnp.maximum(first - 1, 0)  # before an empty prompt's first token stands nothing: its own place tells it
    to_verify = jnp.where(draft.is_there, S, 1)[:, None]  # the known token is one
    slot = jnp.arange(2 * S)
    where, length = begin + slot, canvas.length[:, None]
    place = first + slot[:-1]  # that a slot predicts; the last mask's would be the next block's

    into = jnp.where(draft.is_there[:, None], begin + 1 + slot[: S - 1], L)
    drafted = canvas._replace(tokens=canvas.tokens.at[rows, into].set(draft.tokens, mode="drop"))
    wanted = (slot < to_verify + S) & (where < length) & alive[:, None]
    begins = (begin + to_verify)[:, 0]
    hidden, cache = hidden_of_draft(model, drafted, inputs, where, wanted, begins, state.cache, structure)
    hidden = hidden[:, :-1]

    counts = (slot[:-1] < to_verify + S - 1) & (place < length) & alive[:, None]
    expected = jnp.where(draft.is_there[:, None], draft.tokens, -1)
    allowed, eos = allowed_ids(model.config, inputs, structure)
    keys = jax.vmap(jax.random.fold_in)(inputs.keys, canvas.passes)
    both, drafts = hidden, None
    if draft.hidden is not None:
        before = jnp.pad(draft.hidden, ((0, 0), (0, S), (0, 0), (0, 0)))
        both, drafts = (
            jnp.concatenate([hidden, before], axis=2),
            jnp.pad(expected, ((0, 0), (0, S)), constant_values=-1),
        )
    in_answer = place - canvas.prompt_length[:, None]
    proposal = propose(both, model.head, counts, in_answer, keys, None, allowed, eos, parameters, drafts=drafts)
    is_broken = (counts & ~jnp.isfinite(proposal.probability)).any(axis=1)

    kept = jnp.cumprod(proposal.token[:, : S - 1] == expected, axis=1).sum(axis=1)[:, None]
    is_written = (slot[:S] <= kept) & counts[:, :S] & ~is_broken[:, None]
    if parameters.stop is not None:
        is_end = is_in(eos, proposal.token[:, :S])
        is_written &= jnp.cumsum(is_end, axis=1) - is_end == 0
    canvas = _written(canvas, proposal, is_written, place[:, :S])
    canvas = canvas._replace(passes=canvas.passes + alive, nfe=canvas.nfe + alive * structure.cfg_branches)
    if parameters.stop is not None:
        canvas = stopped(canvas, eos, parameters.stop)

    follows = to_verify + slot[: S - 1]
    next_draft = Draft(
        jnp.take_along_axis(proposal.token, follows, axis=1),
        ((kept == to_verify - 1) & (first > 0))[:, 0],
        None if draft.hidden is None else jnp.take_along_axis(hidden, follows[:, :, None, None], axis=1),
    )
    done = state.done | is_broken | ~canvas.is_masked.any(axis=1)
    return state._replace(canvas=canvas, step=state.step + 1, done=done, cache=cache, draft=next_draft)


def _written(canvas: Canvas, proposal: Proposal, is_written: Bool[Array, "B S"], place: Array) -> Canvas:
    """The canvas with the proposals of the first slots at their places."""
    rows, into = jnp.arange(len(place))[:, None], jnp.where(is_written, place, canvas.tokens.shape[1])
    S = place.shape[1]

    def put(array: Array, new: Array | float | bool) -> Array:
        return array.at[rows, into].set(new, mode="drop")

    return canvas._replace(
        tokens=put(canvas.tokens, proposal.token[:, :S]),
        is_masked=put(canvas.is_masked, False),
        written_at=put(canvas.written_at, jnp.broadcast_to(canvas.passes[:, None], place.shape)),
        confidence=put(canvas.confidence, proposal.probability[:, :S]),
    )
