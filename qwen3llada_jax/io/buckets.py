"""Folders in a bucket of Google Cloud Storage, `gs://BUCKET/PATH`, beside those on a disk.

A place in a bucket is an `epath.Path`, which answers as a `pathlib.Path` does. What else a path can do goes through
here (its one name, whether it is absolute, …), and so does every answer of a bucket that is an error.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from qwen3llada_jax.errors import InputError, brief

COMMITTED = "commit_success.txt"  # orbax writes it last into what it saves to a bucket
_NEEDED = ("storage.objects.list", "storage.objects.get", "storage.objects.create", "storage.objects.delete",
           "storage.buckets.get")  # fmt: skip


def is_bucket(path: Path | str) -> bool:
    """Whether a path lies in a bucket; `Path("gs://b/x")`, of which pathlib drops a slash, does."""
    return re.match(r"gs:/", str(path)) is not None


def place(path: Path | str) -> Path:
    """A path as it can be used: an `epath.Path` of what lies in a bucket, else a `Path`.

    Raises:
        InputError: no bucket's name, a bucket that is not there or does not let us in, or the packages for buckets are
            not installed.
    """
    if not is_bucket(path):
        return Path(path)
    match = re.fullmatch(r"gs:/+([a-z0-9][-._a-z0-9]{1,220}[a-z0-9])(/.*)?", str(path))
    if match is None:
        raise InputError(f"{path}: is no place in a bucket; write gs://BUCKET/PATH")
    _prepare(match[1])
    from etils import epath

    return cast(Path, epath.Path(f"gs://{match[1]}{match[2] or ''}"))


def absolute(path: Path) -> Path:
    """A path from the root: orbax takes no other. (`epath` takes a bucket's for one in the folder that one is in.)"""
    return place(path) if is_bucket(path) else Path(path).absolute()


def is_whole(item: Path) -> bool:
    """Whether what orbax saved under this name is finished; on a disk it has the name only then."""
    return not is_bucket(item) or (item / COMMITTED).exists()


def is_there(path: Path | str) -> bool:
    """Whether a place that was named once is a folder now; it is none where its bucket is gone or cannot be asked."""
    try:
        return place(path).is_dir()
    except InputError:
        return False


def real(path: Path | str) -> str:
    """The one name that a place has, by whatever path one comes to it."""
    return str(place(path)) if is_bucket(path) else os.path.realpath(path)


def is_under(path: Path, folder: Path) -> bool:
    """Whether a path is that folder, or lies in it."""
    return f"{real(path)}/".startswith(f"{real(folder).rstrip('/')}/")


def check(path: Path) -> None:
    """Refuse, before the work begins, a bucket that gives these credentials too few rights to write there.

    Raises:
        InputError: naming the fix.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY

    bucket, _ = parts(path)
    with answering(path):
        have = client().bucket(bucket).test_iam_permissions(list(_NEEDED), retry=DEFAULT_RETRY.with_timeout(20))
    if lacking := [right for right in _NEEDED if right not in have]:
        raise InputError(
            f"gs://{bucket}: these credentials lack {', '.join(lacking)} there; give them the roles Storage Object "
            "Admin and Storage Legacy Bucket Reader"
        )


def parts(path: Path) -> tuple[str, str]:
    """(bucket, name in it, without a slash at its end)."""
    bucket, _, name = str(path).removeprefix("gs:").lstrip("/").partition("/")
    return bucket, name.rstrip("/")


@cache
def client() -> Any:
    """google-cloud-storage's, the same for all."""
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    try:
        return storage.Client()
    except DefaultCredentialsError:  # a public bucket asks for none
        return storage.Client.create_anonymousclient()
    except OSError:
        # No project is known. Only making buckets needs one; orbax has a client of its own, which wants a name as well.
        os.environ.setdefault("GOOGLE_CLOUD_PROJECT", "none")
        return storage.Client()


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """Turn what a bucket answers, or that nobody does, into one line that names the fix."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption

    bucket, name = parts(path)
    shown = f"gs://{bucket}/{name}".rstrip("/")
    try:
        yield
    except (GoogleAuthError, exceptions.Unauthorized) as error:
        raise InputError(
            f"gs://{bucket}: no credentials that it takes; run gcloud auth application-default login, or name a key "
            "file in GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    except exceptions.Forbidden as error:
        raise InputError(f"{shown}: these credentials may not do that there ({brief(error.message, 200)})") from error
    except exceptions.NotFound as error:
        if "bucket" in error.message.lower():
            raise InputError(f"gs://{bucket}: no such bucket; make it, or write another") from error
        raise InputError(f"{shown}: no such object") from error
    except (exceptions.GoogleAPIError, DataCorruption, OSError) as error:
        if not is_answer(error):
            raise
        raise InputError(f"{shown}: the bucket does not answer as it should ({brief(error, 200)})") from error


def is_answer(error: BaseException) -> bool:
    """Whether an error is what a bucket, or the way to it, said to epath or orbax."""
    return type(error).__module__.split(".")[0] in ("aiohttp", "gcsfs", "google", "requests")


@cache
def _prepare(bucket: str) -> None:
    """Set up the libraries by which epath, orbax and we reach a bucket, and see once that it answers."""
    # gcsfs asks Google alone, by gRPC, what kind of bucket it is; epath takes TensorFlow where that is installed.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    os.environ.setdefault("EPATH_USE_TF", "false")
    try:
        import fsspec
        import gcsfs  # noqa: F401 - by which epath reaches a bucket
        from google.cloud.storage.retry import DEFAULT_RETRY
    except ModuleNotFoundError as error:
        raise InputError(f"gs://{bucket}: buckets need {error.name}: pip install gcsfs google-cloud-storage") from error
    # Else it remembers what it listed, and never sees what others write.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    with answering(Path(f"gs://{bucket}")):
        next(iter(client().list_blobs(bucket, max_results=1, retry=DEFAULT_RETRY.with_timeout(20))), None)
