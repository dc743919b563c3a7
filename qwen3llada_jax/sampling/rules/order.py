"""Who is written first."""

import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qwen3llada_jax.sampling.rules.likeliest import likeliest
from qwen3llada_jax.sampling.slots import TIE, rule


@rule
class LowConfidence:
    """Probability of the proposed token."""

    tie: ClassVar[float] = TIE

    def order(self, log_p: Array, token: Array, place: Array, key: Array) -> Array:
        return jnp.exp(log_p[token])


@rule
class Random:
    """A random number."""

    def order(self, log_p: Array, token: Array, place: Array, key: Array) -> Array:
        return jax.random.uniform(key)


@rule
class RandomTopk:
    """Probability of the proposed token, near-ties broken at random."""

    def order(self, log_p: Array, token: Array, place: Array, key: Array) -> Array:
        return jnp.exp(log_p[token]) + 1e-6 * jax.random.normal(key)


@rule
class Margin:
    """How far the likeliest token is ahead of the next."""

    tie: ClassVar[float] = TIE

    def order(self, log_p: Array, token: Array, place: Array, key: Array) -> Array:
        best = likeliest(log_p)
        second = jnp.where(jnp.arange(log_p.shape[0]) == best, -jnp.inf, log_p).max()
        return jnp.exp(log_p[best]) - jnp.exp(second)


@rule
class Entropy:
    """The negative entropy of the whole distribution, in nats."""

    tie: ClassVar[float] = TIE

    def order(self, log_p: Array, token: Array, place: Array, key: Array) -> Array:
        return -entropy_of(log_p)


@rule
class LeftToRight:
    """Earlier positions first."""

    def order(self, log_p: Array, token: Array, place: Array, key: Array) -> Array:
        return -place.astype(jnp.float32)


def entropy_of(log_p: Float[Array, " V"]) -> Float[Array, ""]:
    """H(p) in nats; impossible tokens (−∞) add nothing."""
    return -jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0).sum()


CONFIDENCE_RULES: dict[str, Any] = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind
    for kind in (LowConfidence, Random, RandomTopk, Margin, Entropy, LeftToRight)
}
