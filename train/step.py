"""The training step: noise, loss, gradient and update, as one compiled, donated program."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import diffusion, sharding
from qwen3llada_jax.cross_entropy import cross_entropy
from qwen3llada_jax.diffusion import NoiseConfig
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model import model
from qwen3llada_jax.model.masks import Mask
from qwen3llada_jax.model.model import Qwen3LLaDA

from .config.schema import BLOCK_LENGTH, BLOCK_VISIBILITY, Config
from .data.loader import Batch
from .optim import bad_updates, freeze, optimizer

State = dict[str, Any]  # {"params", "opt", "step"}, and "ema" where an average of the weights is kept
_GOLDEN = 0.6180339887498949
BANDS = 4  # noise levels [0, ¼), … that the loss is also reported for


class DeviceBatch(NamedTuple):
    """A batch on its devices: fields as in `data.Batch`, whose `used_length` is the real length here, and the number of
    each row within the batch."""

    tokens: Int[Array, "B L"]
    prompt_length: Int[Array, " B"]
    real_length: Int[Array, " B"]
    slots: Int[Array, " B"]
    segment_ids: Int[Array, "B L"] | None = None
    positions: Int[Array, "B L"] | None = None


def to_devices(batch: Batch, mesh: Mesh, slots: Int[np.ndarray, " B"] | None = None) -> DeviceBatch:
    """Lay a batch's rows over `data` and `fsdp`; every process passes the whole shape, and gives its devices' rows.

    `slots` number the rows for their noise; default: by their place in the batch.
    """
    spread = rows_sharding(mesh)

    def put(array: np.ndarray | None) -> Any:
        return None if array is None else jax.make_array_from_callback(array.shape, spread, lambda at: array[at])

    slots = np.arange(len(batch.rows)) if slots is None else slots
    arrays = (batch.tokens, batch.prompt_length, batch.used_length, slots.astype(np.int32))
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


class Prepared(NamedTuple):
    """A noised batch and the coefficient of each position's cross-entropy in the loss."""

    noised: Int[Array, "B L"]
    clean: Int[Array, "B L"]
    coefficient: Float[Array, "B L"]
    is_noised: Bool[Array, "B L"]
    prompt_length: Int[Array, " B"]
    real_length: Int[Array, " B"]
    t: Float[Array, " B"]
    segment_ids: Int[Array, "B L"] | None = None
    positions: Int[Array, "B L"] | None = None


def state_shardings(
    config: Any, tx: optax.GradientTransformation, mesh: Mesh, *, ema: bool = False
) -> tuple[State, State]:
    """(shapes, shardings) of the whole train state: moments and averages lie exactly where their parameters do."""
    _, shapes, axes = model.abstract(config)
    of_params = sharding.shardings(axes, shapes, mesh)
    everywhere = NamedSharding(mesh, P())
    opt, of_opt = jax.eval_shape(tx.init, shapes), optimizer.state_shardings(tx, shapes, of_params)
    average = ({"ema": shapes}, {"ema": of_params}) if ema else ({}, {})
    return (
        {"params": shapes, "opt": opt, "step": jax.ShapeDtypeStruct((), jnp.int32), **average[0]},
        {"params": of_params, "opt": of_opt, "step": everywhere, **average[1]},
    )


def weights(state: State) -> Any:
    """The parameters to evaluate and to write with: the average where one is kept."""
    return state.get("ema", state["params"])


def prepare(
    batch: DeviceBatch,
    key: PRNGKeyArray,
    step: Int[Array, ""],
    config: Config,
    mask_token_id: int,
    live: int,
    *,
    for_evaluation: bool = False,
) -> Prepared:
    """Noise a whole batch at once, so that how it is cut into micro-batches changes nothing.

    For evaluation the noise levels depend on the row alone (a golden-ratio sequence, evenly spread over any run of
    rows), and no option that biases the loss applies.
    """
    B, L = batch.tokens.shape
    noise = config.training.noise
    is_sft = config.training.mode == "sft"
    if for_evaluation:
        noise = NoiseConfig(eps=noise.eps, schedule=noise.schedule, weight="elbo", noise_type=noise.noise_type,
                            random_length_prob=0.0, at_least_one=False)  # fmt: skip
    keys = diffusion.row_keys(key, step, batch.slots)
    real_length = batch.real_length
    if not is_sft and noise.random_length_prob > 0:
        real_length = jnp.minimum(real_length, diffusion.random_lengths(keys, L, noise))
    place = jnp.arange(L)[None]
    is_real = place < real_length[:, None]
    can_noise = is_real & (place >= batch.prompt_length[:, None])
    if for_evaluation:
        t = ((batch.slots + 0.5) * _GOLDEN) % 1.0
    else:
        t = diffusion.sample_t(jax.random.fold_in(jax.random.fold_in(key, step), B), keys, batch.slots, B, noise)
    noised = diffusion.forward_process(
        keys, batch.tokens, mask_token_id, noise, can_noise=can_noise, t=t, vocab_size=live
    )
    counts = (real_length - batch.prompt_length)[:, None] * B if is_sft else real_length.sum()
    coefficient = jnp.where(noised.is_noised, noised.weight / counts, 0.0)
    return Prepared(noised.tokens, batch.tokens, coefficient, noised.is_noised, batch.prompt_length, real_length, t,
                    batch.segment_ids, batch.positions)  # fmt: skip


