"""Writing by unmasking: LLaDA's sampler (arXiv 2502.09992, algorithms 4 and 5) and what the field added to it.

A canvas holds a row's tokens, masks where something is to be written. The places to write are cut into blocks of
`block_length` that are filled one after another. Each pass runs the model once, proposes a token for every masked
position of the row's current block (proposals.py), and writes those that the rules choose (rules.py). Which positions
are masked is carried along, never read back from the ids. Rows go on by themselves, each with its own block, pass
and end; the whole trajectory of all rows is one compiled program.

With a cache (cache.py) a pass computes the current block only:

| visibility                       | cache  | remembered                 | renewed                   | tokens      |
|----------------------------------|--------|----------------------------|---------------------------|-------------|
| block_bias                       | prefix | prompt                     | never                     | the same    |
| block_causal                     | prefix | prompt and finished blocks | when a block is finished  | the same    |
| full, or the prompt sees answers | prefix | what stands before a block | at the block's beginning  | approximate |
| full, or the prompt sees answers | dual   | also what follows it       | at the block's beginning  | approximate |

Nothing after a block is visible under block_bias and block_causal, so there `dual` is `prefix`.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import cache as kv
from qwen3llada_jax import canvas as pages
from qwen3llada_jax import rules
from qwen3llada_jax.canvas import Canvas, Generation, Page, finish
from qwen3llada_jax.masks import Mask
from qwen3llada_jax.model import Qwen3LLaDA
from qwen3llada_jax.proposals import Proposal, propose, writable
from qwen3llada_jax.sampler_config import Dials, SamplerConfig, keeps_prompt

Prompts = Int[Array, "B P"] | Sequence[Sequence[int]]


def generate(
    model: Qwen3LLaDA,
    prompts: Prompts,
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | None = None,
) -> Generation:
    """Write an answer to every prompt: the whole trajectory is one compiled program.

    Args:
        prompts: ids; rows may differ in length, and may be empty.
        key: randomness of temperature and random rules; one, or [B] one for each row; None: `jax.random.key(0)`.
            A row's draws depend on its key (of one key: and its row number), the pass and the place in the answer,
            not on the other rows.

    Raises:
        InputError: an id out of range, or settings that do not fit together.
    """
    config = config.for_model(model.config)
    return _generate(model, *pages.continuation(model.config, prompts, config, key), config)


def infill(
    model: Qwen3LLaDA,
    texts: Sequence[Sequence[int | None]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | None = None,
) -> Generation:
    """Fill the holes of texts.

    Args:
        texts: ids, None for a hole. Blocks are groups of `block_length` holes, from left to right.
        config: `gen_length` and `stop_at_eos` do not matter here: the holes say how much there is to write.
        key: as in `generate`.

    Raises:
        InputError: a row without a hole, an id out of range, or settings that do not fit together.
    """
    config = pages.for_holes(model.config, texts, config)
    return _generate(model, *pages.with_holes(model.config, texts, config, key), config)


def watch(
    model: Qwen3LLaDA,
    prompts: Prompts,
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | None = None,
) -> Iterator[Canvas]:
    """The same as `generate`, pass by pass: the blank canvas, then the canvas after every pass."""
    config = config.for_model(model.config)
    yield from _watch(model, *pages.continuation(model.config, prompts, config, key), config)


def watch_infill(
    model: Qwen3LLaDA,
    texts: Sequence[Sequence[int | None]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | None = None,
) -> Iterator[Canvas]:
    """The same as `infill`, pass by pass."""
    config = pages.for_holes(model.config, texts, config)
    yield from _watch(model, *pages.with_holes(model.config, texts, config, key), config)


def compilations() -> int:
    """How many sampling programs this process has compiled so far."""
    return sum(program._cache_size() for program in (_run, _begin, _pass_once))  # type: ignore[attr-defined]


class Progress(NamedTuple):
    """Where every row stands.

    Attributes:
        canvas: what is on the page.
        block, step: [B] the row's current block, and its passes in that block so far.
        to_write: [B, G] masked positions of the current block(s) when begun; G is 1, or all blocks in parallel.
        revised: [B, G] how many of its tokens have been masked again.
        done: [B].
        cache: keys and values, or None.
    """

    canvas: Canvas
    block: Int[Array, " B"]
    step: Int[Array, " B"]
    to_write: Int[Array, "B G"]
    revised: Int[Array, "B G"]
    done: Bool[Array, " B"]
    cache: kv.Cache | None


def _generate(model: Qwen3LLaDA, canvas: Canvas, page: Page, config: SamplerConfig) -> Generation:
    return finish(_run(model, canvas, page, config.dials(), config.outline()))


def _watch(model: Qwen3LLaDA, canvas: Canvas, page: Page, config: SamplerConfig) -> Iterator[Canvas]:
    dials, outline = config.dials(), config.outline()
    yield canvas
    state = _begin(model, canvas, page, outline)
    while not bool(state.done.all()):
        wide = bool(((state.step == 0) & ~state.done).any())
        state = _pass_once(model, state, page, dials, outline, wide)
        yield state.canvas


@functools.partial(jax.jit, static_argnames="config")
def _run(model: Qwen3LLaDA, canvas: Canvas, page: Page, dials: Dials, config: SamplerConfig) -> Canvas:
    """Wide passes where a row begins a block, narrow ones until the next row does."""

    def one(wide: bool) -> Any:
        return lambda state: unmask(model, state, page, dials, config, wide)

    def within_blocks(state: Progress) -> Array:
        return ~state.done.all() & ~((state.step == 0) & ~state.done).any()

    def both(state: Progress) -> Progress:
        return jax.lax.while_loop(within_blocks, one(False), one(True)(state))

    body = both if _wide_differs(model, config) else one(False)
    return jax.lax.while_loop(lambda state: ~state.done.all(), body, _start(model, canvas, page, config)).canvas


def _start(model: Qwen3LLaDA, canvas: Canvas, page: Page, config: SamplerConfig) -> Progress:
    """Nothing written yet, and the prompt in the cache where it never changes."""
    B, L = canvas.tokens.shape
    G = _blocks_at_once(canvas, config)
    zero = jnp.zeros(B, jnp.int32)
    zeros = jnp.zeros((B, G), jnp.int32)
    cache = None
    if config.cache != "none":
        cache = kv.blank(model, B * _streams(config), L)
        P = L - canvas.places.shape[1]  # no prompt is longer
        if keeps_prompt(config, model.config) and P:
            where = jnp.broadcast_to(jnp.arange(P), (B, P))
            is_prompt = where < canvas.prompt_length[:, None]
            _, cache = _hidden(model, canvas, page, where, is_prompt, cache, config)
    return Progress(canvas, zero, zero, zeros, zeros, ~canvas.is_masked.any(axis=1), cache)


_begin = jax.jit(_start, static_argnames="config")


def unmask(model: Qwen3LLaDA, state: Progress, page: Page, dials: Dials, config: SamplerConfig, wide: bool) -> Progress:
    """One pass of the model and what it writes.

    Args:
        wide: compute all that a row needs that begins a block; else only what lies within blocks.
    """
    canvas, S, L = state.canvas, config.block_length, state.canvas.tokens.shape[1]
    assert S is not None
    B, G = state.to_write.shape
    rows = jnp.arange(B)[:, None]
    alive = ~state.done
    begins = (state.step == 0) & alive

    place = jnp.where(G > 1, 0, state.block[:, None] * S) + jnp.arange(G * S)  # B GS: places in the answer
    where = jnp.take_along_axis(canvas.places, place, axis=1, mode="fill", fill_value=L)  # and in the canvas

    def at(array: Array, fill: Any) -> Array:
        return array.at[rows, where].get(mode="fill", fill_value=fill)

    is_masked = at(canvas.is_masked, False) & alive[:, None]
    hidden, cache = _hidden_of_blocks(model, state, page, where, begins, config, wide)
    keys = jax.vmap(jax.random.fold_in)(page.keys, state.step)
    present = _present(canvas, model.config.vocab_size) if config.repetition_penalty != 1 else None
    allowed, eos = writable(model.config, config)
    proposal = propose(hidden, model.head, is_masked, place, keys, present, allowed, eos, dials, config)

    def blocks(x: Array) -> Array:
        return x.reshape(B, G, S)

    masked = blocks(is_masked)
    to_write = jnp.where(begins[:, None], masked.sum(axis=2), state.to_write)
    goes_last = blocks(eos[proposal.token]) if config.eos == "last" else jnp.zeros_like(masked)
    order = best_first(blocks(proposal.confidence), masked, goes_last)
    count = how_many(jax.tree.map(blocks, proposal), masked, goes_last, order, to_write, state.step, dials, config)

    again, revised = jnp.zeros_like(masked), jnp.where(begins[:, None], 0, state.revised)
    if config.revise:
        written = blocks(at(canvas.written_at, -1)) >= 0
        extra = jnp.minimum(dials.revise_rate, dials.revise - revised)
        extra = jnp.minimum(extra, jnp.minimum(written.sum(axis=2), masked.sum(axis=2) - count))
        sure = blocks(at(canvas.confidence, 0.0))
        if config.revise_by == "random":
            at_random = jax.vmap(jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)), (None, 0)))
            sure = blocks(at_random(keys, canvas.places.shape[1] + place))  # draws that no proposal makes
        again = first_of(best_first(-sure, written, jnp.zeros_like(written)), extra) & written
        count, revised = count + extra, revised + extra
    keep = (first_of(order, count) & masked).reshape(B, G * S)
    again = again.reshape(B, G * S)

    def write(array: Array, new: Array | float, blank: Array | float) -> Array:
        value = jnp.where(keep, new, jnp.where(again, blank, at(array, 0)))
        return array.at[rows, where].set(value.astype(array.dtype), mode="drop")

    canvas = canvas._replace(
        tokens=write(canvas.tokens, proposal.token, config.mask_token_id or 0),
        is_masked=write(canvas.is_masked, False, True),
        written_at=write(canvas.written_at, canvas.passes[:, None], -1),
        confidence=write(canvas.confidence, proposal.probability, 0.0),
        passes=canvas.passes + alive,
        nfe=canvas.nfe + alive * _streams(config),
    )
    if config.stop_at_eos and config.eos_token_ids:
        canvas = _stop_at_eos(canvas, eos)
    block_is_full = ~canvas.is_masked.at[rows, where].get(mode="fill", fill_value=False).any(axis=1)
    return Progress(
        canvas,
        state.block + (block_is_full & alive),
        jnp.where(block_is_full, 0, state.step + 1),
        to_write,
        revised,
        state.done | ~canvas.is_masked.any(axis=1),
        cache,
    )


_pass_once = jax.jit(unmask, static_argnames=("config", "wide"))


def best_first(
    confidence: Float[Array, "B G S"], eligible: Bool[Array, "B G S"], goes_last: Bool[Array, "B G S"]
) -> Int[Array, "B G S"]:
    """The positions of each block by falling confidence, the first of equals first; the ineligible at the end."""
    return jnp.lexsort((-confidence, jnp.where(eligible, goes_last.astype(jnp.int32), 2)), axis=-1)


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
    dials: Dials,
    config: SamplerConfig,
) -> Int[Array, "B G"]:
    """How many masked positions of each block are written in this pass.

    An even share of what was masked when the block began, the first passes one more where it does not divide; or
    what an adaptive rule allows, at least one and at least that share.
    """
    step = step[:, None]
    count = to_write // dials.steps + (step < to_write % dials.steps)
    if config.adaptive:
        looked_at = proposal.entropy if config.adaptive == "entropy_bound" else proposal.probability
        inner = jnp.take_along_axis(is_masked, order, axis=2)
        sure = getattr(rules, config.adaptive)(jnp.take_along_axis(looked_at, order, axis=2), inner, dials.level)
        if config.eos == "last":
            others = (is_masked & ~goes_last).sum(axis=2)
            sure = jnp.where(others > 0, jnp.minimum(sure, others), sure)
        count = jnp.maximum(jnp.maximum(sure, 1), count)
    return jnp.minimum(count, is_masked.sum(axis=2))


def _hidden_of_blocks(
    model: Qwen3LLaDA,
    state: Progress,
    page: Page,
    where: Int[Array, "B S"],
    begins: Bool[Array, " B"],
    config: SamplerConfig,
    wide: bool,
) -> tuple[Float[Array, "B S G D"], kv.Cache | None]:
    """Hidden states at the block's positions, with and (under guidance) without the prompt."""
    canvas, (B, L) = state.canvas, state.canvas.tokens.shape
    own = (where < L) & ~state.done[:, None]
    if state.cache is None:
        whole = jnp.broadcast_to(jnp.arange(L), (B, L))
        hidden, _ = _hidden(model, canvas, page, whole, None, None, config)
        return _pick(hidden, where), None
    if keeps_prompt(config, model.config):
        if wide and config.visibility == "block_causal":  # the block before is final now: remember it
            S = where.shape[1]
            place = (state.block[:, None] - 1) * S + jnp.arange(S)
            before = jnp.take_along_axis(canvas.places, jnp.maximum(place, 0), axis=1, mode="fill", fill_value=L)
            renewed = jnp.broadcast_to((begins & (state.block > 0))[:, None], before.shape)
            both, wanted = jnp.concatenate([before, where], axis=1), jnp.concatenate([renewed, own], axis=1)
            hidden, cache = _hidden(model, canvas, page, both, wanted, state.cache, config)
            return hidden[:, S:], cache
        return _hidden(model, canvas, page, where, own, state.cache, config)
    whole = jnp.broadcast_to(jnp.arange(L), (B, L))
    if wide:
        first = where[:, :1]
        wanted = begins[:, None] | ((whole >= first) & own.any(axis=1, keepdims=True))
        if config.cache == "dual":
            is_own = jnp.zeros((B, L), bool).at[jnp.arange(B)[:, None], where].set(own, mode="drop")
            wanted = begins[:, None] | is_own
        hidden, cache = _hidden(model, canvas, page, whole, wanted, state.cache, config)
        return _pick(hidden, where), cache
    if config.cache == "dual":
        return _hidden(model, canvas, page, where, own, state.cache, config)
    rest = where[:, :1] + jnp.arange(canvas.places.shape[1])
    hidden, cache = _hidden(model, canvas, page, rest, (rest < L) & own[:, :1], state.cache, config)
    return hidden[:, : where.shape[1]], cache


