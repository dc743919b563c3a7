"""Taking readings by turns, and keeping each as soon as it is there: a run that was killed goes on where it was."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine
from benchmarks.peers import reading, torch_models
from benchmarks.peers.reading import Reading
from benchmarks.peers.shapes import Shape
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import make_folder, new_folder, write_text

Found = dict[str, dict[str, list[Reading]]]  # by row, by way: the readings, in the order they were taken in


@dataclass(frozen=True)
class Row:
    """A line of a table: a piece of work, and the ways it is done.

    Attributes:
        what: as it stands in the table.
        work: module of peers/.
        arguments: of its `read`.
        shape: of the random model that it needs a folder of; None: it needs none.
        is_causal: that model is autoregressive.
        flops: of what `seconds` is the time of; None: not told.
        tokens: the same.
        same_text: all ways must write the same tokens.
        keeps_programs: JAX's compilation cache is on, and filled by a reading that does not count.
    """

    name: str
    what: str
    work: str
    ways: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape | None = None
    is_causal: bool = False
    flops: float | None = None
    tokens: int | None = None
    same_text: bool = False
    keeps_programs: bool = False


@dataclass(frozen=True)
class Collection:
    """The readings of one file, and what they were taken on."""

    path: Path
    machine: dict[str, Any]
    found: Found

    def write(self) -> None:
        make_folder(self.path.parent)
        write_text(self.path, json.dumps({"machine": self.machine, "rows": self.found}, indent=1) + "\n")


def opened(path: Path) -> Collection:
    """What is in a file of readings; nothing yet, where there is none.

    Raises:
        InputError: it is no file of readings.
    """
    if not path.exists():
        return Collection(path, machine.describe(), {})
    try:
        data = json.loads(path.read_text())
        return Collection(path, data["machine"], data["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no file of readings ({error}); give another --out") from error


def continued(path: Path, **more: Any) -> Collection:
    """The same, to be added to.

    Args:
        more: facts of the machine that count beside the usual ones.

    Raises:
        InputError: it is no file of readings, or its readings are of another machine, versions or code.
    """
    collection, now = opened(path), machine.describe() | more
    if not collection.found:
        return replace(collection, machine=now)
    if other := machine.differences(collection.machine, now):
        raise InputError(
            f"{path}: its readings are of another {' and '.join(other)}, and would be mixed with these; "
            "give another --out, or remove it"
        )
    return collection


def collect(
    collection: Collection,
    rows: Sequence[Row],
    count: int,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    until: float | None = None,
) -> list[str]:
    """Take what is missing of `count` readings for each row and way, the ways by turns.

    Args:
        until: `time.monotonic()` at which what is not done is given up.

    Returns:
        Names of the readings that were given up.

    Raises:
        ReadingFailedError: a reading's process failed. What was read is kept.
    """
    left = []
    all_readings = sum(count * len(row.ways) for row in rows)
    done = sum(min(count, len(collection.found.get(row.name, {}).get(way, []))) for row in rows for way in row.ways)
    for row in rows:
        of_row = collection.found.setdefault(row.name, {})
        for number in range(count):
            for way in row.ways:
                of_way = of_row.setdefault(way, [])
                if len(of_way) > number:
                    continue
                seconds = None if until is None else until - time.monotonic()
                if seconds is not None and seconds < 5:
                    left.append(f"{row.name} {way}")
                    continue
                try:
                    of_way.append(_taken(row, way, collection.path.parent, seconds))
                except subprocess.TimeoutExpired:
                    left.append(f"{row.name} {way}")
                    continue
                collection.write()
                done += 1
                time_taken = f"{of_way[-1]['seconds']:.3g} s" if "seconds" in of_way[-1] else "done"
                say(f"[{done}/{all_readings}] {row.name}, {way}, {number + 1} of {count}: {time_taken}")
    return left


def _taken(row: Row, way: str, folder: Path, timeout: float | None) -> Reading:
    arguments, environment = dict(row.arguments), {}
    if row.shape is not None:
        arguments["folder"] = str(model_folder(folder, row.shape, is_causal=row.is_causal).absolute())
    if row.keeps_programs and way == reading.OURS:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").absolute()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        reading.take(row.work, way, arguments, environment, timeout)
    others = machine.Others()
    found = reading.take(row.work, way, arguments, environment, timeout)
    share = others.share()
    return found if share is None else {**found, "others": round(share, 3)}


def model_folder(folder: Path, shape: Shape, *, is_causal: bool) -> Path:
    """A random model of that shape, made once."""
    sizes = "x".join(str(shape[name]) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    place = folder / f"model-{sizes}{'-causal' * is_causal}"
    if not place.exists():
        with new_folder(place) as part, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            process.submit(torch_models.make_folder, part, dict(shape), is_causal=is_causal).result()
    return place
