"""The training step: example, loss, gradient and update, as one compiled, donated program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PRNGKeyArray

from qwen3llada_jax import sharding, threefry
from qwen3llada_jax.cross_entropy import cross_entropy
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model import model
from qwen3llada_jax.model.model import Qwen3LLaDA, Runtime
from qwen3llada_jax.model.roles import roles_of

from .config.schema import Config
from .data.loader import Batch
from .objectives.example import DeviceBatch, Example, Objective
from .objectives.mixture import Mixture
from .optim import bad_updates, freeze, optimizer

State = dict[str, Any]  # {"params", "opt", "step"}, and "ema" where an average of the weights is kept
BANDS = 4  # noise levels [0, ¼), … that the loss is also reported for
DRAWN = "drawn_objective"  # the scope of a mixture's branches, by which a plan knows them


def runtime_of(config: Config) -> Runtime:
    """How a training step computes."""
    t = config.training
    return Runtime(config.dtype, t.attention, t.remat, layers_apart=True)


def to_devices(batch: Batch, mesh: Mesh, row_ids: Int[np.ndarray, " B"] | None = None) -> DeviceBatch:
    """Lay a batch's rows over `data` and `fsdp`; every process passes the whole shape, and gives its devices' rows.

    `row_ids` number the rows for their noise; default: by their place in the batch.
    """
    spread = rows_sharding(mesh)

    def put(array: np.ndarray | None) -> Any:
        return None if array is None else jax.make_array_from_callback(array.shape, spread, lambda at: array[at])

    row_ids = np.arange(len(batch.rows)) if row_ids is None else row_ids
    arrays = (batch.tokens, batch.prompt_length, batch.used_length, row_ids.astype(np.int32))
    return DeviceBatch(*map(put, (*arrays, batch.segment_ids, batch.positions)))


def rows_of_a_pass(config: Config, mesh: Mesh) -> tuple[int, int]:
    """(rows of one forward pass, parts of the mesh that they are dealt to).

    Raises:
        InputError: they do not divide.
    """
    rows, ways = config.training.batch_size // config.micro_batches, mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % ways:
        raise InputError(f"{rows} rows of a forward pass do not divide over data × fsdp = {ways}; change batch_size")
    return rows, ways


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Where the rows of a batch lie."""
    return NamedSharding(mesh, sharding.spec(("batch",)))


def state_shardings(
    config: Any, tx: optax.GradientTransformation, mesh: Mesh, *, ema: bool = False
) -> tuple[State, State]:
    """(shapes, shardings) of the whole train state: moments and averages lie exactly where their parameters do."""
    _, shapes, roles = model.abstract(config)
    of_params = sharding.shardings(roles, shapes, mesh)
    everywhere = NamedSharding(mesh, P())
    opt, of_opt = jax.eval_shape(tx.init, shapes), optimizer.state_shardings(tx, shapes, of_params)
    average = ({"ema": shapes}, {"ema": of_params}) if ema else ({}, {})
    return (
        {"params": shapes, "opt": opt, "step": jax.ShapeDtypeStruct((), jnp.int32), **average[0]},
        {"params": of_params, "opt": of_opt, "step": everywhere, **average[1]},
    )


def eval_params(state: State) -> Any:
    """The parameters to evaluate and to write with: the average where one is kept."""
    return state.get("ema", state["params"])


def loss_and_sums(network: Qwen3LLaDA, part: Example, *, smoothing: float = 0.0) -> tuple[Array, dict[str, Array]]:
    """This part's share of the batch's loss (shares add up), and sums for the metrics."""
    hidden = network.hidden(part.inputs, part.mask, part.positions, part.at)
    loss, ce = cross_entropy(hidden, network.head, part.targets, part.weight, part.where, smoothing=smoothing)
    band = jnp.minimum((part.t * BANDS).astype(jnp.int32), BANDS - 1)
    where, of_next = part.where, {"next_ce": jnp.float32(0), "next": jnp.float32(0)}
    if part.is_next is not None:
        of_next = {"next_ce": jnp.where(part.is_next, ce, 0.0).sum(), "next": jnp.float32((where & part.is_next).sum())}
        where = where & ~part.is_next
        ce = jnp.where(part.is_next, 0.0, ce)
    asked = where.astype(jnp.float32)

    def by_band(of_token: Array) -> Array:
        rows = jnp.stack([jnp.where(band == i, of_token, 0.0).sum(axis=1) for i in range(BANDS)], axis=1)
        return rows.T @ jnp.ones(len(rows))

    sums = {
        "ce": ce.sum(),
        "noised": asked.sum(),
        "band_ce": by_band(ce),
        "band_noised": by_band(asked),
        "tokens": part.tokens.sum(),
        **of_next,
    }
    return loss, sums


