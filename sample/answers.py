"""Finished texts as the lines of a .jsonl file.

prompt, messages or infill   what was asked, and the other columns of its line
text, tokens                 what was written, and how many tokens the model wrote in it
nfe                          forward passes
seconds, tokens_per_second   of the whole batch, without compiling
seed, number, sample         what its random draws depend on: number of the prompt, and of the sample, from 0
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from qwen3llada_jax.errors import InputError
from sample.prompts import Request
from sample.writing import Batch

COLUMNS = ("text", "tokens", "nfe", "seconds", "tokens_per_second", "seed", "number", "sample")


def check_out(path: Path, requests: Sequence[Request]) -> None:
    """Refuse what cannot be written, before any work is done.

    Raises:
        InputError: another kind of file, no folder for it, or columns that would be written over.
    """
    if path.suffix != ".jsonl":
        raise InputError(f"--out {path}: unknown kind of file; use .jsonl")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: no such folder {path.parent}")
    for request in requests:
        for name in request.extra:
            if name in COLUMNS:
                raise InputError(
                    f"--out writes a column {name!r}; prompt {request.number} has one too: rename it there"
                )


def records(batch: Batch, seed: int) -> list[dict[str, Any]]:
    """The lines of a batch."""
    return [
        {
            written.request.kind: written.request.given,
            **written.request.extra,
            "text": written.text,
            "tokens": written.tokens,
            "nfe": written.nfe,
            "seconds": round(batch.seconds, 4),
            "tokens_per_second": round(batch.tokens_per_second, 2),
            "seed": seed,
            "number": written.request.number,
            "sample": written.request.sample,
        }
        for written in batch.written
    ]


@contextmanager
def growing(path: Path) -> Iterator[TextIO]:
    """A file that grows as NAME.part and takes its name when all is done.

    After an interruption NAME.part has every finished line, and an older file of that name is as it was.

    Raises:
        InputError: the disk is full or the place cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            yield stream
        part.replace(path)
    except OSError as error:
        raise InputError(f"{part}: cannot be written ({error.strerror})") from error


def add(stream: TextIO, lines: Sequence[dict[str, Any]]) -> None:
    """Append lines; they are on the disk when this returns."""
    stream.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    stream.flush()
    os.fsync(stream.fileno())
