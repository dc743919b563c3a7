"""The sampler's rules (slots.py says what a rule is): who is written first, how many at once, what is drawn, …

| order          | is                      | source                                                      |
|----------------|-------------------------|-------------------------------------------------------------|
| LowConfidence  | p(token)                | LLaDA, arXiv 2502.09992, algorithm 5                        |
| Random         | U(0, 1)                 | LLaDA, algorithm 4                                          |
| RandomTopk     | p(token) + 1e-6 N(0, 1) | breaks near-ties                                            |
| Margin         | p(best) − p(second)     | "Train for the worst, plan for the best", arXiv 2502.06768  |
| Entropy        | −H(p)                   | Dream, arXiv 2508.15487                                     |
| LeftToRight    | −place                  | the autoregressive order, as a baseline                     |

| commit          | writes                                              | source                                       |
|-----------------|-----------------------------------------------------|----------------------------------------------|
| EvenShare       | the block's masks shared out over its steps         | LLaDA                                        |
| Threshold θ     | while p(token) > min(θ, p of the first − 1e-5)      | Fast-dLLM, arXiv 2505.22618                  |
| Factor f        | the largest n with (n + 1)(1 − lowest p of n) < f   | Fast-dLLM                                    |
| EntropyBound γ  | the largest n with ΣH − max H ≤ γ                   | EB-Sampler, arXiv 2505.24857                 |
| Dynamic θ       | max(even share, how many have p(token) > θ)         | SDAR, arXiv 2510.06303                       |
| Timesteps ε     | ⌊masks (1 − s / t)⌋, t → s one of `steps` even steps| Dream, arXiv 2508.15487                      |
|                 | from 1 to ε; what would write nothing is passed over|                                              |
"""

import dataclasses
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import TIE, rule

# ---- who is written first ------------------------------------------------------------------------------------


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
        best = jnp.argmax(log_p)
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

# ---- how many at once ----------------------------------------------------------------------------------------


@rule
class EvenShare:
    """The block's masks, shared out evenly over its steps; the first passes one more where it does not divide."""

    def commit(self, even_share: Int[Array, ""]) -> Array:
        return even_share


@rule
class Threshold:
    """The run of the most certain whose probability is above the threshold, in order, at least the first."""

    threshold: float = field(
        Setting(
            "number",
            "adaptive: write all that are surer than this (fewer passes, other tokens than one by one)",
            range="above 0 and at most 1",
        )
    )

    def commit(self, probability: Float[Array, " S"], is_masked: Bool[Array, " S"]) -> Array:
        sure = (probability > jnp.minimum(self.threshold, probability[:1] - 1e-5)) & is_masked
        return jnp.cumprod(sure).sum()


@rule
class Factor:
    """The more at once, the surer the least sure of them must be."""

    factor: float = field(
        Setting(
            "number",
            "adaptive: write n at once while (n + 1)(1 - lowest probability) is below this",
            range="0 or more",
        )
    )

    def commit(self, probability: Float[Array, " S"], is_masked: Bool[Array, " S"]) -> Array:
        n = jnp.arange(1, probability.shape[0] + 1)
        lowest = jax.lax.cummin(probability)
        return jnp.where(((n + 1) * (1 - lowest) < self.factor) & is_masked, n, 0).max()


@rule
class EntropyBound:
    """As many as keep the sum of all entropies but the largest (a bound on what they tell of each other) below."""

    entropy_bound: float = field(
        Setting(
            "number",
            "adaptive: write n at once while their entropies, the largest apart, sum to at most this",
            range="0 or more",
        )
    )

    def commit(self, entropy: Float[Array, " S"], is_masked: Bool[Array, " S"]) -> Array:
        H = jnp.where(is_masked, entropy, 0.0)
        others = jnp.cumsum(H) - jax.lax.cummax(H)
        return ((others <= self.entropy_bound) & is_masked).sum()


@rule
class Dynamic:
    """The even share, or all that are surer than this where these are more."""

    dynamic: float = field(
        Setting(
            "number",
            "write the even share, or all that are surer than this where these are more",
            range="above 0 and at most 1",
        )
    )

    def commit(self, probability: Float[Array, " S"], is_masked: Bool[Array, " S"], even_share: Array) -> Array:
        return jnp.maximum(even_share, ((probability > self.dynamic) & is_masked).sum())


