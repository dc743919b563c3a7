"""Places that the programs write to, looked at before any work is done."""

import os
from collections.abc import Mapping
from pathlib import Path

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import check_file, home


def check_place(flag: str, path: Path, inputs: Mapping[str, Path | None], model: Path) -> None:
    """Refuse a file that cannot be written, or that would replace what is read.

    Args:
        flag: that names the file.
        inputs: flag → file that is read.
        model: its folder; no file of it is replaced.

    Raises:
        InputError: saying what to do.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{flag} {path}: no such folder {path.parent}")
    check_file(path)
    for name, read in inputs.items():
        if read is not None and any(_is_same(written, read) for written in (path, part_of(path))):
            raise InputError(f"{flag} {path} is the file of {name} too and would replace it; choose another name")
    if path.exists() and path.resolve().parent in (model.resolve(), home(model).resolve()):
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


def _is_same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)  # by another name too: a link, `./`, letters of either case
    return one.resolve() == other.resolve()
