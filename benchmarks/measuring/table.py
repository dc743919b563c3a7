"""Readings as a table: medians with their ranges, and others' time over ours, reading by reading."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.measuring.collecting import Collection, Found, Row
from benchmarks.measuring.machine import sentence
from benchmarks.measuring.rows import MATMUL, MATMUL_FLOPS
from benchmarks.peers.reading import OURS, Reading

NAMES = {OURS: "ours", "torch": "torch", "compile": "torch.compile", "dllm": "dllm's manner"}
BUSY = 0.05  # of the machine: a reading during which others used more was not taken on a quiet one
_NONE = "–"


class Range(NamedTuple):
    median: float
    least: float
    most: float


def range_of(values: Sequence[float]) -> Range:
    return Range(statistics.median(values), min(values), max(values))


def ratio(theirs: Sequence[Reading], ours: Sequence[Reading], name: str = "seconds") -> Range:
    """Theirs over ours, of readings that were taken one after the other; above 1 ours is ahead."""
    return range_of([a[name] / b[name] for a, b in zip(theirs, ours, strict=False)])


def markdown(collection: Collection, rows: Sequence[Row]) -> str:
    """The table of the rows that have readings, what it was measured on, and how quiet that was."""
    found = collection.found
    shown = [row for row in rows if found.get(row.name, {}).get(OURS)]
    limit = _limit(found)
    heads = ["", *NAMES.values(), "memory, GB", "system", "of the limit"]
    lines = [heads, ["---"] * len(heads), *([_what(row, found), *_cells(row, found, limit)] for row in shown)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{_notes(collection, shown, limit)}"


def _what(row: Row, found: Found) -> str:
    if not row.same_text:
        return row.what
    return f"{row.what} {'=' if len(texts(row, found)) == 1 else '≠'}"


def texts(row: Row, found: Found) -> set[str]:
    """What was written, over all ways and readings."""
    return {one["text"] for of_way in found[row.name].values() for one in of_way}


def _cells(row: Row, found: Found, limit: float | None) -> list[str]:
    of_row = found[row.name]
    ours = of_row[OURS]
    cells = [_seconds(ours)]
    for way in list(NAMES)[1:]:
        theirs = of_row.get(way)
        cells.append(f"{_seconds(theirs)}: {_times(ratio(theirs, ours))}" if theirs else _NONE)
    done = [of_row[way] for way in NAMES if of_row.get(way)]
    memory = [f"{range_of([x['peak_gb'] for x in readings]).median:.2f}" for readings in done]
    share = _NONE
    if row.flops is not None:
        rate = row.flops / range_of([x["seconds"] for x in ours]).median / 1e9
        is_float32 = row.arguments.get("dtype", "float32") == "float32"  # as the limit is
        share = f"{rate:.0f} GFLOP/s" + (f", {rate / limit:.0%}" if limit and is_float32 else "")
    return [*cells, " / ".join(memory), " / ".join(map(_system, done)), share]


def _seconds(readings: Sequence[Reading]) -> str:
    middle, least, most = range_of([x["seconds"] for x in readings])
    unit, by = ("s", 1) if middle >= 1 else ("ms", 1000)
    shown = [f"{x * by:,.0f}" if x * by >= 100 else f"{x * by:.3g}" for x in (middle, least, most)]
    return f"{shown[0]} {unit} ({shown[1]} … {shown[2]})"


def _system(readings: Sequence[Reading]) -> str:
    """Of the processor's time, the system's (page faults, above all)."""
    if "system" not in readings[0]:
        return _NONE
    return f"{range_of([x['system'] / (x['user'] + x['system']) for x in readings]).median:.0%}"


def _times(found: Range) -> str:
    return f"**{found.median:.2f}×** ({found.least:.2f} … {found.most:.2f})"


def _limit(found: Found) -> float | None:
    """GFLOP/s of the faster of the two plain matrix products; None where they were not read."""
    read = [readings for readings in found.get(MATMUL, {}).values() if readings]
    medians = [range_of([x["seconds"] for x in readings]).median for readings in read]
    return max((MATMUL_FLOPS / seconds / 1e9 for seconds in medians), default=None)


def _notes(collection: Collection, shown: Sequence[Row], limit: float | None) -> str:
    readings = [one for row in shown for of_way in collection.found[row.name].values() for one in of_way]
    counts = range_of([len(of_way) for row in shown for of_way in collection.found[row.name].values()] or [0])
    many = f"{counts.least:.0f}" if counts.least == counts.most else f"{counts.least:.0f} to {counts.most:.0f}"
    busy = sum(one.get("others", 0) > BUSY for one in readings)
    unknown = sum("others" not in one for one in readings)
    quiet = "the system does not say what others used" if unknown else f"others used over {BUSY:.0%} of it in {busy}"
    return (
        f"{sentence(collection.machine)}. {many} readings of each, medians and ranges; "
        f"of all {len(readings)} readings, {quiet}." + (f" The limit: {limit:.0f} GFLOP/s." if limit else "")
    )
