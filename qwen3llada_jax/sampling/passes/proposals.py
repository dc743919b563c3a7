"""A token for every masked position, from the logits there, and how sure the model is of it.

All in float32 log space. What may not be written has probability 0, so that confidences and entropies are those
of what may.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import sharding, threefry
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.head import positions_at_once, stream
from qwen3llada_jax.sampling import rules, slots
from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.passes.memory import Memory, remembered
from qwen3llada_jax.sampling.state import GenerationInputs


class Proposal(NamedTuple):
    """What could be written at each position.

    Attributes:
        token: [B, S] ids.
        probability: [B, S] of the token, at temperature 1 and before top-k and top-p.
        confidence: [B, S] by the rule in force: higher is written sooner.
        entropy: [B, S] of the distribution, in nats; 0 where no rule asks for it.
        now: [B, S] probability of the token that stands there; None: no rule asks for it.
        memory: what the rules remember of each position after this pass.
    """

    token: Int[Array, "B S"]
    probability: Float[Array, "B S"]
    confidence: Float[Array, "B S"]
    entropy: Float[Array, "B S"]
    now: Float[Array, "B S"] | None = None
    memory: Memory = None


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
    standing: Int[Array, "B S"] | None = None,
    memory: tuple[Memory, Memory] | None = None,
    passes: tuple[Int[Array, " B"], Int[Array, " B"]] | None = None,
    drafts: Int[Array, "B S"] | None = None,
) -> Proposal:
    """A proposal for every position `where`; zeros elsewhere, and nothing that is remembered.

    Each device looks at its own rows. Over a vocabulary in shares the logits of a slice are gathered, so that the
    numbers, and with them the tokens, are those of one device.

    Args:
        hidden: G is 1, or 2 under guidance: with the prompt and without. With `drafts` behind them those that the
            drafts were drawn from.
        place: position in the answer.
        keys: [B] one a row.
        present: ids that stand in the row, for the repetition penalty; None: no penalty.
        allowed: ids that may be written, of each row or of all; `eos`: those that may not before `min_length`.
        standing: tokens that stand there; None: no rule asks what is thought of them.
        memory: what rules remember of each position, and of one that nobody has seen; None: no rule remembers.
        passes: the block's passes so far and in all, where the draw looks at them.
        drafts: tokens that are proposed again where `verified` accepts them; -1: there is none.
    """
    rows, shared = ("batch",), ()
    key_data = jax.random.key_data(keys)
    given = {"present": present, "standing": standing, "memory": memory, "passes": passes, "drafts": drafts}
    given = {name: value for name, value in given.items() if value is not None}
    ids = shared if len(allowed) == 1 else rows
    work = sharding.per_device(
        _local,
        (
            ("vocab", "embed"),
            ids,
            ids,
            jax.tree.map(lambda x: rows if jnp.ndim(x) else shared, parameters),
            *[rows] * 4,
            jax.tree.map(lambda _: rows, given),
        ),
        rows,
    )
    return work(table, allowed, eos, parameters, hidden, where, place, key_data, given)


def _local(table, allowed, eos, parameters, hidden, where, place, key_data, given):  # noqa: ANN001, ANN202
    B, S, G, D = hidden.shape
    present, drafts = given.get("present"), given.get("drafts")
    branches = G if drafts is None else G // 2
    R = B * S
    vocab, embed = sharding.mesh_axes("vocab"), sharding.mesh_axes("embed")
    table = table.astype(hidden.dtype)
    if embed:
        table = jax.lax.all_gather(table, embed, axis=1, tiled=True)
    V = table.shape[0] * (jax.lax.axis_size(vocab) if vocab else 1)
    row = jnp.repeat(jnp.arange(B), S)
    keys, place = threefry.quick(jax.random.wrap_key_data(key_data)), place.reshape(R)
    flat = {name: _flat(given[name]) for name in ("standing", "memory") if name in given}
    before, nothing = flat.get("memory", (None, None))

    def work(carry, x, logits, here, into):  # noqa: ANN001, ANN202
        if vocab:
            logits = jax.lax.all_gather(logits, vocab, axis=2, tiled=True)  # C G V
        its = jax.tree.map(lambda x: x[row[here]] if jnp.ndim(x) else x, parameters)

        def final(logits):  # noqa: ANN001, ANN202
            guided = logits[:, 0]
            if branches == 2:
                guided = logits[:, 1] + (_column(its.cfg_scale) + 1) * (logits[:, 0] - logits[:, 1])
            if present is not None:
                penalty = _column(its.repetition_penalty)
                penalized = jnp.where(guided > 0, guided / penalty, guided * penalty)
                guided = jnp.where(present[row[here]], penalized, guided)
            may, ends = (x if len(x) == 1 else x[row[here]] for x in (allowed, eos))
            may = jnp.broadcast_to(may, guided.shape)
            if its.min_length is not None:
                may = may & ~(ends & (place[here] < its.min_length)[:, None])
            return jnp.where(may, guided, -jnp.inf)

        at, axes = jax.vmap(jax.random.fold_in)(keys[row[here]], place[here]), slots.row_axes(its)
        if drafts is not None:
            of, draft = (final(logits[:, :branches]), final(logits[:, branches:])), drafts.reshape(R)[here]
            new = jax.vmap(verify_one, (0, 0, 0, 0, 0, axes))(*of, draft, place[here], at, its)
        else:
            more = {}
            if "standing" in flat:
                more["standing"] = flat["standing"][here]
            if before is not None:
                more["before"] = jax.tree.map(lambda x: x[here], before)
            if "passes" in given:
                more["passes"] = tuple(x[row[here]] for x in given["passes"])
            one = jax.vmap(lambda *x: propose_one(*x[:4], **x[4]), (0, 0, 0, axes, 0))
            new = one(final(logits), place[here], at, its, more)
        return jax.tree.map(lambda old, new: old.at[into].set(new, mode="drop"), carry, new)

    now = jnp.zeros(R) if "standing" in flat else None
    zeros = Proposal(jnp.zeros(R, jnp.int32), jnp.zeros(R), jnp.zeros(R), jnp.zeros(R), now, nothing)
    chunk = min(R, positions_at_once(R, V * G))
    found = stream(hidden.reshape(R, G, D), table, where.reshape(R), work, zeros, chunk)
    return jax.tree.map(lambda x: x.reshape(B, S, *x.shape[1:]), found)


def _flat(tree: Any) -> Any:
    """Positions [B, S, …] of all rows as one axis."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _column(x: Array) -> Array:
    return x[:, None] if x.ndim else x


