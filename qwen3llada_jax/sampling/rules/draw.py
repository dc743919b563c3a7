"""Which token is proposed."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import rule


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
        best = jnp.argmax(logits + self.temperature * jax.random.gumbel(key, logits.shape))
        return best if ids is None else ids[best]