def _pick(hidden: Float[Array, "B L G D"], where: Int[Array, "B S"]) -> Float[Array, "B S G D"]:
    return jnp.take_along_axis(hidden, where[:, :, None, None], axis=1, mode="clip")


def _hidden(
    model: Qwen3LLaDA,
    canvas: Canvas,
    page: Page,
    where: Int[Array, "B W"],
    wanted: Bool[Array, "B W"] | None,
    cache: kv.Cache | None,
    config: SamplerConfig,
) -> tuple[Float[Array, "B W G D"], kv.Cache | None]:
    """The model on one stream of rows, or on two under guidance: with the given tokens and with masks for them."""
    B, L = canvas.tokens.shape
    G = _streams(config)
    tokens = canvas.tokens
    if G == 2:
        assert config.mask_token_id is not None
        tokens = jnp.stack([tokens, jnp.where(page.is_given, config.mask_token_id, tokens)], axis=1).reshape(2 * B, L)

    def streams(x: Array) -> Array:
        return jnp.repeat(x, G, axis=0)

    mask = Mask(
        config.visibility or "full",
        config.block_length if config.visibility != "full" else None,
        prompt_sees_answer=model.config.prompt_sees_answer and config.visibility == "block_bias",
        prompt_length=streams(canvas.prompt_length) if config.visibility != "full" else None,
        is_real=streams(jnp.arange(L)[None] < canvas.length[:, None]),
    )
    if cache is None:
        hidden = model.hidden(tokens, mask)
    else:
        assert wanted is not None
        hidden, cache = kv.hidden_at(model, tokens, streams(where), streams(wanted), mask, cache)
    return hidden.reshape(B, G, *hidden.shape[1:]).swapaxes(1, 2), cache


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


def _streams(config: SamplerConfig) -> int:
    """Forward passes of a step: guidance needs one more, without the prompt."""
    return 2 if config.cfg_scale > 0 else 1


def _blocks_at_once(canvas: Canvas, config: SamplerConfig) -> int:
    assert config.block_length is not None
    return canvas.places.shape[1] // config.block_length if config.parallel_blocks else 1


def _wide_differs(model: Qwen3LLaDA, config: SamplerConfig) -> bool:
    """Does a row that begins a block need more computed than one within it?"""
    return config.cache != "none" and not (keeps_prompt(config, model.config) and config.visibility == "block_bias")
