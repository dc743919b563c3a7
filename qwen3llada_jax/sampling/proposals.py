"""A token for every masked position, from the logits there, and how sure the model is of it.

All in float32 log space. What may not be written has probability 0, so that confidences and entropies are those
of what may.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import sharding
from qwen3llada_jax.head import positions_at_once, stream
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.sampling.config import Dials, SamplerConfig


class Proposal(NamedTuple):
    """What could be written at each position.

    Attributes:
        token: [B, S] ids.
        probability: [B, S] of the token, at temperature 1 and before top-k and top-p.
        confidence: [B, S] by the rule in force: higher is written sooner.
        entropy: [B, S] of the distribution, in nats; 0 where no rule asks for it.
    """

    token: Int[Array, "B S"]
    probability: Float[Array, "B S"]
    confidence: Float[Array, "B S"]
    entropy: Float[Array, "B S"]


def propose(
    hidden: Float[Array, "B S G D"],
    table: Float[Array, "V D"],
    where: Bool[Array, "B S"],
    place: Int[Array, "B S"],
    keys: PRNGKeyArray,
    present: Bool[Array, "B V"] | None,
    allowed: Bool[Array, " V"],
    eos: Bool[Array, " V"],
    dials: Dials,
    config: SamplerConfig,
) -> Proposal:
    """A proposal for every position `where`; zeros elsewhere.

    Each device looks at its own rows. Over a vocabulary in shares the logits of a slice are gathered, so that the
    numbers, and with them the tokens, are those of one device.

    Args:
        hidden: G is 1, or 2 under guidance: with the prompt and without.
        place: position in the answer.
        keys: [B] one a row.
        present: ids that stand in the row, for the repetition penalty; None: no penalty.
        allowed: ids that may be written; `eos`: those that may not before `dials.min_length`.
    """
    rows, shared = ("batch",), ()
    key_data = jax.random.key_data(keys)
    per_row = (hidden, where, place, key_data) if present is None else (hidden, where, place, key_data, present)
    work = sharding.per_device(
        functools.partial(_local, config=config),
        (("vocab", "embed"), shared, shared, [shared] * len(dials), *[rows] * len(per_row)),
        [rows] * len(Proposal._fields),
    )
    return Proposal(*work(table, allowed, eos, list(dials), *per_row))


def _local(table, allowed, eos, dials, hidden, where, place, key_data, present=None, *, config):  # noqa: ANN001, ANN202
    B, S, G, D = hidden.shape
    R, dials = B * S, Dials(*dials)
    vocab, embed = sharding.mesh_axes("vocab"), sharding.mesh_axes("embed")
    table = table.astype(hidden.dtype)
    if embed:
        table = jax.lax.all_gather(table, embed, axis=1, tiled=True)
    V = table.shape[0] * (jax.lax.axis_size(vocab) if vocab else 1)
    row = jnp.repeat(jnp.arange(B), S)
    keys, place = jax.random.wrap_key_data(key_data), place.reshape(R)

    def work(carry, x, logits, here, into):  # noqa: ANN001, ANN202
        if vocab:
            logits = jax.lax.all_gather(logits, vocab, axis=2, tiled=True)  # C G V
        guided = logits[:, 0]
        if G == 2:
            guided = logits[:, 1] + (dials.cfg_scale + 1) * (logits[:, 0] - logits[:, 1])
        if present is not None:
            penalised = jnp.where(guided > 0, guided / dials.repetition_penalty, guided * dials.repetition_penalty)
            guided = jnp.where(present[row[here]], penalised, guided)
        may = jnp.broadcast_to(allowed, guided.shape)
        if config.min_length:
            may = may & ~(eos & (place[here] < dials.min_length)[:, None])
        guided = jnp.where(may, guided, -jnp.inf)
        at = jax.vmap(jax.random.fold_in)(keys[row[here]], place[here])
        new = jax.vmap(functools.partial(propose_one, dials=dials, config=config))(guided, place[here], at)
        return jax.tree.map(lambda old, new: old.at[into].set(new, mode="drop"), carry, new)

    zeros = Proposal(jnp.zeros(R, jnp.int32), *(jnp.zeros(R) for _ in range(3)))
    chunk = min(R, positions_at_once(R, V * G))
    flat = stream(hidden.reshape(R, G, D), table, where.reshape(R), work, zeros, chunk)
    return [x.reshape(B, S) for x in flat]


def propose_one(
    logits: Float[Array, " V"], place: Int[Array, ""], key: PRNGKeyArray, dials: Dials, config: SamplerConfig
) -> Proposal:
    """The proposal of one position, from its final logits (−∞: may not be written)."""
    to_draw, to_order = jax.random.split(key)
    log_p = jax.nn.log_softmax(logits)
    token = jnp.argmax(logits) if config.temperature == 0 else draw(to_draw, logits, dials, config)
    token = token.astype(jnp.int32)
    rule = rules.CONFIDENCE_RULES[config.remasking] if isinstance(config.remasking, str) else config.remasking
    entropy = rules.entropy_of(log_p) if config.entropy_bound is not None else jnp.float32(0)
    return Proposal(token, jnp.exp(log_p[token]), rule(log_p, token, place, to_order), entropy)


def draw(key: PRNGKeyArray, logits: Float[Array, " V"], dials: Dials, config: SamplerConfig) -> Int[Array, ""]:
    """A token from softmax(logits / τ), of the k likeliest, of the nucleus of mass top_p (in this order).

    argmax(logits + τ · Gumbel) is such a draw, and never overflows. Candidates are known by their rank, not by
    comparing logits: XLA may compute one twice and round it differently, and then none would be left.
    """
    ids = None
    if config.top_k is not None:
        logits, ids = jax.lax.top_k(logits, config.top_k)
    elif config.top_p is not None:
        fallen, ids = jax.lax.sort((-logits, jnp.arange(len(logits))), num_keys=1)
        logits = -fallen
    if config.top_p is not None:
        before = jnp.cumsum(jax.nn.softmax(logits / dials.temperature))
        before = jnp.concatenate([jnp.zeros(1), before[:-1]])
        logits = jnp.where(before < dials.top_p, logits, -jnp.inf)
    best = jnp.argmax(logits + dials.temperature * jax.random.gumbel(key, logits.shape))
    return best if ids is None else ids[best]


def writable(model: ModelConfig, config: SamplerConfig) -> tuple[Bool[Array, " V"], Bool[Array, " V"]]:
    """([V] ids that may ever be written, [V] those that are an EOS), for a complete config."""
    ids = jnp.arange(model.vocab_size)
    live = model.vocab_size if model.live_vocab_size is None else model.live_vocab_size
    eos = jnp.isin(ids, jnp.asarray(config.eos_token_ids or (), jnp.int32))
    never = jnp.asarray((config.mask_token_id, *config.forbid), jnp.int32)
    allowed = (ids < live) & ~jnp.isin(ids, never)
    return (allowed & ~eos if config.eos == "never" else allowed), eos
