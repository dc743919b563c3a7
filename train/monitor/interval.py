"""Metrics of all updates between two lines: sums are kept on the devices, so that no update is waited for.

A line holds means over its interval, each weighted by what it is a mean of: `loss` by tokens (sft: rows), `ce` and its
bands by noised tokens, norms by updates. Updates that were skipped count in none of them. Of a mixture of objectives
the loss is also told of each, `loss_NAME`, beside the number of its updates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ..step import BANDS, of_clean_text, summarize

# Of one update, summed; `grad_norm_max` is the largest instead, and `param_norm` the last.
_SUMS = ("loss", "weight", "ce", "noised", "tokens", "next_ce", "next", "grad_norm", "update_norm", "updates")
_BY_BAND = ("band_ce", "band_noised")
_BY_OBJECTIVE = ("loss_of", "weight_of", "updates_of")  # of a mixture

# What `add` takes of an update's metrics.
NEEDED = ("loss", "grad_norm", "update_norm", "param_norm", "taken", "sums")

Total = dict[str, Float[Array, "*n"]]


def fresh(mesh: Mesh, kept: Mapping[str, Any] | None = None, *, objectives: int = 0) -> Total:
    """Of no update, or of those that a checkpoint `kept` the total of; `objectives`: how many a mixture has."""
    total: dict[str, Any] = {name: np.zeros((), np.float32) for name in (*_SUMS, "grad_norm_max", "param_norm")}
    total |= {name: np.zeros(BANDS, np.float32) for name in _BY_BAND}
    if objectives:
        total |= {name: np.zeros(objectives, np.float32) for name in _BY_OBJECTIVE}
    total = {name: np.asarray((kept or {}).get(name, value), np.float32) for name, value in total.items()}
    everywhere = NamedSharding(mesh, P())  # as `add` leaves it, so that it is compiled once
    return {name: jax.make_array_from_callback(x.shape, everywhere, x.__getitem__) for name, x in total.items()}


@jax.jit
def add(total: Total, metrics: Mapping[str, Any]) -> Total:
    """The total with one update more, whose `metrics` the training step gave."""
    sums, taken = metrics["sums"], metrics["taken"]
    now = {
        **{name: sums[name] for name in ("weight", "ce", "noised", "tokens", "next_ce", "next", *_BY_BAND)},
        "loss": metrics["loss"] * sums["weight"],
        "grad_norm": metrics["grad_norm"],
        "update_norm": metrics["update_norm"],
        "updates": jnp.float32(1),
    }
    if "updates_of" in sums:
        of = lambda x: jnp.where(sums["updates_of"] > 0, x, 0.0)  # noqa: E731
        now |= {"loss_of": of(now["loss"]), "weight_of": of(now["weight"]), "updates_of": sums["updates_of"]}
    new = {name: total[name] + jnp.where(taken, value, 0.0) for name, value in now.items()}
    norm = metrics["grad_norm"]
    new["grad_norm_max"] = jnp.maximum(total["grad_norm_max"], jnp.where(jnp.isfinite(norm), norm, 0.0))
    new["param_norm"] = metrics["param_norm"]
    return new


def read(total: Total, objectives: Sequence[str] = ()) -> dict[str, float]:
    """The line of an interval; NaN where it has nothing, as all where every update was skipped. Waits for the last.

    Args:
        objectives: names of those of a mixture; one that no update drew has no `loss_NAME`.
    """
    t: dict[str, Any] = {name: np.asarray(value, np.float64) for name, value in jax.device_get(total).items()}
    updates = float(t["updates"])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {k: float(v) for k, v in summarize(t["loss"] / t["weight"], t).items()}
        values |= of_clean_text(t)
        values |= _of_objectives(t, objectives)
        values |= {name: float(t[name] / updates) if updates else math.nan for name in ("grad_norm", "update_norm")}
    largest = float(t["grad_norm_max"])
    return values | {"grad_norm_max": largest if largest or updates else math.nan, "param_norm": float(t["param_norm"])}


def _of_objectives(t: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for i, name in enumerate(names):
        if t["updates_of"][i]:
            found[f"loss_{name}"] = float(t["loss_of"][i] / t["weight_of"][i])
        found[f"updates_{name}"] = int(t["updates_of"][i])
    return found


def to_json(total: Total) -> dict[str, Any]:
    """The total as a checkpoint keeps it, bit for bit."""
    return {name: np.asarray(value).tolist() for name, value in jax.device_get(total).items()}
