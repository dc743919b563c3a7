"""Who is written first, and how many: the rules of the unmasking, small pure functions.

A confidence rule looks at one masked position: `log_p` [V] (log-probabilities of what may be written there, at
temperature 1), its proposed `token`, its `place` in the answer and a `key`. Higher is written sooner. Any
function of this shape may stand in `SamplerConfig.remasking`.

A counting rule looks at a block's masked positions in that order, best first: how many of them go at once.

| rule            | confidence              | source                                                      |
|-----------------|-------------------------|-------------------------------------------------------------|
| low_confidence  | p(token)                | LLaDA, arXiv 2502.09992, algorithm 5                        |
| random          | U(0, 1)                 | LLaDA, algorithm 4                                          |
| random_topk     | p(token) + 1e-6 N(0, 1) | breaks near-ties                                            |
| margin          | p(best) − p(second)     | "Train for the worst, plan for the best", arXiv 2502.06768  |
| entropy         | −H(p)                   | Dream, arXiv 2508.15487                                     |
| left_to_right   | −place                  | the autoregressive order, as a baseline                     |

| count         | goes                                                | source                                       |
|---------------|-----------------------------------------------------|----------------------------------------------|
| threshold θ   | while p(token) > min(θ, p of the first − 1e-5)      | Fast-dLLM, arXiv 2505.22618                  |
| factor f      | the largest n with (n + 1)(1 − lowest p of n) < f   | Fast-dLLM                                    |
| entropy_bound | the largest n with ΣH − max H ≤ bound               | EB-Sampler, arXiv 2505.24857                 |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

ConfidenceRule = Callable[
    [Float[Array, " V"], Int[Array, ""], Int[Array, ""], PRNGKeyArray],
    Float[Array, ""],
]


def low_confidence(log_p: Array, token: Array, place: Array, key: Array) -> Array:
    """Probability of the proposed token."""
    return jnp.exp(log_p[token])


def random(log_p: Array, token: Array, place: Array, key: Array) -> Array:
    """A random number."""
    return jax.random.uniform(key)


def random_topk(log_p: Array, token: Array, place: Array, key: Array) -> Array:
    """Probability of the proposed token, near-ties broken at random."""
    return jnp.exp(log_p[token]) + 1e-6 * jax.random.normal(key)


def margin(log_p: Array, token: Array, place: Array, key: Array) -> Array:
    """How far the likeliest token is ahead of the next."""
    best = jnp.argmax(log_p)
    second = jnp.where(jnp.arange(log_p.shape[0]) == best, -jnp.inf, log_p).max()
    return jnp.exp(log_p[best]) - jnp.exp(second)


def entropy(log_p: Array, token: Array, place: Array, key: Array) -> Array:
    """The negative entropy of the whole distribution, in nats."""
    return -entropy_of(log_p)


def left_to_right(log_p: Array, token: Array, place: Array, key: Array) -> Array:
    """Earlier positions first."""
    return -place.astype(jnp.float32)


CONFIDENCE_RULES: dict[str, ConfidenceRule] = {
    rule.__name__: rule for rule in (low_confidence, random, random_topk, margin, entropy, left_to_right)
}


def entropy_of(log_p: Float[Array, " V"]) -> Float[Array, ""]:
    """H(p) in nats; impossible tokens (−∞) add nothing."""
    return -jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0).sum()


def threshold(p: Float[Array, "B G S"], is_masked: Bool[Array, "B G S"], level: Array) -> Int[Array, "B G"]:
    """The run of the most certain whose probability is above `level`, in order, at least the first."""
    sure = (p > jnp.minimum(level, p[..., :1] - 1e-5)) & is_masked
    return jnp.cumprod(sure, axis=-1).sum(axis=-1)


def factor(p: Float[Array, "B G S"], is_masked: Bool[Array, "B G S"], level: Array) -> Int[Array, "B G"]:
    """The more at once, the surer the least sure of them must be."""
    n = jnp.arange(1, p.shape[-1] + 1)
    lowest = jax.lax.cummin(p, axis=p.ndim - 1)
    return jnp.where(((n + 1) * (1 - lowest) < level) & is_masked, n, 0).max(axis=-1)


def entropy_bound(H: Float[Array, "B G S"], is_masked: Bool[Array, "B G S"], level: Array) -> Int[Array, "B G"]:
    """As many as keep the sum of all entropies but the largest (a bound on what they tell of each other) below."""
    H = jnp.where(is_masked, H, 0.0)
    others = jnp.cumsum(H, axis=-1) - jax.lax.cummax(H, axis=H.ndim - 1)
    return ((others <= level) & is_masked).sum(axis=-1)
