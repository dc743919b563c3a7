"""How many masked positions a pass writes, by what has not changed since the passes before."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import rule

_LEVEL = Setting("number", range="above 0")
_PASSES = Setting("whole", least=1)


class Seen(NamedTuple):
    """What `KLASS` remembers: log p [V] of the pass before, and for how many passes it has changed little."""

    log_p: Float[Array, "... V"]
    still: Int[Array, "..."]


@rule
class KLASS:
    """All that are sure, and have been of the same opinion for some passes; where none is, the first.

    KLASS (arXiv 2511.05664, algorithm 1): probability above 0.9 and KL(p now ‖ p before) below 0.01 in each of the last
    2 passes. Ours begins to remember with a block's first pass, which is stable nowhere; the published code also looks
    at blocks that are not written yet, and may find the first token of a block stable a pass sooner. With `steps` at
    least the even share is written, there only where nothing is stable.

    Attributes:
        klass: probability.
        kl: in nats.
        stable: passes.
    """

    klass: float = field(
        Setting(
            "number",
            "adaptive: write all surer than this whose distribution changed by less than 0.01 nats in each of the last "
            "2 passes (published: 0.9)",
            range="above 0 and at most 1",
        )
    )
    kl: float = field(_LEVEL, default=0.01)
    stable: int = field(_PASSES, default=2)

    def blank(self, V: int) -> Seen:
        return Seen(jnp.full(V, -jnp.inf), jnp.int32(0))

    def remember(self, log_p: Float[Array, " V"], token: Array, before: Seen) -> Seen:
        changed = jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * (log_p - before.log_p), 0.0).sum()
        return Seen(log_p, jnp.where(changed < self.kl, before.still + 1, 0))

    def commit(self, probability: Float[Array, " S"], is_masked: Bool[Array, " S"], memory: Seen) -> Bool[Array, " S"]:
        return (probability > self.klass) & (memory.still >= self.stable) & is_masked


class Likeliest(NamedTuple):
    """What `LESS` remembers: the likeliest ids [K], their shares of K's probability, how long nothing changed."""

    ids: Int[Array, "... K"]
    share: Float[Array, "... K"]
    still: Int[Array, "..."]


@rule
class LESS:
    """All that are sure, of the same token, and of the same likeliest ids, for some passes; where none is, the first.

    LESS (arXiv 2606.16908): high confidence, the likeliest token the same in recent passes, and a small Jensen–Shannon
    divergence of the K likeliest ids between passes. Ours compares the K likeliest of either pass, each K normalized by
    itself, an id that is not among them having none; the numbers beside `less` are ours. It remembers 2K numbers of a
    position, whatever the vocabulary.

    Attributes:
        less: probability.
        js: in nats, at most log 2.
        stable: passes.
        top: K.
    """

    less: float = field(
        Setting(
            "number",
            "adaptive: write all surer than this whose token and likeliest ids were the same in the last 2 passes",
            range="above 0 and at most 1",
        )
    )
    js: float = field(_LEVEL, default=0.01)
    stable: int = field(_PASSES, default=2)
    top: int = dataclasses.field(default=8, metadata={"setting": Setting("whole", least=1), "static": True})

    def blank(self, V: int) -> Likeliest:
        K = min(self.top, V)
        return Likeliest(jnp.full(K, -1), jnp.zeros(K), jnp.int32(0))

    def remember(self, log_p: Float[Array, " V"], token: Array, before: Likeliest) -> Likeliest:
        highest, ids = jax.lax.top_k(log_p, len(before.ids))
        share = jax.nn.softmax(highest)
        is_same = ids[:, None] == before.ids[None]
        then, now = (is_same * before.share).sum(axis=1), (is_same * share[:, None]).sum(axis=0)
        changed = (_towards_the_middle(share, then) + _towards_the_middle(before.share, now)) / 2
        is_still = (changed < self.js) & (ids[0] == before.ids[0])
        return Likeliest(ids, share, jnp.where(is_still, before.still + 1, 0))

    def commit(
        self, probability: Float[Array, " S"], is_masked: Bool[Array, " S"], memory: Likeliest
    ) -> Bool[Array, " S"]:
        return (probability > self.less) & (memory.still >= self.stable) & is_masked


def _towards_the_middle(p: Float[Array, " K"], q: Float[Array, " K"]) -> Float[Array, ""]:
    """Σ p log(p / ((p + q) / 2)) over where p is."""
    is_there = p > 0
    return jnp.where(is_there, p * jnp.log(jnp.where(is_there, 2 * p / (p + q), 1.0)), 0.0).sum()
