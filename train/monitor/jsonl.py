"""Metrics as lines of JSON, whole after any interruption, and as a line under a progress bar."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.io.buckets import is_bucket, place
from qwen3llada_jax.io.growing_object import GrowingObject


class JsonLines:
    """A file of one JSON object a line. Reopened at step n, it forgets what came after n, and what `forget` says.

    Without `is_writer` nothing is read or written: of several processes one keeps the file.
    """

    def __init__(
        self, path: Path, resume_at: int, *, is_writer: bool = True, forget: Callable[[Any], bool] = lambda _: False
    ):
        self._stream: IO[str] | GrowingObject | None = None
        if not is_writer:
            return
        records = read_lines(path) if path.exists() else []
        kept = [record for record in records if record["step"] <= resume_at and not forget(record)]
        text = "".join(_line(record) for record in kept)
        write_text(path, text)
        self._stream = GrowingObject(path, text) if is_bucket(path) else path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, flushed to the system; to a bucket within a quarter of a minute."""
        if self._stream is not None:
            self._stream.write(_line(record))
            self._stream.flush()

    def settle(self) -> None:
        """Wait until a bucket has all that is written; on a disk, whose system has it, there is nothing to wait for.

        Raises:
            InputError: it cannot be written there.
        """
        if isinstance(self._stream, GrowingObject):
            self._stream.settle()

    def close(self) -> None:
        if self._stream is None:
            return
        if isinstance(self._stream, GrowingObject):
            self._stream.close()
            return
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a metrics file; a last line cut short by a crash is left out.

    Raises:
        InputError: no such file, or not one of records.
    """
    try:
        lines = place(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text; move it away") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}: line {number} is not JSON; fix the file or move it away") from error
            break
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is not int or not 0 <= step < 2**31:
            raise InputError(f"{path}: line {number} is no record with a step; fix the file or move it away")
        records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    """NaN is no JSON: a metric without a value is null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean) + "\n"
