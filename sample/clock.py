"""Seconds of work, and how many of them went into compiling."""

import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import jax.monitoring

import qwen3llada_jax as q
from qwen3llada_jax.writing.completions import Batch, Completion

_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_running: weakref.WeakSet["Clock"] = weakref.WeakSet()  # clocks that somebody still reads


def _note(event: str, duration_secs: float, **_: str | int) -> None:
    if event in _COMPILING:
        now = time.perf_counter()
        for clock in list(_running):
            clock.intervals.append((now - duration_secs, now))


jax.monitoring.register_event_duration_secs_listener(_note)


class Clock:
    """Runs from when it is made.

    Attributes:
        seconds: since then.
        compiling: of these, spent tracing and compiling.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.intervals: list[tuple[float, float]] = []  # when this process was tracing or compiling, by perf_counter
        _running.add(self)

    @property
    def seconds(self) -> float:
        """Since the clock was made."""
        return time.perf_counter() - self._begin

    @property
    def compiling(self) -> float:
        """Of `seconds`, spent tracing and compiling. JAX reports a program and the programs within it alike."""
        return length_of_union([(max(a, self._begin), b) for a, b in self.intervals])


def length_of_union(intervals: list[tuple[float, float]]) -> float:
    """Total length that the intervals cover."""
    total, end = 0.0, float("-inf")
    for a, b in sorted(intervals):
        total += max(0.0, b - max(a, end))
        end = max(end, b)
    return total


@dataclass(frozen=True)
class Timed:
    """A batch of texts, and what it took.

    Attributes:
        completions, result: as in `Batch`.
        seconds: without compiling.
        compiling: seconds of tracing and compiling.
    """

    completions: list[Completion]
    result: q.Generation
    seconds: float
    compiling: float

    @property
    def tokens_per_second(self) -> float:
        """Of all its texts together, without compiling."""
        return sum(completion.tokens for completion in self.completions) / self.seconds


def timed(batches: Iterator[Batch]) -> Iterator[Timed]:
    """Time every batch while it is written."""
    while True:
        clock = Clock()
        batch = next(batches, None)
        if batch is None:
            return
        seconds, compiling = clock.seconds, clock.compiling
        yield Timed(batch.completions, batch.result, max(seconds - compiling, 1e-9), compiling)