def propose_one(
    logits: Float[Array, " V"],
    place: Int[Array, ""],
    key: PRNGKeyArray,
    parameters: Parameters,
    standing: Int[Array, ""] | None = None,
    before: Memory = None,
    passes: tuple[Int[Array, ""], Int[Array, ""]] | None = None,
) -> Proposal:
    """The proposal of one position, from its final logits (−∞: may not be written).

    Where a user's rule draws such a token, or none of the table, the likeliest is proposed.
    """
    to_draw, to_order = jax.random.split(key)
    log_p = jax.nn.log_softmax(logits)
    named = {} if passes is None else dict(zip(slots.PASSES, passes, strict=True))
    named = {name: x for name, x in named.items() if name in slots.looks_at(parameters.draw, "draw")}
    token = slots.decided(parameters.draw, "draw", logits, to_draw, **named).astype(jnp.int32)
    if type(parameters.draw) not in (rules.Greedy, rules.Sample, rules.Annealed):  # these draw what may be written
        may = (token >= 0) & (token < len(logits)) & (logits.at[token].get(mode="clip") != -jnp.inf)
        token = jnp.where(may, token, rules.likeliest(logits).astype(jnp.int32))
    confidence = slots.decided(parameters.order, "order", log_p, token, place, to_order).astype(jnp.float32)
    is_seen = "entropy" in slots.looks_at(parameters.commit) or (
        parameters.finish is not None and "entropy" in slots.looks_at(parameters.finish, "finish")
    )
    entropy = rules.entropy_of(log_p) if is_seen else jnp.float32(0)
    now = None if standing is None else jnp.exp(log_p[standing])
    memory = None if before is None else remembered(parameters, log_p, token, before)
    return Proposal(token, jnp.exp(log_p[token]), confidence, entropy, now, memory)


def verify_one(
    logits: Float[Array, " V"],
    draft_logits: Float[Array, " V"],
    draft: Int[Array, ""],
    place: Int[Array, ""],
    key: PRNGKeyArray,
    parameters: Parameters,
) -> Proposal:
    """The proposal of one position: its draft, if that is accepted; where there is none (-1), as `propose_one`."""
    found, of = propose_one(logits, place, key, parameters), parameters.draw.probabilities
    token = jnp.where(draft < 0, found.token, verified(of(logits), of(draft_logits), draft, key))
    return found._replace(token=token, probability=jnp.exp(jax.nn.log_softmax(logits)[token]))


def verified(p: Float[Array, " V"], q: Float[Array, " V"], draft: Int[Array, ""], key: PRNGKeyArray) -> Int[Array, ""]:
    """A token distributed as p, made of a draft that is distributed as q (arXiv 2302.01318, algorithm 2 and theorem 1).

    The draft is accepted with probability min(1, p / q); else one is drawn from the positive part of p − q.
    """
    to_accept, to_draw = jax.random.split(key)
    is_accepted = jax.random.uniform(to_accept) * q[draft] < p[draft]
    rest = jnp.maximum(p - q, 0.0)
    rest = jnp.where(rest.sum() > 0, rest, p)  # where they are equal but for rounding
    other = rules.likeliest(jnp.log(rest) + jax.random.gumbel(to_draw, rest.shape))
    return jnp.where(is_accepted, draft, other).astype(jnp.int32)


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
