"""Objects of a bucket: written whole or not at all, listed, removed; and copies of them on this machine.

What a bucket has not: renaming, appending, links. Who lists sees all that is written. So a folder is known to be whole
by an object that is written last and removed first. Code that needs files (tokenizers, safetensors, data) reads copies.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.buckets import COMMITTED, answering, check, client, is_answer, is_bucket, parts, place

_LARGE = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".jsonl")
_UNDER_WAY = ".uploading"  # lies in a folder while it is being filled


def write(path: Path, data: bytes | str) -> None:
    """Write an object whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY

    with answering(path):
        blob_of(path).upload_from_string(data, "application/octet-stream", retry=DEFAULT_RETRY)


def copy(source: Path, target: Path) -> None:
    """Copy a file of a disk into a bucket, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY

    with answering(target):
        blob_of(target).upload_from_filename(str(source), retry=DEFAULT_RETRY)


def upload_folder(folder: Path, target: Path, last: str | None = None) -> None:
    """Copy all files of a local folder into a bucket; the one called `last`, by which the copy is known, at the end.

    Raises:
        InputError: they cannot be written.
    """
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.name == last)
    for file in files:
        copy(file, target / str(file.relative_to(folder)))


def remove(path: Path, but: str | None = None) -> None:
    """Remove an object, and all objects under it as a folder; what makes it a model or a checkpoint first.

    Args:
        but: the object of the folder that stays.

    Raises:
        InputError: they cannot be removed.
    """
    with answering(path):
        for blob in sorted(blobs(path), key=lambda blob: not blob.name.endswith(("/config.json", f"/{COMMITTED}"))):
            if blob.name.rpartition("/")[2] != but:
                blob.delete()


def move(source: Path, target: Path) -> None:
    """Give what orbax saved another name: copied in the bucket, and taken for whole only when all of it is.

    Raises:
        InputError: it cannot be copied.
    """
    (_, before), (bucket, after) = parts(source), parts(target)
    with answering(target):
        to = client().bucket(bucket)
        for blob in sorted(blobs(source), key=lambda blob: blob.name == f"{before}/{COMMITTED}"):
            new, token = to.blob(after + blob.name.removeprefix(before)), None
            while True:
                token, _, _ = new.rewrite(blob, token=token)
                if token is None:
                    break
    remove(source)


@contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill on this machine, which is then copied to `target`, config.json last: nothing can be renamed.

    So an old folder is gone before the new one is whole; between the two it is no model folder. What a killed writer
    left is known by `.uploading` in it, and replaced.

    Args:
        overwrite: replace a model folder that stands there.

    Raises:
        InputError: `target` holds something, or cannot be written.
    """
    check(target)
    there = set(names(target))
    if there and _UNDER_WAY not in there:
        if not overwrite:
            raise InputError(f"{target}: exists and is not empty; choose another place, or ask to overwrite it")
        if "config.json" not in there:
            raise InputError(f"{target}: is no model folder (it has no config.json), so it is not overwritten")
    if _UNDER_WAY in there:
        print(f"{target}: replaced; its writer was killed", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="qwen3llada-") as scratch:
        filled = Path(scratch) / target.name
        filled.mkdir()
        try:
            yield filled
        except OSError as error:
            raise InputError(f"{filled}: cannot be written ({error.strerror or error})") from error
        write(target / _UNDER_WAY, "")
        remove(target, but=_UNDER_WAY)
        upload_folder(filled, target, last="config.json")
        remove(target / _UNDER_WAY)


def on_disk(path: Path | str) -> Path:
    """A file or folder itself, or the copy of one in a bucket.

    Raises:
        InputError: nothing of that name in the bucket, or as in `local_copy`.
    """
    if not is_bucket(path):
        return Path(path)
    copied = local_copy(place(path))
    if not copied.exists():
        raise InputError(f"{place(path)}: no such file or folder")
    return copied


def local_copy(path: Path, *, deep: bool = True, large: bool = True) -> Path:
    """A copy on this machine of an object, or of a folder of them; what was copied before and has not changed stays.

    Copies lie in HF_HOME/qwen3llada/gs/BUCKET/PATH, each with its object's generation for the time of its last change.

    Args:
        deep: with the folders in it.
        large: with weights and records.

    Raises:
        InputError: the bucket cannot be read, or the disk is full.
    """
    from huggingface_hub.constants import HF_HOME

    bucket, name = parts(path)
    home = Path(HF_HOME) / "qwen3llada" / "gs" / bucket
    target = home / name
    with answering(path):
        found = [blob for blob in blobs(path, deep=deep) if not blob.name.endswith("/")]
        wanted = [blob for blob in found if large or not blob.name.endswith(_LARGE)]
        gone = {blob.name for blob in wanted if read_newest(blob, functools.partial(_fetch, home)) is None}
    stand = {home / blob.name for blob in found if blob.name not in gone}
    for file in target.rglob("*") if deep else target.glob("*"):
        if file.is_file() and file not in stand and not file.name.endswith(".part"):
            file.unlink(missing_ok=True)
    return target


def read_newest(blob: Any, read: Callable[[Any], Any]) -> tuple[Any, Any] | None:
    """(an object, what `read` makes of it), of the newest if it is written anew meanwhile; None: it is gone."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    while blob is not None:
        with suppress(NotFound, PreconditionFailed):
            return blob, read(blob)
        blob = blob.bucket.get_blob(blob.name)
    return None


def _fetch(home: Path, blob: Any) -> None:
    target, stamp = home / blob.name, int(blob.generation) * 1000
    if target.is_file() and target.stat().st_mtime_ns == stamp and target.stat().st_size == blob.size:
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        blob.download_to_filename(str(part), if_generation_match=blob.generation)
        os.utime(part, ns=(stamp, stamp))
        part.replace(target)
    except OSError as error:
        if is_answer(error):
            raise
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); make room, or set HF_HOME"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def generation(path: Path) -> int:
    """Of the newest object under a folder: another one when anything in it is written anew.

    Raises:
        InputError: the bucket cannot be read.
    """
    with answering(path):
        return max((int(blob.generation) for blob in blobs(path)), default=0)


def names(path: Path) -> list[str]:
    """What lies directly in a folder: names of objects and of folders.

    Raises:
        InputError: the bucket cannot be read.
    """
    bucket, prefix = parts(path)
    prefix = f"{prefix}/" if prefix else ""
    with answering(path):
        found = client().list_blobs(bucket, prefix=prefix, delimiter="/")
        objects = [blob.name for blob in found]
        return sorted({one.removeprefix(prefix).rstrip("/") for one in (*objects, *found.prefixes)} - {""})


def blob_of(path: Path) -> Any:
    """The object, as google-cloud-storage knows it."""
    bucket, name = parts(path)
    return client().bucket(bucket).blob(name)


def blobs(path: Path, *, deep: bool = True) -> list[Any]:
    """The object of that name, and those under it as a folder."""
    bucket, name = parts(path)
    one = client().bucket(bucket).get_blob(name) if name else None
    under = client().list_blobs(bucket, prefix=f"{name}/" if name else "", delimiter=None if deep else "/")
    return [*([one] if one is not None else []), *under]
