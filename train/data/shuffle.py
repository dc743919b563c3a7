"""Which rows make up the batch of a step: functions of (seed, row id) alone, so that a resumed run needs only its step.

Row id s of a run is row s mod B of the batch of step s div B. A dataset's epochs are fresh permutations. Of several
datasets, every `PERIOD` row ids are a freshly shuffled schedule that holds each of them in the share of its weight.
"""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from qwen3llada_jax.errors import InputError

PERIOD = 10_000
_PERIOD_STREAM = 0x6D6978  # keeps the periods' random numbers apart from the permutations'


def row_numbers(row_ids: Int[np.ndarray, " B"], count: int, seed: int, source: int = 0) -> Int[np.ndarray, " B"]:
    """Which of `count` rows have these ids: each epoch is a fresh permutation, ids run on across epochs."""
    epochs = row_ids // count
    numbers = np.empty(len(row_ids), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        numbers[here] = _permutation(count, seed, int(epoch), source)[row_ids[here] % count]
    return numbers


def shares(weights: tuple[float, ...]) -> Int[np.ndarray, " S"]:
    """How many of a period's `PERIOD` row ids each source gets: its weight's part, rounded so that they add up.

    Raises:
        InputError: a weight that is not positive, or too small to get a row.
    """
    if not all(w > 0 for w in weights) or not np.isfinite(sum(weights)):
        said = ", ".join(f"{w:g}" for w in weights)
        raise InputError(f"dataset.mixture: weights must be above 0 and their sum a number, not {said}")
    exact = np.asarray(weights) / sum(weights) * PERIOD
    counts = np.floor(exact).astype(np.int64)
    most_missing = np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]
    counts[most_missing] += 1
    if not counts.all():
        least = weights[int(np.argmin(counts))]
        raise InputError(
            f"dataset.mixture: weight {least:g} is less than 1/{PERIOD} of the sum {sum(weights):g}, so it would "
            "never be drawn; raise it, or leave that dataset out"
        )
    return counts


def mixture_schedule(
    row_ids: Int[np.ndarray, " B"], weights: tuple[float, ...], seed: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """(source of each row id, how many earlier ones that source had)."""
    if len(weights) == 1:
        return np.zeros(len(row_ids), np.int64), np.asarray(row_ids, np.int64)
    counts = shares(weights)
    periods = row_ids // PERIOD
    source, place = np.empty(len(row_ids), np.int64), np.empty(len(row_ids), np.int64)
    for period in np.unique(periods):
        here = periods == period
        source_of, rank = _shuffled(tuple(counts.tolist()), seed, int(period))
        source[here] = source_of[row_ids[here] % PERIOD]
        place[here] = int(period) * counts[source[here]] + rank[row_ids[here] % PERIOD]
    return source, place


def host_rows(sharding: jax.sharding.Sharding, batch_size: int, devices: set | None = None) -> Int[np.ndarray, " b"]:
    """Rows of a batch that this process's devices hold, ascending; hosts that share a data shard get the same ones.

    Args:
        sharding: of an array whose first axis is the batch's rows.
        devices: default: those of this process.

    Raises:
        ValueError: `batch_size` does not divide over the sharding.
    """
    places = sharding.devices_indices_map((batch_size,))
    mine = sharding.addressable_devices if devices is None else devices
    every = np.arange(batch_size)
    return np.unique(np.concatenate([every[index[0]] for device, index in places.items() if device in mine]))


def lanes_of(sharding: jax.sharding.Sharding, batch_size: int, hosts: dict[Any, int] | None = None) -> int:
    """Parts that a batch's rows fall into, one after another, so that each host needs the rows of one; 1: all need all,
    or what they need does not lie side by side.

    Args:
        sharding: of an array whose first axis is the batch's rows.
        hosts: of every device; default: its process.
    """
    every: set[Any] = sharding.device_set
    host_of = {device: device.process_index for device in every} if hosts is None else hosts
    of_hosts = {
        tuple(host_rows(sharding, batch_size, {device for device in every if host_of[device] == host}).tolist())
        for host in set(host_of.values())
    }
    size = batch_size // len(of_hosts)
    return len(of_hosts) if of_hosts == {tuple(range(i, i + size)) for i in range(0, batch_size, size)} else 1


@functools.lru_cache(maxsize=16)
def _permutation(count: int, seed: int, epoch: int, source: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, epoch, source]).permutation(count)


@functools.lru_cache(maxsize=2)
def _shuffled(counts: tuple[int, ...], seed: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """(source of each row of a period, how many of that source come before it)."""
    source_of = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng([seed, period, 0, _PERIOD_STREAM]).shuffle(source_of)
    rank = np.empty(len(source_of), np.int64)
    for source, count in enumerate(counts):
        rank[source_of == source] = np.arange(count)
    return source_of, rank
