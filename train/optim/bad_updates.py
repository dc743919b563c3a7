"""Updates that would harm a run: a loss or gradient that is not finite, or a spike far above its running median.

`skip_bad_updates` wraps the optimizer: it judges every update inside the compiled step, and one that is to be skipped
leaves parameters and moments bitwise as they were. What it remembers lies in the optimizer's state, so a resumed run
judges as one never stopped would have. `report` is the other half: what the person watching is told.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.errors import InputError

from ..config.schema import Config, TrainingConfig
from .optimizer import optimizer

WINDOW = 64  # updates whose median is "usual"
FEWEST = 16  # finite ones needed before anything can be a spike
GOOD, NOT_FINITE, SPIKE = 0, 1, 2


class SkipState(NamedTuple):
    """State of `skip_bad_updates`; checkpoints know its fields by these names.

    Attributes:
        inner: the optimizer's state.
        history: [2, WINDOW] newest finite losses and gradient norms, the newest last; NaN: not yet.
        verdict: status of the last update: GOOD, NOT_FINITE or SPIKE.
        skipped: updates skipped so far.
    """

    inner: Any
    history: Float[Array, "2 W"]
    verdict: Int[Array, ""]
    skipped: Int[Array, ""]


def status_of(now: Float[Array, " 2"], history: Float[Array, "2 W"], factor: float | None) -> Int[Array, ""]:
    """GOOD, NOT_FINITE or SPIKE (above `factor` × the median; None: never) of (loss, gradient norm) after a history."""
    if factor is None:
        return jnp.where(jnp.isfinite(now).all(), GOOD, NOT_FINITE)
    is_spike = (now > factor * jnp.nanmedian(history, axis=1)) & ((~jnp.isnan(history)).sum(axis=1) >= FEWEST)
    return jnp.where(jnp.isfinite(now).all(), jnp.where(is_spike.any(), SPIKE, GOOD), NOT_FINITE)


def where_good(new: Any, old: Any, is_good: Bool[Array, ""]) -> Any:
    """`new` where `is_good`, bitwise `old` where not."""
    return jax.tree.map(lambda n, o: jnp.where(is_good, n, o), new, old)


def skip_bad_updates(
    tx: optax.GradientTransformation, settings: TrainingConfig
) -> optax.GradientTransformationExtraArgs:
    """The optimizer under `training.on_nan`, `on_spike` and `spike_factor`; its update also takes the `loss`."""
    tx = optax.with_extra_args_support(tx)
    skips_nan, skips_spike = settings.on_nan == "skip", settings.on_spike == "skip"

    def init(params: Any) -> SkipState:
        return SkipState(tx.init(params), jnp.full((2, WINDOW), jnp.nan, jnp.float32), jnp.int32(GOOD), jnp.int32(0))

    def update(
        gradient: Any, state: SkipState, params: Any = None, *, loss: Array, **more: Any
    ) -> tuple[Any, SkipState]:
        now = jnp.stack([loss, optax.global_norm(gradient)]).astype(jnp.float32)
        status = status_of(now, state.history, None if settings.on_spike == "none" else settings.spike_factor)
        # A spike enters the history too: where the level has changed for good, it soon is the usual one.
        history = jnp.where(
            status == NOT_FINITE, state.history, jnp.concatenate([state.history[:, 1:], now[:, None]], axis=1)
        )
        updates, inner = tx.update(gradient, state.inner, params, **more)
        is_skipped = ((status == NOT_FINITE) & skips_nan) | ((status == SPIKE) & skips_spike)
        if skips_nan or skips_spike:
            # x + (−0) is x for every x, −0 included; x + 0 is not.
            updates = where_good(updates, jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates), ~is_skipped)
            inner = where_good(inner, state.inner, ~is_skipped)
        return updates, SkipState(inner, history, status.astype(jnp.int32), state.skipped + is_skipped)

    return optax.GradientTransformationExtraArgs(init, update)


def run_optimizer(config: Config, steps: int, roles: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run, as train.run takes its steps by it and train.plan plans them."""
    return skip_bad_updates(optimizer(config, steps, roles), config.training)


def metrics_of(opt: Any) -> dict[str, Array]:
    """`status` and `skipped` of a `SkipState`; nothing of another optimizer's state."""
    return {"status": opt.verdict, "skipped": opt.skipped} if isinstance(opt, SkipState) else {}


def is_skipped(new: Any, old: Any) -> Bool[Array, ""]:
    """Whether the update between these states was skipped; False of another optimizer's."""
    return new.skipped > old.skipped if isinstance(new, SkipState) else jnp.bool_(False)


def report(
    step: int,
    metrics: Mapping[str, Any],
    settings: TrainingConfig,
    say: Callable[[str], None],
    *,
    has_saved: bool = True,
) -> None:
    """Say that update `step` was skipped, or stop the run; nothing after a good one. Waits for that update.

    Args:
        has_saved: whether there is a checkpoint to go on from.

    Raises:
        InputError: the update is bad and the configuration says stop.
    """
    status = int(metrics["status"])
    if status == GOOD:
        return
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if status == NOT_FINITE:
        rule, what = "on_nan", "not finite"
    else:
        rule, what = "on_spike", f"above {settings.spike_factor:g} × its running median"
    event = f"update {step}: loss {_number(loss)}, gradient norm {_number(norm)}: {what}"
    if getattr(settings, rule) == "skip":
        say(f"{event}; skipped (training.{rule}), {int(metrics['skipped'])} so far")
        return
    if not has_saved:
        raise InputError(
            f"{event}; stopped (training.{rule}) before anything was saved. Start again under other settings "
            f"(training.{rule}: skip, a lower lr)"
        )
    raise InputError(
        f"{event}; stopped (training.{rule}) without saving it. To go on from the newest checkpoint under other "
        f"settings (training.{rule}: skip, a lower lr), give training.resume_from this run and a new project.output_dir"
    )


def check_learned(metrics: Mapping[str, Any] | None, steps: int) -> None:
    """Refuse to end a run of `steps` updates as if all were well where none of them counts.

    Raises:
        InputError: all were skipped.
    """
    if metrics is not None and int(metrics["skipped"]) == steps:
        raise InputError(
            f"all {steps} updates were skipped (training.on_nan, on_spike), so nothing was learned; lower the lr, or "
            "look at the data with --show-rows"
        )


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)
