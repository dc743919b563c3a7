"""The held-out loss, on the same rows under the same noise every time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train import data
from train.config import Config
from train.step import rows_of_a_pass, summarise, to_devices


def evaluate(eval_fn: Any, params: Any, rows: data.Rows, pad_id: int, config: Config, mesh: Mesh) -> dict[str, float]:
    """Metrics over the held-out rows: the same rows under the same noise every time, however they are cut up.

    Answers are padded with EOS as in training: each to the longest of its update's worth of rows.
    """
    size, _ = rows_of_a_pass(config, mesh)
    update = config.training.batch_size
    whole = max(1, min(len(rows) // update, config.evaluation.eval_max_batches))
    used = np.arange(whole * update) % len(rows)
    total: dict[str, Any] = {}
    for start in range(0, len(used), size):
        slots = np.arange(start, start + size)
        together = used[start // update * update :][:update]
        batch = data.make_batch(
            rows, used[slots], pad_id, length=config.training.max_length, at_least=int(rows.sizes[together].max()),
            pads_answers=config.pads_answers,
        )  # fmt: skip
        sums = jax.device_get(eval_fn(params, to_devices(batch, mesh, slots)))
        total = {k: total.get(k, 0.0) + v.astype(np.float64) for k, v in sums.items()}
    metrics = summarise(jnp.float32(total["loss"] / total["weight"]), total)
    return {f"eval_{k}": float(v) for k, v in metrics.items()}
