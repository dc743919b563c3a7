"""How cost grows: series of readings that differ in one size, and the straight lines that they should lie on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.measuring.collecting import Found, Row
from benchmarks.measuring.table import range_of
from benchmarks.peers.reading import OURS
from benchmarks.peers.shapes import SMALL, Shape, attention_flops, forward_flops

FLAT = 0.15  # time per token may differ by so much between batches


@dataclass(frozen=True)
class Point:
    """One reading's size, and what of it grows."""

    size: int
    row: Row


@dataclass(frozen=True)
class Measured:
    """The medians of a point.

    Attributes:
        seconds: of the step, or of writing all texts.
        per_token: microseconds.
        memory: GB, the peak of the process.
    """

    size: int
    seconds: float
    per_token: float
    memory: float


def series(longest: int) -> dict[str, list[Point]]:
    """By what grows: rows of a batch, layers, tokens of a row (to `longest`), texts that are written at once."""
    lengths = [length for length in (256, 512, 1024, 2048, 4096, 8192) if length <= longest]
    return {
        "batch": [Point(B, _step(f"batch-{B}", SMALL, B, 256)) for B in (1, 2, 4, 8, 16, 32)],
        "layers": [Point(n, _step(f"layers-{n}", {**SMALL, "num_hidden_layers": n}, 4, 256)) for n in (2, 4, 8, 16)],
        "length": [Point(L, _step(f"length-{L}", SMALL, 1, L)) for L in lengths],
        "texts": [Point(B, _texts(B)) for B in (1, 4, 16, 64)],
    }


def _step(name: str, shape: Shape, rows: int, length: int) -> Row:
    arguments = {"shape": shape, "rows": rows, "length": length, "times": 2, "warm_up": 2}
    return Row(name, name, "training", (OURS,), arguments, tokens=rows * length)


def _texts(rows: int) -> Row:
    arguments = {"kind": "cached", "mask": SMALL["vocab_size"] - 1, "rows": rows, "steps": 32, "times": 2}
    return Row(f"texts-{rows}", "", "writing", (OURS,), arguments, SMALL, tokens=128 * rows)


def measured(points: Sequence[Point], found: Found) -> list[Measured]:
    """Of the points that have readings."""
    medians = []
    for point in points:
        if readings := found.get(point.row.name, {}).get(OURS):
            seconds = range_of([x["seconds"] for x in readings]).median
            memory = range_of([x["peak_gb"] for x in readings]).median
            medians.append(Measured(point.size, seconds, seconds / (point.row.tokens or 1) * 1e6, memory))
    return medians


@dataclass(frozen=True)
class Line:
    """base + slope · size, by least squares of the relative errors; `off` is the largest of these."""

    base: float
    slope: float
    off: float

    def at(self, size: float) -> float:
        return self.base + self.slope * size


def line(sizes: Sequence[float], values: Sequence[float]) -> Line:
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    (base, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(x)), rcond=None)
    return Line(float(base), float(slope), float(np.abs((base + slope * x) / y - 1).max()))


def spread(values: Sequence[float]) -> float:
    """How much more the largest is than the least."""
    return max(values) / min(values) - 1


def attention_share(shape: Shape, length: int) -> float:
    """Of all FLOPs, attention's over all pairs of a row."""
    return attention_flops(shape, 1, length) / forward_flops(shape, 1, length)


def judgments(by_name: dict[str, list[Measured]]) -> list[str]:
    """What each series says, in a sentence; nothing of a series with fewer than two points."""
    said = []
    for name, points in by_name.items():
        if len(points) < 2:
            continue
        sizes = [p.size for p in points]
        if name == "batch":
            apart = spread([p.per_token for p in points])
            said.append(
                f"batch: time per token differs by {apart:.0%} over {sizes[0]} to {sizes[-1]} rows "
                f"({'within' if apart <= FLAT else 'beyond'} {FLAT:.0%})"
            )
        elif name == "layers":
            fit = line(sizes, [p.seconds for p in points])
            said.append(
                f"layers: {fit.base * 1e3:.0f} ms + {fit.slope * 1e3:.0f} ms a layer, the steps off that line by "
                f"{fit.off:.0%} at most"
            )
        elif name == "length":
            time, memory = (line(sizes, [getattr(p, n) for p in points]) for n in ("per_token", "memory"))
            longest = sizes[-1]
            grown = time.slope * longest / time.at(longest)
            said.append(
                f"length: time per token is off a line in L by {time.off:.0%} at most; at L {longest:,} what grows is "
                f"{grown:.0%} of it, attention {attention_share(SMALL, longest):.0%} of the FLOPs"
            )
            said.append(
                f"length: memory is {memory.base:.2f} GB + {memory.slope * 1e6:.0f} KB a token, off that line by "
                f"{memory.off:.0%} at most"
            )
        else:
            gain = points[0].per_token / points[-1].per_token
            said.append(f"texts: {sizes[-1]} at once are written {gain:.1f} times as fast as {sizes[0]}, by the token")
    return said