def loss_and_sums(
    network: Qwen3LLaDA, part: Prepared, config: Config, *, smoothing: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    """This part's share of the batch's loss (shares add up), and sums for the metrics."""
    L = part.noised.shape[1]
    hidden = network.hidden(part.noised, mask_of(part, config), part.positions)
    loss, ce = cross_entropy(hidden, network.head, part.clean, part.coefficient, part.is_noised, smoothing=smoothing)
    band = jnp.minimum((part.t * BANDS).astype(jnp.int32), BANDS - 1)
    of_band = jax.nn.one_hot(band, BANDS)  # B bands
    noised = part.is_noised.astype(jnp.float32)
    sums = {
        "ce": ce.sum(),
        "noised": noised.sum(),
        "band_ce": of_band.T @ ce.sum(axis=1),
        "band_noised": of_band.T @ noised.sum(axis=1),
        "tokens": jnp.minimum(part.real_length, L).sum(),
    }
    return loss, sums


def mask_of(part: Prepared, config: Config) -> Mask:
    """Who sees whom in this batch: the configured blocks, own documents only, and nobody sees padding."""
    L = part.noised.shape[1]
    is_real = None
    is_ragged = config.training.mode == "sft" or not config.dataset.pack_to_max_length
    if is_ragged or config.training.noise.random_length_prob > 0:
        is_real = jnp.arange(L)[None] < part.real_length[:, None]
    blocks = config.training.block_attention
    if not blocks.enabled:
        return Mask("full", segment_ids=part.segment_ids, is_real=is_real)
    prompts = part.prompt_length if config.training.mode == "sft" else None
    kind, length = blocks.visibility or BLOCK_VISIBILITY, blocks.block_length or BLOCK_LENGTH
    sees = bool(blocks.prompt_sees_answer) and kind == "block_bias"
    return Mask(kind, length, sees, prompt_length=prompts, segment_ids=part.segment_ids,
                positions=part.positions, is_real=is_real)  # fmt: skip


def make_train_step(
    graphdef: Any, config: Config, tx: optax.GradientTransformation, shardings: State, seed_key: PRNGKeyArray,
    mask_token_id: int, live: int,
) -> Any:  # fmt: skip
    """A compiled `(state, batch) → (state, metrics)`; the old state is given up."""
    pieces = config.micro_batches
    tx = optax.with_extra_args_support(tx)
    smoothing = config.training.loss_smoothing if config.training.loss_impl == "soft_ce" else 0.0

    def trained(params: Any) -> Any:
        return freeze.stop_gradients(params, config.training.freeze)

    def value_and_grad(params: Any, part: Prepared) -> Any:
        def loss(params: Any) -> tuple[Array, dict[str, Array]]:
            return loss_and_sums(nnx.merge(graphdef, trained(params)), part, config, smoothing=smoothing)

        return jax.value_and_grad(loss, has_aux=True)(params)

    options = sharding.compiler_options(shardings["step"].mesh)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, P()), compiler_options=options)
    def train_step(state: State, batch: DeviceBatch) -> tuple[State, dict[str, Array]]:
        prepared = prepare(batch, seed_key, state["step"], config, mask_token_id, live)
        if pieces == 1:
            (loss, sums), gradient = value_and_grad(state["params"], prepared)
        else:

            def add(total: Any, part: Prepared) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, value_and_grad(state["params"], part)), None

            # Rows are dealt out in turn: a plain reshape would gather a batch that lies on several devices.
            parts = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), prepared)
            first = jax.tree.map(lambda x: x[0], parts)
            zero = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, state["params"], first)
            )
            ((loss, sums), gradient), _ = jax.lax.scan(add, zero, parts)
        updates, opt = tx.update(gradient, state["opt"], state["params"], loss=loss)
        params = optax.apply_updates(state["params"], updates)
        skipped = bad_updates.is_skipped(opt, state["opt"])
        metrics = summarise(loss, sums) | {
            "grad_norm": optax.global_norm(gradient),
            "param_norm": optax.global_norm(params),
            "update_norm": optax.global_norm(updates),
            "taken": ~skipped,
            "sums": sums | {"weight": weight_of(prepared, config)},
            **bad_updates.metrics_of(opt),
        }
        new = {"params": params, "opt": opt, "step": state["step"] + 1}
        if "ema" in state:
            keep = config.training.ema_decay
            average = jax.tree.map(lambda mean, x: keep * mean + (1 - keep) * x, state["ema"], params)
            new["ema"] = bad_updates.guarded(average, state["ema"], ~skipped)
        return new, metrics

    return train_step


def make_eval_step(graphdef: Any, config: Config, mask_token_id: int, live: int) -> Any:
    """A compiled `(params, batch) → sums`, under noise that depends on the row numbers (`slots`) alone."""
    key = jax.random.key(0)

    @functools.partial(jax.jit, out_shardings=P())
    def eval_step(params: Any, batch: DeviceBatch) -> dict[str, Array]:
        prepared = prepare(batch, key, jnp.int32(0), config, mask_token_id, live, for_evaluation=True)
        loss, sums = loss_and_sums(nnx.merge(graphdef, params), prepared, config)
        weight = weight_of(prepared, config)
        return {**sums, "loss": loss * weight, "weight": weight}

    return eval_step


def weight_of(prepared: Prepared, config: Config) -> Float[Array, ""]:
    """By what the loss of a batch, a mean over tokens (pretrain) or rows (sft), is weighed so that batches add up."""
    weight = len(prepared.t) if config.training.mode == "sft" else prepared.real_length.sum()
    return jnp.float32(weight)


def summarise(loss: Array, sums: dict[str, Array]) -> dict[str, Array]:
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
