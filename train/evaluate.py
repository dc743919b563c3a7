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
    """Metrics over the held-out rows: the same rows under the same noise every time, however they are batched."""
    size, _ = rows_of_a_pass(config, mesh)
    whole = max(1, min(len(rows) // config.training.batch_size, config.evaluation.eval_max_batches))
    used = np.arange(whole * config.training.batch_size) % len(rows)
    longest = int(rows.sizes[used].max())  # EOS that pads an answer counts as part of it, so all are padded alike
    total: dict[str, Any] = {}
    for start in range(0, len(used), size):
        slots = np.arange(start, start + size)
        batch = data.make_batch(rows, used[slots], pad_id, length=config.training.max_length, at_least=longest)
        sums = jax.device_get(eval_fn(params, to_devices(batch, mesh, slots)))
        total = {k: total.get(k, 0.0) + v.astype(np.float64) for k, v in sums.items()}
    metrics = summarise(jnp.float32(total["loss"] / total["weight"]), total)
    return {f"eval_{k}": float(v) for k, v in metrics.items()}
