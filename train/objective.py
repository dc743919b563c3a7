"""What is trained on. An objective is a function `(batch, key, step) → Example`: what the model reads, what it is asked
and where, and what each answer weighs. The training step and the evaluation know no more of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import diffusion
from qwen3llada_jax.diffusion import NoiseConfig, Noised
from qwen3llada_jax.model.coordinates import Coordinates
from qwen3llada_jax.model.masks import Mask

from .config.schema import BLOCK_LENGTH, BLOCK_ORIGIN, BLOCK_VISIBILITY, Config

_GOLDEN = 0.6180339887498949


class DeviceBatch(NamedTuple):
    """A batch on its devices: fields as in `loader.Batch`, whose `used_length` is the real length here, and the numbers
    of its rows, which their noise depends on."""

    tokens: Int[Array, "B L"]
    prompt_length: Int[Array, " B"]
    real_length: Int[Array, " B"]
    row_ids: Int[Array, " B"]
    segment_ids: Int[Array, "B L"] | None = None
    positions: Int[Array, "B L"] | None = None


class Example(NamedTuple):
    """What there is to learn of a batch, in rows of M tokens; its loss is Σ weight · ce over the positions `where`.

    Attributes:
        inputs: [B, M] ids that the model reads; M is the batch's L, or more ([noisy ; clean]: 2 L).
        targets: [B, M] the id that each position is asked for.
        weight: [B, M] coefficient of a position's cross-entropy in the loss of the whole batch.
        where: [B, M] positions that are asked; no other goes through the head.
        t: [B, M] noise level of each token, which the loss is also reported by.
        tokens: [B] real tokens of each row.
        share: [B] of what the loss is a mean over, each row's part: losses of batches add up by its sum.
        mask: who sees whom, and the positions; its arrays have an entry for each row, or one for all.
    """

    inputs: Int[Array, "B M"]
    targets: Int[Array, "B M"]
    weight: Float[Array, "B M"]
    where: Bool[Array, "B M"]
    t: Float[Array, "B M"]
    tokens: Int[Array, " B"]
    share: Int[Array, " B"]
    mask: Mask | Coordinates | Bool[Array, "R M M"]


Objective = Callable[[DeviceBatch, PRNGKeyArray, Int[Array, ""]], Example]


class Corruption(NamedTuple):
    """How text is noised and seen, of the objectives that predict noised tokens.

    Attributes:
        live: ids below it are tokens, for `random_replace`.
        rule: who sees whom, but for what belongs to a batch's rows. As an array its block length is data.
        shift: each token is asked at the position before it.
        prompt_is_blocks: blocks are counted from the beginning of a row, its prompt among them.
        is_ragged: whether rows of documents have padding.
        by_row: noise levels depend on the row alone: a golden-ratio sequence, evenly spread over any run of rows.
    """

    noise: NoiseConfig
    mask_token_id: int
    live: int
    rule: Mask = Mask("full")
    is_ragged: bool = True
    by_row: bool = False
    shift: bool = False
    prompt_is_blocks: bool = False


def objective_of(config: Config, mask_token_id: int, live: int, *, for_evaluation: bool = False) -> Objective:
    """The objective that a configuration asks for: this is where it is chosen.

    For evaluation the noise is the same every time, and no option that biases the loss applies.
    """
    noise, blocks = config.training.noise, config.training.block_attention
    is_ragged = not config.dataset.pack_to_max_length or noise.random_length_prob > 0
    if for_evaluation:
        noise = NoiseConfig(eps=noise.eps, schedule=noise.schedule, weight="elbo", noise_type=noise.noise_type,
                            random_length_prob=0.0, at_least_one=False)  # fmt: skip
    rule, prompt_is_blocks = Mask("full"), False
    if blocks.enabled:
        kind = blocks.visibility or BLOCK_VISIBILITY
        rule = Mask(kind, blocks.block_length or BLOCK_LENGTH, bool(blocks.prompt_sees_answer) and kind == "block_bias")
        # What is aligned when it writes (dllm, by padding on the left) is trained counting from 0.
        prompt_is_blocks = (blocks.origin or BLOCK_ORIGIN) != BLOCK_ORIGIN
    how = Corruption(noise, mask_token_id, live, rule, is_ragged, for_evaluation, bool(config.training.shift),
                     prompt_is_blocks)  # fmt: skip
    return functools.partial(sft if config.learns_answers else pretrain, how=how)


def pretrain(batch: DeviceBatch, key: PRNGKeyArray, step: Int[Array, ""], how: Corruption) -> Example:
    """LLaDA's equation 3: a mean over the real tokens of documents, of which some are cut to a random length.

    With shift it is one over those that have a predecessor.
    """
    L, lengths = batch.tokens.shape[1], batch.real_length
    if how.noise.random_length_prob > 0:
        keys = diffusion.row_keys(key, step, batch.row_ids)
        lengths = jnp.minimum(lengths, diffusion.random_lengths(keys, L, how.noise))
    is_real = jnp.arange(L)[None] < lengths[:, None]
    can_noise, counts = is_real, lengths
    if how.shift:
        can_noise = is_real & has_predecessor(batch)
        counts = can_noise.sum(axis=1)
    noised = corrupt(batch, key, step, how, can_noise)
    mask = mask_of(batch, how.rule, is_real if how.is_ragged else None)
    return example_of(batch, noised, noised.weight / counts.sum(), lengths, counts, mask, shift=how.shift)


def sft(batch: DeviceBatch, key: PRNGKeyArray, step: Int[Array, ""], how: Corruption) -> Example:
    """LLaDA's equation 5: a mean over rows of the mean over each answer; prompts are only read.

    With shift an answer without a prompt begins with a token that cannot be asked, and is a token shorter; a row of
    that token alone does not count.
    """
    B, L = batch.tokens.shape
    place = jnp.arange(L)[None]
    is_real = place < batch.real_length[:, None]
    can_noise = is_real & (place >= batch.prompt_length[:, None])
    lengths, share = batch.real_length - batch.prompt_length, jnp.ones_like(batch.real_length)
    rows: int | Array = B
    if how.shift:
        can_noise &= has_predecessor(batch)
        lengths = can_noise.sum(axis=1)
        share = (lengths > 0).astype(share.dtype)
        rows = share.sum()
    noised = corrupt(batch, key, step, how, can_noise)
    mask = mask_of(batch, how.rule, is_real, None if how.prompt_is_blocks else batch.prompt_length)
    weight = noised.weight / (lengths[:, None] * rows)
    return example_of(batch, noised, weight, batch.real_length, share, mask, shift=how.shift)


def has_predecessor(batch: DeviceBatch) -> Bool[Array, "#B L"]:
    """Tokens that are not the first of their document: only they can be asked at the position before them."""
    if batch.segment_ids is None:
        return jnp.arange(batch.tokens.shape[1])[None] > 0
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    return jnp.pad(same, ((0, 0), (1, 0)))


def corrupt(
    batch: DeviceBatch, key: PRNGKeyArray, step: Int[Array, ""], how: Corruption, can_noise: Bool[Array, "B L"]
) -> Noised:
    """Noise a whole batch at once, each row at its level, so that how it is cut into micro-batches changes nothing."""
    B, keys = len(batch.tokens), diffusion.row_keys(key, step, batch.row_ids)
    if how.by_row:
        t = ((batch.row_ids + 0.5) * _GOLDEN) % 1.0
    else:
        t = diffusion.sample_t(jax.random.fold_in(jax.random.fold_in(key, step), B), keys, batch.row_ids, B, how.noise)
    return diffusion.forward_process(
        keys, batch.tokens, how.mask_token_id, how.noise, can_noise=can_noise, t=t, vocab_size=how.live
    )


def example_of(
    batch: DeviceBatch, noised: Noised, weight: Array, tokens: Array, share: Array, mask: Mask, *, shift: bool = False
) -> Example:
    """The example that asks a batch's noised tokens, each at its own position, or with shift at the one before."""
    asked = noised.is_noised
    t = jnp.broadcast_to(noised.t if noised.t.ndim == 2 else noised.t[:, None], batch.tokens.shape)
    example = Example(noised.tokens, batch.tokens, jnp.where(asked, weight, 0.0), asked, t, tokens, share, mask)
    return shifted(example) if shift else example


def shifted(example: Example) -> Example:
    """The same, but each token is asked at the position before it, which autoregressive models predict it at (Dream,
    arXiv 2508.15487: its shift operation). What was asked at a row's first position is asked nowhere any more."""

    def left(x: Array) -> Array:
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))

    return example._replace(targets=left(example.targets), weight=left(example.weight), where=left(example.where),
                            t=left(example.t))  # fmt: skip


def mask_of(
    batch: DeviceBatch, rule: Mask, is_real: Bool[Array, "B L"] | None, prompt_length: Int[Array, " B"] | None = None
) -> Mask:
    """Who sees whom in this batch: by the rule, own documents only, and nobody sees padding."""
    return dataclasses.replace(rule, prompt_length=prompt_length, segment_ids=batch.segment_ids,
                               positions=batch.positions, is_real=is_real)  # fmt: skip