def make_train_step(
    graphdef: Any, config: Config, tx: optax.GradientTransformation, shardings: State, seed_key: PRNGKeyArray,
    objective: Objective | Mixture,
) -> Any:  # fmt: skip
    """A compiled `(state, batch) → (state, metrics)` of whatever the objective asks; the old state is given up.

    Of a mixture each update computes the objective that it draws, in the one program.
    """
    pieces = config.micro_batches
    tx = optax.with_extra_args_support(tx)
    smoothing = config.training.loss_smoothing if config.training.loss_impl == "soft_ce" else 0.0

    def trained(params: Any) -> Any:
        return freeze.stop_gradients(params, roles_of(nnx.merge(graphdef, params)), config.training.freeze)

    def value_and_grad(params: Any, part: Example) -> Any:
        def loss(params: Any) -> tuple[Array, dict[str, Array]]:
            return loss_and_sums(nnx.merge(graphdef, trained(params)), part, smoothing=smoothing)

        return jax.value_and_grad(loss, has_aux=True)(params)

    def of_update(objective: Objective, params: Any, batch: DeviceBatch, step: Array) -> Any:
        """((loss, sums), gradient) of a whole batch."""
        example = objective(batch, threefry.quick(seed_key), step)
        (loss, sums), gradient = of_pieces(params, example)
        return (loss, sums | {"weight": jnp.float32(example.share.sum())}), gradient

    def of_pieces(params: Any, example: Example) -> Any:
        if pieces == 1:
            return value_and_grad(params, example)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(params, whole(part))), None

        def divided(x: Array) -> Array:
            if x.ndim == 0 or len(x) == 1:  # the same for all rows
                return jnp.broadcast_to(x, (pieces, *x.shape))
            # Rows are dealt out in turn: a plain reshape would gather a batch that lies on several devices.
            return x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1)

        # What is known while compiling stays so: the rule of a kernel's mask.
        leaves, structure = jax.tree.flatten(example)
        known = [x if isinstance(x, np.ndarray) else None for x in leaves]
        parts = [None if x is not None else divided(leaf) for x, leaf in zip(known, leaves, strict=True)]

        def whole(part: Any) -> Example:
            return jax.tree.unflatten(structure, [b if a is None else a for a, b in zip(known, part, strict=True)])

        first = whole(jax.tree.map(lambda x: x[0], parts))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, params, first))
        return jax.lax.scan(add, zero, parts)[0]

    options = sharding.compiler_options(shardings["step"].mesh, config.dtype)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, P()), compiler_options=options)
    def train_step(state: State, batch: DeviceBatch) -> tuple[State, dict[str, Array]]:
        asked = (state["params"], batch, state["step"])
        if isinstance(objective, Mixture):
            drawn = objective.drawn(threefry.quick(seed_key), state["step"])
            branches = [functools.partial(of_update, one) for one in objective.objectives]
            with jax.named_scope(DRAWN):
                (loss, sums), gradient = jax.lax.switch(drawn, branches, *asked)
            sums["updates_of"] = jax.nn.one_hot(drawn, len(branches))
        else:
            (loss, sums), gradient = of_update(objective, *asked)
        updates, opt = tx.update(gradient, state["opt"], state["params"], loss=loss)
        params = optax.apply_updates(state["params"], updates)
        skipped = bad_updates.is_skipped(opt, state["opt"])
        metrics = summarize(loss, sums) | {
            "grad_norm": optax.global_norm(gradient),
            "param_norm": optax.global_norm(params),
            "update_norm": optax.global_norm(updates),
            "taken": ~skipped,
            "sums": sums,
            **bad_updates.metrics_of(opt),
        }
        new = {"params": params, "opt": opt, "step": state["step"] + 1}
        if "ema" in state:
            keep = config.training.ema_decay
            average = jax.tree.map(lambda mean, x: keep * mean + (1 - keep) * x, state["ema"], params)
            new["ema"] = bad_updates.where_good(average, state["ema"], ~skipped)
        return new, metrics

    return train_step


def make_eval_step(graphdef: Any, objective: Objective) -> Any:
    """A compiled `(params, batch) → sums`, under the same noise for the same rows every time."""
    key = jax.random.key(0)

    @functools.partial(jax.jit, out_shardings=P())
    def eval_step(params: Any, batch: DeviceBatch) -> dict[str, Array]:
        example = objective(batch, threefry.quick(key), jnp.int32(0))
        loss, sums = loss_and_sums(nnx.merge(graphdef, params), example)
        weight = jnp.float32(example.share.sum())
        return {**sums, "loss": loss * weight, "weight": weight}

    return eval_step


def of_clean_text(sums: dict[str, Any]) -> dict[str, float]:
    """The cross-entropy of next tokens, where clean text was asked for them."""
    return {"next_ce": float(sums["next_ce"] / sums["next"])} if float(sums["next"]) else {}


def summarize(loss: Array, sums: dict[str, Array]) -> dict[str, Array]:
    """Metrics of sums over batches; NaN for a noise band that had no noised token.

    `noised_perplexity` is of noised tokens at the noise levels that were drawn, and no bound of the text's own.
    """
    ce = sums["ce"] / sums["noised"]
    bands = jnp.asarray(sums["band_ce"]) / sums["band_noised"]  # numpy would warn of an empty band
    return {
        "loss": loss,
        "ce": ce,
        "noised_perplexity": jnp.exp(ce),
        "noised_share": sums["noised"] / sums["tokens"],
        **{f"ce_t{i}": bands[i] for i in range(BANDS)},
    }
