"""How many masked positions of a block a pass writes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import rule


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


@rule
class LocalLeap:
    """All as sure as an anchor, and within a few places of one those that are nearly as sure.

    LocalLeap (arXiv 2510.07081): anchors are masked positions with a probability of at least 0.9, and within 4 places
    of one all with at least 0.75 are written with it. With no anchor, the first alone.

    Attributes:
        local_leap: probability of an anchor.
        near: probability that is enough beside one.
        radius: how many places that is.
    """

    local_leap: float = field(
        Setting(
            "number",
            "adaptive: write all as sure as this, and within 4 places of one those of at least 0.75 (published: 0.9)",
            range="above 0 and at most 1",
        )
    )
    near: float = field(Setting("number", range="above 0 and at most 1"), default=0.75)
    radius: int = field(Setting("whole", least=0), default=4)

    def commit(
        self, probability: Float[Array, " S"], is_masked: Bool[Array, " S"], place: Int[Array, " S"]
    ) -> Bool[Array, " S"]:
        is_anchor = (probability >= self.local_leap) & is_masked
        is_near = jnp.abs(place[:, None] - place[None]) <= self.radius
        return is_anchor | ((probability >= self.near) & is_masked & (is_near & is_anchor[None]).any(axis=1))


@rule
class WideIn:
    """All surer than a low threshold, but no more than 0.7 of what is masked; up to 5 always may, and 20 at most.

    The draft of WINO (arXiv 2507.18578): threshold 0.6, to be verified by `NarrowOut`.
    """

    wide_in: float = field(
        Setting(
            "number",
            "adaptive: write all surer than this, at most 0.7 of the masks (WINO: 0.6, with --narrow-out 0.9)",
            range="above 0 and at most 1",
        )
    )

    def commit(self, probability: Float[Array, " S"], is_masked: Bool[Array, " S"]) -> Array:
        sure = (probability > self.wide_in) & is_masked
        most = jnp.clip(is_masked.sum() * 7 // 10, 5, 20)
        return sure & (jnp.cumsum(sure) <= most)