@rule
class Timesteps:
    """As many as the noise level falls: from 1 to ε, by the same at each of the block's steps; the last writes all.

    A step that would write nothing would see the same and propose the same: it is passed over. How many are left says
    which step it is.
    """

    timesteps: float = field(
        Setting(
            "number",
            "write as the noise level falls, evenly from 1 to this (Dream: 0.001)",
            range="above 0 and at most 1",
        )
    )

    def commit(self, is_masked: Bool[Array, " S"], to_write: Array, steps: Array) -> Array:
        now, fall = is_masked.sum(), (1 - self.timesteps) / steps

        def count(step: Array, left: Array) -> Array:
            share = (left * (fall / (1 - fall * step))).astype(jnp.int32)
            return jnp.where(step < steps - 1, share, left)

        def is_past(at: tuple[Array, Array]) -> Array:
            step, left = at
            return (step < steps - 1) & ((left > now) | (count(step, left) == 0))

        def next_step(at: tuple[Array, Array]) -> tuple[Array, Array]:
            return at[0] + 1, at[1] - count(*at)

        return count(*jax.lax.while_loop(is_past, next_step, (jnp.zeros_like(steps), to_write)))


COMMIT_RULES: dict[str, Any] = {
    f.name: kind for kind in (Threshold, Factor, EntropyBound, Dynamic, Timesteps) for f in dataclasses.fields(kind)
}

# ---- which token ---------------------------------------------------------------------------------------------


@rule
class Greedy:
    """The likeliest token."""

    def draw(self, logits: Float[Array, " V"], key: PRNGKeyArray) -> Array:
        return jnp.argmax(logits)


@rule
class Sample:
    """A token from softmax(logits / τ), of the k likeliest, of the nucleus of mass top_p (in this order).

    argmax(logits + τ · Gumbel) is such a draw, and never overflows. Candidates are known by their rank, not by
    comparing logits: XLA may compute one twice and round it differently, and then none would be left. Of τ = 0 the
    likeliest is drawn: no noise is added, and the nucleus, NaN behind its first, is that one.
    """

    temperature: float = field(
        Setting(
            "number",
            "0: the likeliest token; above: a draw from softmax(logits / temperature) (default: 0)",
            range="0 or more",
        )
    )
    top_k: int | None = dataclasses.field(
        default=None,
        metadata={
            "setting": Setting("whole", "draw from the k likeliest tokens; needs a temperature", least=1),
            "static": True,
        },
    )
    top_p: float | None = field(
        Setting(
            "number",
            "draw from the fewest tokens that have this probability together; needs a temperature",
            range="above 0 and at most 1",
        ),
        default=None,
    )

    def draw(self, logits: Float[Array, " V"], key: PRNGKeyArray) -> Array:
        logits, ids = self._candidates(logits)
        best = jnp.argmax(logits + self.temperature * jax.random.gumbel(key, logits.shape))
        return best if ids is None else ids[best]

    def probabilities(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        """What `draw` draws from."""
        kept, ids = self._candidates(logits)
        likeliest = jnp.arange(len(kept)) == jnp.argmax(kept)
        p = jnp.where(self.temperature > 0, jax.nn.softmax(kept / self.temperature), likeliest)
        return p if ids is None else jnp.zeros_like(logits).at[ids].set(p)

    def _candidates(self, logits: Float[Array, " V"]) -> tuple[Float[Array, " n"], Int[Array, " n"] | None]:
        """(logits of what may be drawn, −∞ of what may not; their ids, None: all, in order)."""
        ids = None
        if self.top_k is not None:
            logits, ids = jax.lax.top_k(logits, self.top_k)
        elif self.top_p is not None:
            fallen, ids = jax.lax.sort((-logits, jnp.arange(len(logits))), num_keys=1)
            logits = -fallen
        if self.top_p is not None:
            before = jnp.cumsum(jax.nn.softmax(logits / self.temperature))
            before = jnp.concatenate([jnp.zeros(1), before[:-1]])
            logits = jnp.where(before < self.top_p, logits, -jnp.inf)
        return logits, ids


# ---- what is masked again, and where a row ends --------------------------------------------------------------

_REVISE = Setting(
    "whole", "tokens of each block that may be masked again after they were written (default: 0)", least=0
)


@rule
class LeastCertain:
    """What was least certain when written (ReMDM, arXiv 2503.00307)."""

    tie: ClassVar[float] = TIE
    revise: int = field(_REVISE)

    def remask(self, confidence: Float[Array, ""], key: PRNGKeyArray) -> Array:
        return confidence


@rule
class AtRandom:
    """Any."""

    revise: int = field(_REVISE)

    def remask(self, confidence: Float[Array, ""], key: PRNGKeyArray) -> Array:
        return jax.random.uniform(key)


REMASK_RULES: dict[str, Any] = {"confidence": LeastCertain, "random": AtRandom}


@rule
class AtEos:
    """At an EOS with nothing masked before it."""

    def stop(self, is_end: Bool[Array, " T"], is_masked: Bool[Array, " T"]) -> Array:
        T = is_end.shape[0]
        first_end = jnp.where(is_end.any(), jnp.argmax(is_end), T)
        first_mask = jnp.where(is_masked.any(), jnp.argmax(is_masked), T)
        return jnp.where(first_end < first_mask, first_end, T)
