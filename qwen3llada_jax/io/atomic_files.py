"""Writing files and folders so that a reader, or a crash, never meets half of one."""

import glob
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.io import buckets, objects

_BEGAN = time.time()  # parts of our own number that are older are another's: in a container numbers come again
_HOST = socket.gethostname()


def expanded(path: Path | str) -> Path:
    """A path as it is typed, with the home folder in place of `~` and `~somebody`, which a shell leaves in `--dst=~/x`.

    Raises:
        InputError: nobody of that name here; no place in a bucket, or the packages for buckets are not installed.
    """
    if buckets.is_bucket(path):
        return buckets.place(path)
    found = Path(os.path.expanduser(path))
    if str(found).startswith("~"):
        raise InputError(
            f"{shown(str(path))}: no user of that name here; write ./{path} for a folder that is called so"
        )
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: the disk is full, the place cannot be written or named, or half of a surrogate pair in the text.
    """
    if buckets.is_bucket(path):
        objects.write(path, text)
        return
    path = Path(path)
    part = path.parent / f".{path.name}.{os.getpid()}.part"  # `with_name` has none for `.`
    try:
        data = text.encode("utf-8")
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):  # the place may not even exist
            part.unlink()
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, UnicodeEncodeError):
            reason = f"character {error.start + 1} is half of a surrogate pair, {text[error.start]!a}"
        raise InputError(f"{path}: cannot be written ({reason})") from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a file whole or not at all.

    Raises:
        InputError: `source` cannot be read, the disk is full or the place cannot be written.
    """
    source = objects.on_disk(source)
    if buckets.is_bucket(target):
        objects.copy(source, target)
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise InputError(f"{target}: cannot be copied from {source} ({error.strerror or error})") from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents; in a bucket there are none to make.

    Raises:
        InputError: it cannot be made.
    """
    if buckets.is_bucket(path):
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made a folder ({error.strerror})") from error


def check_folder(path: Path, *, or_bucket: bool = False) -> None:
    """Refuse, before the work begins, a place where no folder can be made or written to.

    Args:
        or_bucket: a bucket's would do.

    Raises:
        InputError: an address (s3://…) rather than a path, a file in the way, or a place that may not be written.
    """
    if or_bucket and buckets.is_bucket(path):
        buckets.check(path)
        return
    _refuse_address(path)
    try:
        place = next(p for p in (path, *path.absolute().parents) if p.exists())
    except OSError as error:  # a name too long, say
        raise InputError(f"{path}: cannot be made a folder ({error.strerror})") from error
    if not place.is_dir():
        raise InputError(f"{path}: cannot be made a folder ({place} is a file); choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written ({place} is read-only); choose another place")


def check_file(path: Path) -> None:
    """Refuse, before the work begins, a place where no file can be written.

    Raises:
        InputError: it is a folder, or as in `check_folder`.
    """
    check_folder(path.parent)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    if is_folder:
        raise InputError(f"{path}: is a folder; name a file")


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to fill; it takes `target`'s place when the block ends without an exception.

    Until then an old `target` stays as it is, and after a failure nothing is left behind. A process killed at the one
    moment when neither stands under the name leaves the old one for `put_back`; what else a killed one left is removed
    by the next for the same name, which says so. Of a link, the folder that it leads to is replaced, not the link.

    Args:
        overwrite: replace a `target` that holds something.

    Raises:
        InputError: `target` is an address (s3://…), a file, holds something, or cannot be written (a full disk, say).
    """
    if buckets.is_bucket(target):
        with objects.new_folder(target, overwrite=overwrite) as filled:
            yield filled
        return
    _refuse_address(target)
    target = Path(os.path.realpath(target))
    put_back(target)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, not a folder; choose another place")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise InputError(f"{target}: exists and is not empty; choose another place, or ask to overwrite it")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise InputError(f"{target}: is no model folder (it has no config.json), so it is not overwritten")
    part = target.with_name(f".{target.name}.{_HOST}-{os.getpid()}.part")
    old = target.with_name(f".{target.name}.{_HOST}-{os.getpid()}.old")
    _remove_what_killed_writers_left(target)
    try:
        part.mkdir(parents=True)  # outside what is removed at the end: one that is there is somebody else's
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        yield part
        if target.exists():
            target.rename(old)
        try:
            part.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(part, is_written=True)
    _remove(old)


def put_back(target: Path) -> None:
    """Give a folder back its name, if a writer was killed between the two renames of `new_folder`; else do nothing.

    Raises:
        InputError: it cannot be renamed.
    """
    if buckets.is_bucket(target):
        return
    target = Path(os.path.realpath(target))
    if target.exists():
        return
    left = [p for p, writer in _beside(target, "old") if _is_orphan(p, writer)]
    if left:
        old = max(left, key=lambda p: p.stat().st_mtime)
        try:
            old.rename(target)
        except OSError as error:
            raise InputError(
                f"{target}: its writer was killed while it replaced it, and it is now {old}, which cannot be renamed "
                f"({error.strerror}); rename it back"
            ) from error
        print(f"{target}: put back; its writer was killed while it replaced it", file=sys.stderr)


def _beside(target: Path, ending: str) -> list[tuple[Path, int | None]]:
    """(`.NAME.HOST-PID.ending`, PID) of every writer of `target`, None for one on another host of a shared disk.

    Another model `NAME.x` has names of its own.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(?:(.+)-)?([0-9]+)\.{ending}")
    found = [(p, pattern.fullmatch(p.name)) for p in target.parent.glob(f".{glob.escape(target.name)}.*.{ending}")]
    return [(p, int(match[2]) if match[1] in (None, _HOST) else None) for p, match in found if match is not None]


def _is_alive(process: int | None) -> bool:
    if process is None:  # on another host, which alone knows
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's process
        pass
    return True


def _is_orphan(old: Path, writer: int | None) -> bool:
    """Whether the writer of `.NAME.PID.old` is gone: a living one needs the name for a moment only."""
    return not _is_alive(writer) or writer == os.getpid() or time.time() - old.stat().st_ctime > 60


def _remove_what_killed_writers_left(target: Path) -> None:
    """Remove `.NAME.PID.part` and, where `target` stands again, `.NAME.PID.old`: each holds all weights of a model."""
    for left, writer in _beside(target, "part") + (_beside(target, "old") if target.exists() else []):
        is_own = writer == os.getpid()
        if not left.is_dir() or (left.stat().st_ctime > _BEGAN if is_own else _is_alive(writer)):
            continue
        _remove(left)
        print(f"{left}: removed; its writer was killed", file=sys.stderr)


def _refuse_address(path: Path) -> None:
    """Else s3://bucket/run would become a folder `s3:` here, another one on every host."""
    if buckets.is_bucket(path):
        raise InputError(f"{path}: this is written to a disk only; name a place there, and copy it to the bucket")
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise InputError(f"{path}: is an address, not a path; name a folder of a disk (that all hosts share)")


def _remove(folder: Path, *, is_written: bool = False) -> None:
    """Remove a folder of ours.

    Args:
        is_written: writers of a failed save may put files into it, or make it anew, for a moment.
    """
    for _ in range(25):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        if is_written or folder.exists():
            time.sleep(0.2)
    print(f"{folder}: cannot be removed; nothing needs it", file=sys.stderr)


def home(folder: Path) -> Path:
    """Where a folder's config.json and tokenizer lie: in itself, or for a checkpoint RUN/checkpoints/<n> in RUN.

    A link to a checkpoint is one; a model folder that is called checkpoints/1 is none. Of a folder in a bucket they lie
    in a copy on this machine.

    Raises:
        InputError: the bucket cannot be read.
    """
    if buckets.is_bucket(folder):
        return objects.local_copy(run_of(folder), deep=False, large=False)
    places = [Path(os.path.abspath(folder)), Path(os.path.realpath(folder))]
    runs = [place.parents[1] for place in places if place.name.isdigit() and place.parent.name == "checkpoints"]
    own = Path(folder)
    return next((place for place in (own, *runs) if (place / "config.json").is_file()), runs[0] if runs else own)


def run_of(folder: Path) -> Path:
    """The folder whose config.json and tokenizer `home` gives, where it lies: in a bucket no copy of it.

    Raises:
        InputError: the bucket cannot be read.
    """
    if not buckets.is_bucket(folder):
        return home(folder)
    is_step = folder.name.isdigit() and folder.parent.name == "checkpoints"
    return folder.parents[1] if is_step and not (folder / "config.json").is_file() else folder


def remove_parts(folder: Path, names: Collection[str]) -> None:
    """Remove what `write_text` and `copy_file` left of these files when their process was killed.

    To be called by whoever holds the folder: nobody else may be writing those files. Other parts are let be. In a
    bucket there are none.
    """
    if buckets.is_bucket(folder):
        return
    for name in names:
        for part in Path(folder).glob(f".{glob.escape(name)}.*.part"):
            if part.is_file():
                part.unlink(missing_ok=True)
