"""The eval loss, on the same rows under the same noise every time."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .config.schema import Config
from .data import loader
from .objectives.example import DeviceBatch
from .step import of_clean_text, rows_of_a_pass, summarize, to_devices


class StoppedError(Exception):
    """An evaluation that was given up."""


def evaluate(
    eval_fn: Any,
    params: Any,
    rows: loader.Rows,
    pad_id: int,
    config: Config,
    mesh: Mesh,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Compute metrics over the eval rows: the same rows under the same noise every time, however they are batched.

    `eval_bound_perplexity`, exp of the loss, bounds the text's perplexity from above; under noise that is no mask
    there is no such bound.

    Args:
        should_stop: asked before each batch.

    Raises:
        StoppedError: it said yes.
    """
    total: dict[str, Any] = {}
    for batch in batches_of(rows, pad_id, config, mesh):
        if should_stop():
            raise StoppedError
        sums = jax.device_get(eval_fn(params, batch))
        total = {k: total.get(k, 0.0) + v.astype(np.float64) for k, v in sums.items()}
    loss = total["loss"] / total["weight"]
    found = summarize(jnp.float32(loss), total) | of_clean_text(total)
    metrics = {f"eval_{k}": float(v) for k, v in found.items()}
    if config.training.noise.noise_type == "mask":
        with np.errstate(over="ignore"):
            metrics["eval_bound_perplexity"] = float(np.exp(loss))
    return metrics


def batches_of(rows: loader.Rows, pad_id: int, config: Config, mesh: Mesh) -> Iterator[DeviceBatch]:
    """The batches of an evaluation, all of one shape.

    Answers are padded with EOS as in training: each to the longest of its update's worth of rows.
    """
    size, _ = rows_of_a_pass(config, mesh)
    update = config.training.batch_size
    whole = max(1, min(len(rows) // update, config.evaluation.eval_max_batches))
    used = np.arange(whole * update) % len(rows)
    for start in range(0, len(used), size):
        row_ids = np.arange(start, start + size)
        together = used[start // update * update :][:update]
        batch = loader.make_batch(
            rows, used[row_ids], pad_id, length=config.training.max_length, at_least=int(rows.sizes[together].max()),
            laid_out=int(rows.sizes[used].max()), pads_answers=config.pads_answers,
        )  # fmt: skip
        yield to_devices(batch, mesh, row_ids)
