"""How text is noised: which tokens of a batch may be, at which level each is, and what counts in the mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import diffusion
from qwen3llada_jax.diffusion import NoiseConfig, Noised
from qwen3llada_jax.model.masks import Mask

from .example import DeviceBatch

# Steps around the circle that spread a sequence of levels evenly: over rows, and over the blocks of a row.
_BY_ROW, _BY_BLOCK = 0.6180339887498949, 0.5698402909980532


class Corruption(NamedTuple):
    """How text is noised and seen, of the objectives that predict noised tokens.

    Attributes:
        live: ids below it are tokens, for `random_replace`.
        rule: who sees whom, but for what belongs to a batch's rows. As an array its block length is data.
        is_ragged: whether rows of documents have padding.
        by_row: noise levels depend on the row alone: a golden-ratio sequence, evenly spread over any run of rows.
        shift: each token is asked at the position before it.
        prompt_is_blocks: blocks are counted from the beginning of a row, its prompt among them.
        learns_answers: rows are prompts with answers, and prompts are only read; else documents.
        normalization: what the loss is a mean over: `tokens` that may be noised, `rows` (a mean over the means of each
            row's) or `noised` tokens.
        complementary: every row is read twice, the second time with the other tokens noised.
        place_bias: of block diffusion, by how many doublings the last token of a block is likelier to be noised than
            the first, where little is (`_biased_by_place`).
        causal_context: of block diffusion, clean text is read as by an autoregressive model.
        clean_loss: of block diffusion, weight of the next-token loss of its clean half.
        longest_block: the longest that the block length becomes where it is data.
    """

    noise: NoiseConfig
    mask_token_id: int
    live: int
    rule: Mask = Mask("full")
    is_ragged: bool = True
    by_row: bool = False
    shift: bool = False
    prompt_is_blocks: bool = False
    learns_answers: bool = False
    normalization: str = "tokens"
    complementary: bool = False
    place_bias: float = 0.0
    causal_context: bool = False
    clean_loss: float = 0.0
    longest_block: int | None = None


class Learned(NamedTuple):
    """What of a batch there is to learn.

    Attributes:
        is_real: [B, L] no padding, nor cut off.
        can_noise: [B, L] tokens that may be noised and asked.
        counts: [B] how many of them, which a loss is a mean over.
        lengths: [B] real tokens of each row.
        prompt_length: [B] of the prompts that are one block each; None: blocks are counted from the rows' beginning.
    """

    is_real: Bool[Array, "B L"]
    can_noise: Bool[Array, "#B L"]
    counts: Int[Array, " B"]
    lengths: Int[Array, " B"]
    prompt_length: Int[Array, " B"] | None


def learned_of(batch: DeviceBatch, key: PRNGKeyArray, step: Int[Array, ""], how: Corruption) -> Learned:
    """Of documents all tokens, of which some rows are cut to a random length; of conversations the answers.

    With shift the first token of a document cannot be asked, nor does it count.
    """
    L, lengths = batch.tokens.shape[1], batch.real_length
    place = jnp.arange(L)[None]
    if how.learns_answers:
        is_real = place < lengths[:, None]
        can_noise = is_real & (place >= batch.prompt_length[:, None])
        counts = lengths - batch.prompt_length
    else:
        if how.noise.random_length_prob > 0:
            keys = diffusion.row_keys(key, step, batch.row_ids)
            lengths = jnp.minimum(lengths, diffusion.random_lengths(keys, L, how.noise))
        is_real = can_noise = place < lengths[:, None]
        counts = lengths
    if how.shift:
        can_noise = can_noise & has_predecessor(batch)
        counts = can_noise.sum(axis=1)
    is_one_block = how.learns_answers and not how.prompt_is_blocks
    return Learned(is_real, can_noise, counts, lengths, batch.prompt_length if is_one_block else None)


def has_predecessor(batch: DeviceBatch) -> Bool[Array, "#B L"]:
    """Tokens that are not the first of their document: only they can be asked at the position before them."""
    if batch.segment_ids is None:
        return jnp.arange(batch.tokens.shape[1])[None] > 0
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    return jnp.pad(same, ((0, 0), (1, 0)))


def normalized(
    weight: Float[Array, "B L"], asked: Bool[Array, "B L"], learned: Learned, how: Corruption
) -> tuple[Float[Array, "B L"], Int[Array, " B"]]:
    """(weights whose sum over what is `asked` makes the mean, what each row counts in it).

    LLaDA's equation 3 is a mean over `tokens`, its equation 5 over `rows` of the mean over each answer.
    """
    counts = learned.counts
    if how.normalization == "rows":
        # Without shift an answer is never empty.
        rows = (counts > 0).sum() if how.shift else len(counts)
        share = (counts > 0).astype(counts.dtype) if how.shift else jnp.ones_like(counts)
        return weight / (counts[:, None] * rows), share
    if how.normalization == "noised":
        if how.complementary:  # both readings, of half the weight each, noise every token once
            return 2 * weight / counts.sum(), counts
        counts = asked.sum(axis=1)
        return weight / jnp.maximum(counts.sum(), 1), counts
    return weight / counts.sum(), counts


def corrupt(
    batch: DeviceBatch,
    key: PRNGKeyArray,
    step: Int[Array, ""],
    how: Corruption,
    can_noise: Bool[Array, "B L"],
    begins: Int[Array, "#B L"] | None = None,
) -> Noised:
    """Noise a whole batch at once, so that how it is cut into micro-batches changes nothing.

    Args:
        begins: [B or 1, L] the place in its row that each token's block begins at, where each block has a level of its
            own; None: each row has.
    """
    B, keys = len(batch.tokens), diffusion.row_keys(key, step, batch.row_ids)
    shared = jax.random.fold_in(jax.random.fold_in(key, step), B)
    if begins is not None:
        begins = jnp.broadcast_to(begins, batch.tokens.shape)
        t = _levels_of_blocks(shared, keys, batch.row_ids, begins, how)
    elif how.by_row:
        t = ((batch.row_ids + 0.5) * _BY_ROW) % 1.0
    else:
        t = diffusion.sample_t(shared, keys, batch.row_ids, B, how.noise)
    if how.complementary:
        t = t * (1 - how.noise.eps)  # the other tokens' share has a least value too, and their weight a largest
    if how.place_bias:
        assert begins is not None
        return _biased_by_place(keys, batch.tokens, can_noise, t, begins, how)
    return diffusion.forward_process(
        keys, batch.tokens, how.mask_token_id, how.noise, can_noise=can_noise, t=t, vocab_size=how.live
    )


def _biased_by_place(
    keys: PRNGKeyArray,
    tokens: Int[Array, "B L"],
    can_noise: Bool[Array, "B L"],
    t: Float[Array, "B L"],
    begins: Int[Array, "B L"],
    how: Corruption,
) -> Noised:
    """Of each block of n tokens round(p n), drawn without replacement by the weights 2^(bias (1 − p) i / S), i being a
    token's place in a block of S (NeMo Automodel's block-wise corruption). Weighed by 1/p as ever, which makes of it
    no bound of the likelihood: p is the mean over a block's places.
    """
    place = jnp.arange(tokens.shape[1])
    size = how.rule.block_length
    assert size is not None
    p = diffusion.noise_probability(t, how.noise)

    def one(key: PRNGKeyArray, can: Array, p: Array, begin: Array) -> Array:
        bend = how.place_bias * jnp.log(2.0) * (1 - p) * (place - begin) / size
        score = jnp.where(can, bend + jax.random.gumbel(jax.random.fold_in(key, 1), place.shape), -jnp.inf)
        rank = jnp.zeros_like(place).at[jnp.lexsort((-score, begin))].set(place) - begin  # blocks stay where they are
        count = jnp.zeros(len(place)).at[begin].add(can)[begin]
        return can & (rank < jnp.round(p * count))

    chosen = jax.vmap(one)(keys, jnp.broadcast_to(can_noise, tokens.shape), p, begins)
    noisy = jnp.where(chosen, how.mask_token_id, tokens)
    return Noised(noisy, chosen, p, diffusion.loss_weight(t, how.noise), t)


def _levels_of_blocks(
    shared: PRNGKeyArray, keys: PRNGKeyArray, rows: Int[Array, " B"], begins: Int[Array, "B L"], how: Corruption
) -> Float[Array, "B L"]:
    """A level for each block, a function of its row and its place there."""
    number = jnp.cumsum(begins == jnp.arange(begins.shape[1]), axis=1)
    if how.by_row:
        return ((rows[:, None] + 0.5) * _BY_ROW + number * _BY_BLOCK) % 1.0
    if how.noise.antithetic:
        return (jax.random.uniform(shared) + rows[:, None] / len(rows) + number * _BY_BLOCK) % 1.0
    of_block = lambda key, begin: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 5), begin))  # noqa: E731
    return jax.vmap(jax.vmap(of_block, in_axes=(None, 0)))(keys, begins)


def the_others(noised: Noised, batch: DeviceBatch, how: Corruption, can_noise: Bool[Array, "B L"]) -> Noised:
    """The complement: the tokens that were left are noised, and the noised ones left (Fast-dLLM v2, arXiv 2509.26328).

    They are noised with probability 1 − p, so where a noised token weighs f/p, they weigh f/(1 − p).
    """
    chosen, p = can_noise & ~noised.is_noised, 1 - noised.p
    weight = {"none": noised.weight, "elbo": noised.weight * noised.p / p, "reference": 1 / p}[how.noise.weight]
    if how.noise.reweight_cap is not None:
        weight = jnp.minimum(weight, how.noise.reweight_cap)
    return Noised(jnp.where(chosen, how.mask_token_id, batch.tokens), chosen, p, weight, 1 - noised.t)
