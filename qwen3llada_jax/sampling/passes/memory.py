"""What rules remember of each place of a block from one pass to the next; programs without such rules have none of it.

A rule with a memory (slots.py) says what it knows of a place before the block's first pass, `blank(V)`, and after each,
`remember(log_p, token, before)`. A place that a pass does not look at, because it is written, or waits for others, is
forgotten.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.sampling import slots
from qwen3llada_jax.sampling.parameters import Parameters

Memory = Any
"""{slot: arrays [B, S, …] as the rule there likes them}; None: no rule remembers."""


def blank(parameters: Parameters, rows: int, places: int, vocab_size: int) -> Memory:
    """The memory [rows, places, …] before anything was seen, of numpy."""

    def every(x: Any) -> np.ndarray:
        return np.array(np.broadcast_to(x, (rows, places, *np.shape(x))))

    return jax.tree.map(every, _of_a_place(parameters, vocab_size))


def bytes_of_a_place(parameters: Parameters, vocab_size: int) -> int:
    """How large the memory of one place is."""
    return sum(x.nbytes for x in jax.tree.leaves(_of_a_place(parameters, vocab_size)))


def _of_a_place(parameters: Parameters, vocab_size: int) -> Memory:
    found = {slot: getattr(parameters, slot) for slot in slots.SLOTS}
    return {slot: rule.blank(vocab_size) for slot, rule in found.items() if slots.remembers(rule)} or None


def nothing_like(memory: Memory, parameters: Parameters, vocab_size: int) -> Memory:
    """A blank memory of the same shape, within a program."""

    def of(x: Any, like: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(x), like.shape).astype(like.dtype)

    return jax.tree.map(of, _of_a_place(parameters, vocab_size), memory)


def of_those(where: Bool[Array, "B ..."], memory: Memory, other: Memory) -> Memory:
    """`memory` of the rows, or places, `where`; `other` of the rest."""

    def of(x: Array, y: Array) -> Array:
        return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x, y)

    return jax.tree.map(of, memory, other)


def remembered(parameters: Parameters, log_p: Float[Array, " V"], token: Int[Array, ""], before: Memory) -> Memory:
    """What each rule remembers of one place after a pass that looked at it."""
    return {slot: getattr(parameters, slot).remember(log_p, token, mine) for slot, mine in before.items()}
