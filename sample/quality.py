"""How good a text is where nobody knows the right one."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import qwen3llada_jax as q
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.forward import mask_of


def distinct_share(ids: Sequence[int], n: int = 4) -> float:
    """Distinct n-grams of all n-grams (distinct-n, arXiv 1510.03055); 1 for a text shorter than that."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def log_probability(
    model: q.Qwen3LLaDA, result: q.Generation, settings: SamplerConfig, strides: int = 4
) -> Float[np.ndarray, "B L"]:
    """log p of each written token given the others, in nats; NaN elsewhere.

    The pseudo-log-likelihood (arXiv 1910.14659), a stride of it at a time: every `strides`-th token of the answer is
    masked in one pass, so a token sees (strides − 1) / strides of the answer, under the visibility it was written
    under. What the model thinks of its own text, no likelihood: a text that repeats itself does well.
    """
    outline = settings.for_model(model.config).outline()
    return np.asarray(_log_probability(model, result._replace(passes=0), outline, strides))


@functools.partial(jax.jit, static_argnames=("settings", "strides"))
def _log_probability(model: q.Qwen3LLaDA, result: Any, settings: SamplerConfig, strides: int) -> Array:
    L = result.tokens.shape[1]
    length = result.prompt_length + settings.gen_length
    mask = mask_of(model.config, settings, result.prompt_length, length, L)
    written, place = result.written_at >= 0, jnp.arange(L)[None] - result.prompt_length[:, None]

    mask_token = settings.mask_token_id
    assert mask_token is not None

    def one(stride: Array) -> Array:
        where = written & (place % strides == stride)
        hidden = model.hidden(jnp.where(where, mask_token, result.tokens), mask)
        _, ce = q.cross_entropy(hidden, model.head, result.tokens, jnp.zeros(where.shape), where)
        return jnp.where(where, -ce, 0.0)

    found = jax.lax.map(one, jnp.arange(strides)).sum(axis=0)
    return jnp.where(written, found, jnp.nan)
