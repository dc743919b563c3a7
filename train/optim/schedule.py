"""The learning rate of each update: a linear warm-up, then a constant, linear, cosine or wsd shape."""

import optax

from ..config.schema import Config


def schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate of update 0, 1, …: a linear warm-up, then the configured shape.

    `wsd` (warm-up, stable, decay: MiniCPM, arXiv 2404.06395) stays at the peak until its last
    `decay_ratio` · steps updates and falls linearly in them.
    """
    peak, warmup = config.training.lr, round(config.training.warmup_ratio * steps)
    o, rest = config.optim, max(steps - warmup, 1)
    floor = peak * o.min_lr_ratio
    fall = max(round((0.1 if o.decay_ratio is None else o.decay_ratio) * steps), 1)
    shapes = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, floor, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, o.min_lr_ratio),
        "wsd": optax.linear_schedule(peak, floor, fall, transition_begin=max(rest - fall, 0)),
    }
    # The first update already moves: update i of the warm-up runs at (i + 1) / warmup of the peak.
    climb = optax.linear_schedule(peak / max(warmup, 1), peak * (1 + 1 / max(warmup, 1)), max(warmup, 1))
    return optax.join_schedules([climb, shapes[o.scheduler]], [warmup])
