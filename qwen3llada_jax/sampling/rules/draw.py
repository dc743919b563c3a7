"""Which token is proposed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax.sampling.rules.likeliest import likeliest
from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import rule

_BITS = 30  # of the probabilities 0 to 1 as float32, which are in the order of their bits


@rule
class Greedy:
    """The likeliest token."""

    def draw(self, logits: Float[Array, " V"], key: PRNGKeyArray) -> Array:
        return likeliest(logits)


@rule
class Sample:
    """A token from softmax(logits / τ), of the k likeliest, of the nucleus of mass top_p (in this order).

    argmax(logits + τ · Gumbel) is such a draw, and never overflows. The likeliest is among the candidates whatever is
    compared: XLA may compute a number twice and round it differently. Of τ = 0 it is drawn, for no noise is added.
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
        return drawn(logits, key, self.temperature, self.top_k, self.top_p)

    def probabilities(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        """What `draw` draws from."""
        kept, ids = _candidates(logits, self.temperature, self.top_k, self.top_p)
        is_best = jnp.arange(len(kept)) == likeliest(kept)
        p = jnp.where(self.temperature > 0, jax.nn.softmax(kept / self.temperature), is_best)
        return p if ids is None else jnp.zeros_like(logits).at[ids].set(p)


@rule
class Annealed:
    """The same at a temperature that falls evenly over a block's passes.

    DiffusionGemma (transformers' `LinearTemperatureScheduleLogitsProcessor`): at pass i = 0, 1, … of N the temperature
    is b + (a − b)(N − i) / N, from a = 0.8 towards b = 0.4. N are the block's passes of `steps`; without, as many as it
    has places, for every pass writes one at least.

    Attributes:
        temperature: of the first pass.
        anneal_to: what it falls towards.
    """

    temperature: float = field(Setting("number", range="0 or more"))
    anneal_to: float = field(
        Setting(
            "number",
            "the temperature falls to this over a block's passes; needs a temperature (published: 0.8 to 0.4)",
            range="0 or more",
        )
    )
    top_k: int | None = dataclasses.field(default=None, metadata={"setting": Setting("whole", least=1), "static": True})
    top_p: float | None = field(Setting("number", range="above 0 and at most 1"), default=None)

    def draw(self, logits: Float[Array, " V"], key: PRNGKeyArray, step: Array, steps: Array) -> Array:
        left = jnp.maximum(steps - step, 0) / steps
        temperature = self.anneal_to + (self.temperature - self.anneal_to) * left
        return drawn(logits, key, temperature, self.top_k, self.top_p)


def drawn(
    logits: Float[Array, " V"], key: PRNGKeyArray, temperature: Array | float, top_k: int | None, top_p: Any
) -> Array:
    """A token from softmax(logits / temperature), of the k likeliest, of their nucleus."""
    logits, ids = _candidates(logits, temperature, top_k, top_p)
    best = likeliest(logits + temperature * jax.random.gumbel(key, logits.shape))
    return best if ids is None else ids[best]


def _candidates(
    logits: Float[Array, " V"], temperature: Array | float, top_k: int | None, top_p: Any
) -> tuple[Float[Array, " n"], Int[Array, " n"] | None]:
    """(logits of what may be drawn, −∞ of what may not; their ids, None: all, in order)."""
    ids = None
    if top_k is not None:
        logits, ids = jax.lax.top_k(logits, top_k)
    if top_p is not None:
        p = jax.nn.softmax(logits / temperature)
        if ids is None:
            is_first = jnp.arange(len(logits)) == likeliest(logits)  # whatever is rounded how
            kept = is_first | _nucleus(p, top_p)
        else:  # few, and sorted already
            kept = jnp.concatenate([jnp.zeros(1), jnp.cumsum(p)[:-1]]) < top_p
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits, ids


def _nucleus(p: Float[Array, " V"], top_p: Array | float) -> Bool[Array, " V"]:
    """The fewest tokens that have so much probability together, and all that are as likely as the last; of NaN all.

    The least probability among them is looked for bit by bit: to sort a vocabulary takes twenty times as long on a CPU.
    """

    def with_bit(number: Array, bits: Int[Array, ""]) -> Int[Array, ""]:
        more = bits | (1 << (_BITS - 1 - number))
        mass = jnp.where(p >= jax.lax.bitcast_convert_type(more, jnp.float32), p, 0.0).sum()
        return jnp.where(mass >= top_p, more, bits)

    least = jax.lax.fori_loop(0, _BITS, with_bit, jnp.int32(0))
    return ~(p < jax.lax.bitcast_convert_type(least, jnp.float32))
