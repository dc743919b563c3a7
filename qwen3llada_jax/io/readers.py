"""Local data files as raw rows: each knows its file and its line or number, and one that cannot be read says why.

A row is kept as the text of its JSON, so that rows of any shape stand side by side and nothing is changed on the way
in: what one row holds does not decide the type of another's, and an absent key stays absent.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError, brief, listed
from qwen3llada_jax.io.jsonl import TWICE, BadRowError, parse_row
from qwen3llada_jax.io.objects import on_disk

Raw = dict[str, Any]  # {"row": JSON text or None, "bad": why it cannot be read or None, "file": path, "line": number}
FEATURES = {"row": "large_string", "bad": "string", "file": "string", "line": "int64"}


def raw_rows(files: list[str]) -> Iterator[Raw]:
    """The rows of these files, one after another; `line` counts lines of .jsonl and .csv, rows of the others, from 1.

    Of one in a bucket its copy is read.

    Raises:
        InputError: a file that cannot be read at all.
    """
    for name in files:
        path = on_disk(name)
        try:
            for line, row, bad in _READERS[path.suffix.lower()](path):
                yield {"row": row, "bad": bad, "file": name, "line": line}
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error


def unpacked(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The row itself.

    Raises:
        BadRowError: it is none.
    """
    if raw["bad"] is not None:
        raise BadRowError(raw["bad"])
    return parse_row(raw["row"])


def from_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of typed columns as JSON has it; a column that holds nothing in it stays, as null."""
    return {name: _from_column(value) for name, value in row.items()}


def _from_column(value: Any) -> Any:
    """A value of a typed column as JSON has it: without the nulls that stand there for absent keys, and texts that are
    stored as bytes as texts."""
    if isinstance(value, dict):
        return {name: _from_column(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"bytes": len(value)}  # no text: who needs one refuses it
    return [_from_column(inner) for inner in value] if isinstance(value, list) else value


_LFS = "version https://git-lfs.github.com/spec/"
Line = tuple[int, str | None, str | None]  # (number, JSON text, why there is none)


def _document(path: Path) -> Iterator[Line]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield 1, None, f"is not UTF-8 text (byte {error.start})"
    else:
        if text.startswith(_LFS):
            yield 1, None, "is a pointer of git-lfs, not the file itself"
        else:
            yield 1, json.dumps({"text": text}), None


def _jsonl(path: Path) -> Iterator[Line]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                yield number, text.decode("utf-8").strip(), None
            except UnicodeDecodeError as error:
                yield number, None, f"is not UTF-8 text (byte {error.start})"


def _json(path: Path) -> Iterator[Line]:
    """A list of rows, or one row a line."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    first = head.split(b"\n", 1)[0].strip()
    if not head.startswith(b"[") and first not in (b"{", b""):  # an object that goes over lines is no row
        yield from _jsonl(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_marked)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({brief(error)})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds one JSON object, not rows; make it a list of rows, or write one row a line")
    for number, row in enumerate(rows, 1):
        if _is_marked(row):
            yield number, None, TWICE
        else:
            yield number, json.dumps(row), None


class _Marked(dict):  # type: ignore[type-arg]
    """An object in which a key stood twice."""


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Marked(found)


def _is_marked(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, _Marked) or any(map(_is_marked, inner))


def _csv(path: Path) -> Iterator[Line]:
    """Every field is text, as it stands in the file; a row of another number of fields is none."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)  # else a quote that is never closed would swallow the rest in silence
        names: list[str] | None = None
        while True:
            begin = rows.line_num + 1
            try:
                row = next(rows, None)
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: is not UTF-8 text (after line {begin - 1}); save it as UTF-8") from error
            except csv.Error as error:
                if names is None or "unexpected end" in str(error):
                    raise InputError(f"{path}: not valid CSV: {error} (the row begins at line {begin})") from error
                yield begin, None, f"is not valid CSV: {error}"
                continue
            if row is None:
                return
            if not row:
                continue
            if names is None:
                names = row
                if len(set(names)) < len(names):
                    raise InputError(f"{path}: two columns of its first line have one name ({listed(names)})")
            elif len(row) == len(names):
                yield begin, json.dumps(dict(zip(names, row, strict=True))), None
            else:
                yield begin, None, "has not as many fields as the first line names columns"


def _parquet(path: Path) -> Iterator[Line]:
    from pyarrow import parquet

    with _arrow_errors(path), parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise InputError(f"{path}: two of its columns have one name ({listed(names)})")
        yield from _numbered(batch for batch in file.iter_batches(1000))


def _arrow(path: Path) -> Iterator[Line]:
    import pyarrow as pa

    with _arrow_errors(path), pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            file.seek(0)
            whole = pa.ipc.open_file(file)
            yield from _numbered(whole.get_batch(i) for i in range(whole.num_record_batches))
        else:
            yield from _numbered(reader)


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Arrow's errors about a file as one line that names it."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise InputError(f"{path}: cannot be read as {path.suffix} ({brief(error)})") from error


def _numbered(batches: Any) -> Iterator[Line]:
    number = 0
    for batch in batches:
        for typed in batch.to_pylist():
            number += 1
            yield number, json.dumps(from_columns(typed), default=str), None  # dates


_READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    ".txt": _document,
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
SUFFIXES = tuple(_READERS)
