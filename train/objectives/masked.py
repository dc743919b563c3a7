"""LLaDA's objective: noised tokens are predicted from what is left of the row (arXiv 2502.09992, equations 3 and 5)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from qwen3llada_jax.diffusion import Noised
from qwen3llada_jax.model.masks import Mask

from .example import DeviceBatch, Example
from .noising import Corruption, Learned, corrupt, learned_of, normalized, the_others


def masked(batch: DeviceBatch, key: PRNGKeyArray, step: Int[Array, ""], how: Corruption) -> Example:
    """A mean over the tokens of documents, or over rows of the mean over each answer (`Corruption.normalization`)."""
    learned = learned_of(batch, key, step, how)
    noised = corrupt(batch, key, step, how, learned.can_noise)
    mask = mask_of(batch, learned, how)
    return in_readings(lambda noised: example_of(batch, noised, learned, mask, how), noised, batch, learned, how)


def example_of(batch: DeviceBatch, noised: Noised, learned: Learned, mask: Mask, how: Corruption) -> Example:
    """The example that asks a batch's noised tokens, each at its own position, or with shift at the one before."""
    weight, share = normalized(noised.weight, noised.is_noised, learned, how)
    asked = noised.is_noised
    example = Example(noised.tokens, batch.tokens, jnp.where(asked, weight, 0.0), asked, levels_of(noised),
                      learned.lengths, share, mask)  # fmt: skip
    return shifted(example) if how.shift else example


def levels_of(noised: Noised) -> Array:
    """[B, L] the noise level of each token."""
    return jnp.broadcast_to(noised.t if noised.t.ndim == 2 else noised.t[:, None], noised.tokens.shape)


def shifted(example: Example) -> Example:
    """The same, but each token is asked at the position before it, which autoregressive models predict it at (Dream,
    arXiv 2508.15487: its shift operation). What was asked at a row's first position is asked nowhere any more."""

    def left(x: Array) -> Array:
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))

    return example._replace(targets=left(example.targets), weight=left(example.weight), where=left(example.where),
                            t=left(example.t))  # fmt: skip


def mask_of(batch: DeviceBatch, learned: Learned, how: Corruption) -> Mask:
    """Who sees whom in this batch: by the rule, own documents only, and nobody sees padding."""
    is_real: Bool[Array, "B L"] | None = learned.is_real if how.learns_answers or how.is_ragged else None
    return dataclasses.replace(how.rule, prompt_length=learned.prompt_length, segment_ids=batch.segment_ids,
                               positions=batch.positions, is_real=is_real)  # fmt: skip


def in_readings(
    of: Callable[[Noised], Example], noised: Noised, batch: DeviceBatch, learned: Learned, how: Corruption
) -> Example:
    """The example `of` noised rows, with the one of the other tokens beside it where each row is read twice."""
    if not how.complementary:
        return of(noised)
    return with_the_others(of(noised), of(the_others(noised, batch, how, learned.can_noise)))


def with_the_others(example: Example, others: Example) -> Example:
    """Two readings of the same rows as one batch of twice as many, each at half its weight; a row's stand together, so
    that they lie on one device. What is counted is counted once."""

    def twice(x: Array) -> Array:
        return x if jnp.ndim(x) == 0 or x.shape[0] == 1 else _side_by_side(x, x)

    nothing = jnp.zeros_like(example.tokens)
    no_mask: Any = None
    both = jax.tree.map(_side_by_side, example._replace(mask=no_mask), others._replace(mask=no_mask))
    counts = {name: _side_by_side(getattr(example, name), nothing) for name in ("tokens", "share")}
    return both._replace(weight=both.weight / 2, mask=jax.tree.map(twice, example.mask), **counts)


def _side_by_side(x: Array, y: Array) -> Array:
    return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])
