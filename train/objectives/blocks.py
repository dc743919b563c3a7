"""Block diffusion: every block of a row is predicted from clean text before it, in one pass over [noisy ; clean].

Beside the noised tokens' loss there may be the clean half's own, the next token's, read as by an autoregressive model:
one set of weights for both (I-DLM, arXiv 2604.11035; Nemotron-Labs-Diffusion, arXiv 2607.05722).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from qwen3llada_jax.block_diffusion import NoisyClean, block_begins, noisy_clean
from qwen3llada_jax.diffusion import Noised

from .example import DeviceBatch, Example
from .masked import in_readings, levels_of, mask_of
from .noising import Corruption, Learned, corrupt, has_predecessor, learned_of, normalized


def block_diffusion(batch: DeviceBatch, key: PRNGKeyArray, step: Int[Array, ""], how: Corruption) -> Example:
    """Each block noised at a level of its own (BD3-LM, arXiv 2503.09573, equation 8); the mean is over the same as for
    `masked`."""
    learned = learned_of(batch, key, step, how)
    mask = mask_of(batch, learned, how)
    begins, position = block_begins(mask, batch.tokens.shape[1])
    in_row = jnp.arange(batch.tokens.shape[1])[None] - (position - begins)
    noised = corrupt(batch, key, step, how, learned.can_noise, in_row)

    def one(noised: Noised) -> Example:
        rows = noisy_clean(noised.tokens, batch.tokens, mask, shift=how.shift, causal_context=how.causal_context,
                           longest_block=how.longest_block)  # fmt: skip
        return example_of(batch, noised, learned, rows, how)

    return in_readings(one, noised, batch, learned, how)


def example_of(batch: DeviceBatch, noised: Noised, learned: Learned, rows: NoisyClean, how: Corruption) -> Example:
    """The example that asks the noised tokens, and where clean text is read from left to right its next tokens."""
    asked = noised.is_noised
    weight, share = normalized(noised.weight, asked, learned, how)
    example = Example(
        rows.inputs, batch.tokens, jnp.where(asked, weight, 0.0), asked, levels_of(noised), learned.lengths, share,
        rows.mask, rows.at,
    )  # fmt: skip
    return with_next_tokens(example, batch, learned, how) if how.causal_context else example


def with_next_tokens(example: Example, batch: DeviceBatch, learned: Learned, how: Corruption) -> Example:
    """The same with the clean half asked, too: each position for the token after it, as an autoregressive model."""
    B, L = batch.tokens.shape
    follows = learned.is_real & has_predecessor(batch)
    if how.learns_answers:
        follows &= jnp.arange(L)[None] >= batch.prompt_length[:, None]
    assert example.at is not None
    asked: Bool[Array, "B L"] = jnp.pad(jnp.broadcast_to(follows, (B, L))[:, 1:], ((0, 0), (0, 1)))
    counted = learned._replace(counts=asked.sum(axis=1))
    once = how._replace(shift=True, complementary=False)  # a row's first token is asked for in no case
    weight, _ = normalized(jnp.full((B, L), how.clean_loss), asked, counted, once)
    return example._replace(
        targets=jnp.concatenate([example.targets, jnp.roll(batch.tokens, -1, axis=1)], axis=1),
        weight=jnp.concatenate([example.weight, jnp.where(asked, weight, 0.0)], axis=1),
        where=jnp.concatenate([example.where, asked], axis=1),
        t=jnp.concatenate([example.t, jnp.zeros((B, L))], axis=1),
        at=jnp.concatenate([example.at, jnp.broadcast_to(L + jnp.arange(L), (B, L))], axis=1),
        is_next=jnp.broadcast_to(jnp.arange(2 * L) >= L, (B, 2 * L)),
    )
