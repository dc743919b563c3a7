"""The optimiser, from optax: clipping, AdamW with masked decay, warm-up and a schedule."""

from typing import Any

import jax
import optax

from train.config import Config


def schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate of update 0, 1, …: a linear warm-up, then the configured shape."""
    peak, warmup = config.training.lr, round(config.training.warmup_ratio * steps)
    rest = max(steps - warmup, 1)
    shapes = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }
    # The first update already moves: update i of the warm-up runs at (i + 1) / warmup of the peak.
    climb = optax.linear_schedule(peak / max(warmup, 1), peak * (1 + 1 / max(warmup, 1)), max(warmup, 1))
    return optax.join_schedules([climb, shapes[config.optim.scheduler]], [warmup])


def optimiser(config: Config, steps: int) -> optax.GradientTransformation:
    """Moments are kept in the parameters' dtype, float32."""
    parts = []
    if config.training.grad_clip > 0:
        parts.append(optax.clip_by_global_norm(config.training.grad_clip))
    b1, b2 = config.optim.betas
    parts.append(
        optax.adamw(
            schedule(config, steps),
            b1=b1,
            b2=b2,
            eps=config.optim.eps,
            weight_decay=config.training.weight_decay,
            mask=is_matrix,
        )
    )
    return optax.chain(*parts)


def is_matrix(params: Any) -> Any:
    """True for projections and tables; False for norms and biases, which are not decayed."""

    def one(path: Any, _: Any) -> bool:
        return path[-1].key.endswith(("_proj", "embed_tokens", "lm_head"))

    return jax.tree_util.tree_map_with_path(one, params)
