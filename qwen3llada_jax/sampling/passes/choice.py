"""Which masked positions a pass writes: the rules' numbers put in order."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.sampling import slots
from qwen3llada_jax.sampling.parameters import Structure
from qwen3llada_jax.sampling.passes.proposals import Proposal
from qwen3llada_jax.sampling.slots import Rule


def of_first_part(
    is_masked: Bool[Array, "B G S"], length: Int[Array, "..."], structure: Structure
) -> Bool[Array, "B G S"]:
    """The masked places of the first part of each block that has any, of parts of so many places.

    The first token of a block is known best before anything in it is: of a model with shift it is a part by itself.
    """
    place = jnp.arange(is_masked.shape[2])
    part = place // (length[:, None] if length.ndim else length)
    if structure.shift:
        part = jnp.where(place == 0, -1, part)
    part = jnp.where(is_masked, part[:, None] if length.ndim else part, is_masked.shape[2])
    return is_masked & (part == part.min(axis=2, keepdims=True))


def best_first(
    confidence: Float[Array, "B G S"],
    eligible: Bool[Array, "B G S"],
    goes_last: Bool[Array, "B G S"],
    tie: float = 0.0,
) -> Int[Array, "B G S"]:
    """The positions of each block by falling confidence, the first of equals first; the ineligible at the end.

    Args:
        tie: a position is equal to the one before it in that order when it is behind by no more than this.
    """
    rank = jnp.where(eligible, goes_last.astype(jnp.int32), 2)
    order = jnp.lexsort((-confidence, rank), axis=-1)
    if not tie:
        return order
    sorted_confidence, sorted_rank = (jnp.take_along_axis(x, order, axis=-1) for x in (confidence, rank))
    falls = sorted_confidence[..., :-1] - sorted_confidence[..., 1:] > tie
    is_next = falls | (sorted_rank[..., :-1] != sorted_rank[..., 1:])
    group = jnp.pad(jnp.cumsum(is_next, axis=-1), [(0, 0)] * (order.ndim - 1) + [(1, 0)])
    by_place = jnp.lexsort((order, group), axis=-1)
    return jnp.take_along_axis(order, by_place, axis=-1)


def first_of(order: Int[Array, "B G S"], count: Int[Array, "B G"]) -> Bool[Array, "B G S"]:
    """True at the first `count` positions of `order`."""
    return jnp.argsort(order, axis=-1) < count[..., None]


def to_unmask(
    proposal: Proposal,
    is_masked: Bool[Array, "B G S"],
    goes_last: Bool[Array, "B G S"] | None,
    order: Int[Array, "B G S"],
    to_write: Int[Array, "B G"],
    step: Int[Array, " B"],
    steps: Int[Array, " B"],
    rule: Rule,
    shared: Int[Array, "B G"] | None = None,
    finish: Rule | None = None,
) -> tuple[Int[Array, "B G"], Int[Array, "B G S"]]:
    """(how many masked positions of each block are written in this pass, in which order), by a commit rule.

    Those that a rule names come first in the order. Without a budget of its own it writes at least an even
    share of what was masked when the block began, so that `steps` are enough.

    Args:
        goes_last: positions that wait for all others; None: no position does.
        order: best first, what is not masked behind all others.
        shared: what is shared out evenly, where a block may begin with the prompt's tail its whole length (SDAR); None:
            `to_write`.
        finish: the rule by which a block is written whole.
    """
    shared = to_write if shared is None else shared
    step, steps = (jnp.broadcast_to(x[:, None], to_write.shape) for x in (step, steps))
    even_share = shared // steps + (step < shared % steps)

    def best_first(x: Array) -> Array:
        return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 3)), axis=2)

    seen = {
        "probability": best_first(proposal.probability),
        "entropy": best_first(proposal.entropy),
        "is_masked": best_first(is_masked),
        "place": order,
        "even_share": even_share,
        "step": step,
        "steps": steps,
        "to_write": to_write,
    }
    B, (G, S) = len(to_write), is_masked.shape[1:]

    def asked(rule: Rule, slot: str) -> Array:
        memory = {} if proposal.memory is None else {"memory": jax.tree.map(best_first, proposal.memory.get(slot))}
        shown = {name: (seen | memory)[name] for name in slots.looks_at(rule, slot)}
        of_block = jax.vmap(lambda rule, shown: slots.chosen(rule, slot, S, **shown), (None, 0), axis_size=G)
        return jax.vmap(of_block, (slots.row_axes(rule), 0), axis_size=B)(rule, shown)

    found = asked(rule, "commit")
    others = None if goes_last is None else is_masked & ~goes_last
    if found.ndim == 3:
        found &= best_first(is_masked)
        if others is not None:
            found &= best_first(others) | ~others.any(axis=2, keepdims=True)
        order = jnp.take_along_axis(order, jnp.argsort(~found, axis=-1, stable=True), axis=2)
        found = found.sum(axis=2)
    count = found.astype(jnp.int32)
    if not slots.has_budget(rule):
        if others is not None:
            before = others.sum(axis=2)
            count = jnp.where(before > 0, jnp.minimum(count, before), count)
        count = jnp.maximum(count, even_share)
    many = is_masked.sum(axis=2)
    count = jnp.minimum(jnp.maximum(count, 1), many)
    if finish is not None:
        count = jnp.where(asked(finish, "finish") != 0, many, count)
    return count, order
