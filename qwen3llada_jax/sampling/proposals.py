"""A token for every masked position, from the logits there, and how sure the model is of it.

All in float32 log space. What may not be written has probability 0, so that confidences and entropies are those
of what may.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import sharding
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.head import positions_at_once, stream
from qwen3llada_jax.sampling import rules, slots
from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.state import GenerationInputs


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
    allowed: Bool[Array, "#B V"],
    eos: Bool[Array, "#B V"],
    parameters: Parameters,
) -> Proposal:
    """A proposal for every position `where`; zeros elsewhere.

    Each device looks at its own rows. Over a vocabulary in shares the logits of a slice are gathered, so that the
    numbers, and with them the tokens, are those of one device.

    Args:
        hidden: G is 1, or 2 under guidance: with the prompt and without.
        place: position in the answer.
        keys: [B] one a row.
        present: ids that stand in the row, for the repetition penalty; None: no penalty.
        allowed: ids that may be written, of each row or of all; `eos`: those that may not before `min_length`.
    """
    rows, shared = ("batch",), ()
    key_data = jax.random.key_data(keys)
    per_row = (hidden, where, place, key_data) if present is None else (hidden, where, place, key_data, present)
    ids = shared if len(allowed) == 1 else rows
    work = sharding.per_device(
        _local,
        (
            ("vocab", "embed"),
            ids,
            ids,
            jax.tree.map(lambda x: rows if jnp.ndim(x) else shared, parameters),
            *[rows] * len(per_row),
        ),
        [rows] * len(Proposal._fields),
    )
    return Proposal(*work(table, allowed, eos, parameters, *per_row))


def _local(table, allowed, eos, parameters, hidden, where, place, key_data, present=None):  # noqa: ANN001, ANN202
    B, S, G, D = hidden.shape
    R = B * S
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
        guided, its = logits[:, 0], jax.tree.map(lambda x: x[row[here]] if jnp.ndim(x) else x, parameters)
        if G == 2:
            guided = logits[:, 1] + (_column(its.cfg_scale) + 1) * (logits[:, 0] - logits[:, 1])
        if present is not None:
            penalty = _column(its.repetition_penalty)
            penalized = jnp.where(guided > 0, guided / penalty, guided * penalty)
            guided = jnp.where(present[row[here]], penalized, guided)
        may, ends = (x if len(x) == 1 else x[row[here]] for x in (allowed, eos))
        may = jnp.broadcast_to(may, guided.shape)
        if its.min_length is not None:
            may = may & ~(ends & (place[here] < its.min_length)[:, None])
        guided = jnp.where(may, guided, -jnp.inf)
        at = jax.vmap(jax.random.fold_in)(keys[row[here]], place[here])
        new = jax.vmap(propose_one, (0, 0, 0, slots.row_axes(its)))(guided, place[here], at, its)
        return jax.tree.map(lambda old, new: old.at[into].set(new, mode="drop"), carry, new)

    zeros = Proposal(jnp.zeros(R, jnp.int32), *(jnp.zeros(R) for _ in range(3)))
    chunk = min(R, positions_at_once(R, V * G))
    flat = stream(hidden.reshape(R, G, D), table, where.reshape(R), work, zeros, chunk)
    return [x.reshape(B, S) for x in flat]


def _column(x: Array) -> Array:
    return x[:, None] if x.ndim else x


def propose_one(
    logits: Float[Array, " V"], place: Int[Array, ""], key: PRNGKeyArray, parameters: Parameters
) -> Proposal:
    """The proposal of one position, from its final logits (−∞: may not be written).

    Where a user's rule draws such a token, or none of the table, the likeliest is proposed.
    """
    to_draw, to_order = jax.random.split(key)
    log_p = jax.nn.log_softmax(logits)
    token = slots.decided(parameters.draw, "draw", logits, to_draw).astype(jnp.int32)
    if type(parameters.draw) not in (rules.Greedy, rules.Sample):  # these draw what may be written
        may = (token >= 0) & (token < len(logits)) & (logits.at[token].get(mode="clip") != -jnp.inf)
        token = jnp.where(may, token, jnp.argmax(logits).astype(jnp.int32))
    confidence = slots.decided(parameters.order, "order", log_p, token, place, to_order).astype(jnp.float32)
    is_seen = "entropy" in slots.looks_at(parameters.commit)
    return Proposal(token, jnp.exp(log_p[token]), confidence, rules.entropy_of(log_p) if is_seen else jnp.float32(0))


def allowed_ids(
    model: ModelConfig, inputs: GenerationInputs, structure: Structure
) -> tuple[Bool[Array, "#B V"], Bool[Array, "#B V"]]:
    """([B, V] ids that may ever be written, [B, V] those that are an EOS); [1, V] where they are those of all rows."""
    ids = jnp.arange(model.vocab_size)
    live = model.vocab_size if model.live_vocab_size is None else model.live_vocab_size

    def named(rows: Int[Array, "#B n"]) -> Bool[Array, "#B V"]:
        nobody = jnp.zeros((len(rows), model.vocab_size), bool)
        return nobody.at[jnp.arange(len(rows))[:, None], rows].set(True, mode="drop")

    return (ids < live) & (ids != structure.mask_token_id) & ~named(inputs.forbidden), named(inputs.ends)
