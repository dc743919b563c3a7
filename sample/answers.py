"""Finished texts as the lines of a .jsonl file, and whether a place can be written to at all.

prompt, messages or infill   what was asked, and the other columns of its line
text, tokens                 what was written, and how many tokens the model wrote in it
error                        only where nothing could be written (text is null): why
nfe                          forward passes
seconds, tokens_per_second   of the whole batch, without compiling
seed, number, sample         what its random draws depend on: number of the prompt, and of the sample, from 0

While it is written the file is NAME.part, with every finished line, and .NAME.command.json tells of which command it
is: the same command goes on from there.
"""

import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from qwen3llada_jax.errors import InputError, brief
from qwen3llada_jax.io.atomic_files import check_file, home, write_text
from qwen3llada_jax.io.buckets import is_bucket
from qwen3llada_jax.writing.requests import Request

from .clock import Timed

COLUMNS = ("text", "tokens", "error", "nfe", "seconds", "tokens_per_second", "seed", "number", "sample")
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # file systems without


def check_place(flag: str, path: Path, inputs: Mapping[str, Path | None], model: Path) -> None:
    """Refuse a file that cannot be written, or that would replace what is read.

    Args:
        flag: that names the file.
        inputs: flag → file that is read.
        model: its folder; no file of it is replaced.

    Raises:
        InputError: saying what to do.
    """
    if is_bucket(path):
        check_file(path)  # which refuses it
    if not path.absolute().parent.is_dir():
        raise InputError(f"{flag} {path}: no such folder {path.parent}")
    check_file(path)
    for name, read in inputs.items():
        if (
            read is not None
            and not is_bucket(read)
            and any(_is_same(written, read) for written in (path, part_of(path)))
        ):
            raise InputError(f"{flag} {path} is the file of {name} too and would replace it; choose another name")
    if path.exists() and not is_bucket(model) and path.resolve().parent in (model.resolve(), home(model).resolve()):
        raise InputError(f"{flag} {path} is a file of the model and would be replaced; choose another name")
    probe = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be written ({error.strerror}); choose another place") from error


def part_of(path: Path) -> Path:
    """The name that a file has while it grows."""
    return path.with_name(path.name + ".part")


def check_columns(requests: Sequence[Request]) -> None:
    """Refuse what the lines cannot hold, before any work is done.

    Raises:
        InputError: columns that would be written over, or a number that is none in JSON.
    """
    for request in requests:
        for name, value in request.extra.items():
            if name in COLUMNS:
                raise InputError(
                    f"--out writes a column {name!r}; prompt {request.number + 1} has one too: rename it there"
                )
            try:
                json.dumps(value, allow_nan=False)
            except ValueError as error:
                raise InputError(
                    f"prompt {request.number + 1}: its column {name!r} holds NaN or an infinite number, which JSON has "
                    "not and --out would carry through; write null there"
                ) from error


def fingerprint(requests: Sequence[Request]) -> str:
    """Of all that is asked."""
    digest = hashlib.sha256()
    for r in requests:
        digest.update(json.dumps([r.number, r.sample, r.kind, r.given, r.ids, r.extra]).encode())
    return digest.hexdigest()


def records(batch: Timed, seed: int) -> list[dict[str, Any]]:
    """The lines of a batch."""
    return [
        {
            completion.request.kind: completion.request.given,
            **completion.request.extra,
            "text": None if completion.error else completion.text,
            "tokens": completion.tokens,
            **({"error": completion.error} if completion.error else {}),
            "nfe": completion.nfe,
            "seconds": round(batch.seconds, 4),
            "tokens_per_second": round(batch.tokens_per_second, 2),
            "seed": seed,
            "number": completion.request.number,
            "sample": completion.request.sample,
        }
        for completion in batch.completions
    ]


@contextmanager
def growing(
    path: Path, command: Mapping[str, Any], requests: Sequence[Request], rows: int
) -> Iterator[tuple[BinaryIO, int]]:
    """A file that grows as NAME.part and takes its name when all is done; gives it and how many lines it has already.

    After an interruption NAME.part has every finished line, and an older file of that name is as it was. The same
    command goes on with the first batch that is not whole. No two jobs write it at once.

    Args:
        command: all that decides what the lines are.
        rows: of a batch.

    Raises:
        InputError: another job writes it, it holds lines of another command, or it cannot be written.
    """
    part, note = part_of(path), path.with_name(f".{path.name}.command.json")
    try:
        with part.open("a+b") as stream:
            _lock(stream, part)
            done = _go_on(stream, part, note, json.loads(json.dumps(command)), requests, rows)
            yield stream, done
            part.replace(path)
            note.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{part}: cannot be written ({error.strerror})") from error


def add(stream: BinaryIO, lines: Sequence[dict[str, Any]]) -> None:
    """Append lines; they are on the disk when this returns."""
    stream.write(b"".join(_encoded(line) for line in lines))
    stream.flush()
    os.fsync(stream.fileno())


def _is_same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)  # by another name too: a link, `./`, letters of either case
    return one.resolve() == other.resolve()


def _encoded(line: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # a column carried through has half of a surrogate pair, which only an escape can say
        return (json.dumps(line, allow_nan=False) + "\n").encode("ascii")


def _lock(stream: BinaryIO, part: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"{part} is being written by another job; wait until it ends, or choose another --out"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"{part}: its file system has no locks; see that one job at a time writes it", file=sys.stderr)
    if not part.exists() or not os.path.samestat(part.stat(), os.fstat(stream.fileno())):
        raise InputError(f"{part}: another job has just finished it; run this again, or choose another --out")


def _go_on(
    stream: BinaryIO, part: Path, note: Path, command: dict[str, Any], requests: Sequence[Request], rows: int
) -> int:
    """Lines that are kept: those of whole batches of the same command."""
    stream.seek(0)
    lines = [line for line in stream.read().split(b"\n")[:-1] if line]  # behind the last end of line is half a line
    if not lines:
        stream.truncate(0)
        write_text(note, json.dumps(command, indent=1) + "\n")
        return 0
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if before != command:
        other = _difference(before, command) if before else "of which nothing is known"
        raise InputError(
            f"{part} holds {len(lines):,} answers of another command ({other}); remove it, or choose another --out"
        )
    try:
        found = [(line["number"], line["sample"]) for line in map(json.loads, lines)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{part} is damaged; remove it, or choose another --out") from error
    if found != [(r.number, r.sample) for r in requests[: len(found)]]:
        raise InputError(f"{part} holds other answers than these; remove it, or choose another --out")
    kept = len(found) if len(found) == len(requests) else len(found) // rows * rows
    stream.truncate(sum(len(line) + 1 for line in lines[:kept]))
    print(f"{part}: goes on after {kept:,} of {len(requests):,} answers", file=sys.stderr)
    return kept


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
    if name == "asked":
        return "other prompts"
    return f"{name} was {brief(before.get(name), 60)}, not {brief(now.get(name), 60)}"
