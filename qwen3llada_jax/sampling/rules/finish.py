"""When a block is written whole."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.sampling.rules.likeliest import likeliest
from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import rule


class Opinion(NamedTuple):
    """The likeliest id of the pass before, and in how many passes since it was the same."""

    id: Int[Array, "..."]
    still: Int[Array, "..."]


@rule
class StableAndConfident:
    """When no masked position has changed its likeliest token for some passes, and their mean entropy is low.

    DiffusionGemma's (transformers' `StableAndConfidentStoppingCriteria`): 1 pass, 0.005 nats. There the canvas has no
    masks, all its places are looked at, and the entropy is that of the tempered distribution; here what is written
    cannot change, so the masked ones are, at temperature 1.

    Attributes:
        finish_below: mean entropy, in nats.
        stable: passes in which the token was that of the pass before.
    """

    finish_below: float = field(
        Setting(
            "number",
            "write a block whole once its likeliest tokens are those of the pass before and their mean entropy is "
            "below this (published: 0.005)",
            range="above 0",
        )
    )
    stable: int = field(Setting("whole", least=0), default=1)

    def blank(self, V: int) -> Opinion:
        return Opinion(jnp.int32(-1), jnp.int32(0))

    def remember(self, log_p: Float[Array, " V"], token: Array, before: Opinion) -> Opinion:
        best = likeliest(log_p).astype(jnp.int32)
        return Opinion(best, jnp.where(best == before.id, before.still + 1, 0))

    def finish(self, entropy: Float[Array, " S"], is_masked: Bool[Array, " S"], memory: Opinion) -> Array:
        is_stable = ((memory.still >= self.stable) | ~is_masked).all()
        mean = jnp.where(is_masked, entropy, 0.0).sum() / jnp.maximum(is_masked.sum(), 1)
        return is_stable & (mean < self.finish_below)
