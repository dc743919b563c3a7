"""How fast a run is: tokens/s, FLOP utilization, and the share of time that it waits for data."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from qwen3llada_jax.model.config import ModelConfig

from ..config.schema import Config
from ..data.loader import Batch
from .model_flops import Reading, Readings, mean_training_flops_of_row, peak_flops

# What is measured, here and by the watch: the only metrics that differ between two equal runs.
MEASURED = ("tokens_per_second", "real_tokens_per_second", "seconds_per_update", "data_wait", "mfu", "elapsed", "time")


def peak_of_run(config: Config) -> float | None:
    """FLOP/s of all devices together: `project.peak_tflops` of each or the published figure; None if unknown."""
    override = config.project.peak_tflops
    one = peak_flops(jax.devices()[0]) if override is None else override * 1e12
    return None if one is None else one * jax.device_count()


class Throughput:
    """Counts what went through since the last reading. Compiling, evaluations and saves are taken out with `paused`.

    Args:
        peak: FLOP/s of all devices together; None: no utilization is given.
        readings: of objectives that are mixed, each counts by its share, not by which was drawn.
    """

    def __init__(
        self,
        model: ModelConfig,
        peak: float | None,
        clock: Callable[[], float] = time.perf_counter,
        readings: Readings = ((1, Reading()),),
    ):
        self._model, self._peak, self._clock, self._readings = model, peak, clock, readings
        self._reset()

    def _reset(self) -> None:
        self._since, self._waited = self._clock(), 0.0
        self._updates = self._tokens = self._real = self._flops = 0

    def count(self, batch: Batch) -> None:
        """One more update was started, on this batch."""
        self._updates += 1
        self._tokens += batch.tokens.size
        self._real += int(batch.real_length.sum())
        if self._peak is not None:
            rows, length = batch.tokens.shape
            self._flops += rows * mean_training_flops_of_row(self._model, length, self._readings)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for the next batch."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def paused(self, pending: Any) -> Iterator[None]:
        """The block is no training; `pending` are results of the last update, which is finished first."""
        jax.block_until_ready(pending)
        start = self._clock()
        yield
        self._since += self._clock() - start

    def read(self) -> dict[str, float]:
        """Rates since the last reading, to be called when the counted updates are finished (their metrics read)."""
        seconds = self._clock() - self._since
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "seconds_per_update": seconds / self._updates,
            "data_wait": self._waited / seconds,
        }
        if self._real != self._tokens:
            rates["real_tokens_per_second"] = self._real / seconds
        if self._peak is not None:
            rates["mfu"] = self._flops / seconds / self._peak
        self._reset()
        return rates
