"""One run at a time in a folder (its own, and its log_dir): a lock on FOLDER/.lock, which the system frees when its
process ends, however. In a bucket it is another kind of lock (`run_lease`)."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets

from .distributed import is_main
from .run_lease import Lease

NAME = ".lock"
_NOT_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # file systems without locks


@contextmanager
def only_run_in(folder: Path, key: str = "project.output_dir") -> Iterator[Callable[[], None]]:
    """Hold a run's folder, the configuration's `key`: at once where it exists, else when the function given is called.

    So nothing is written for a run that is refused, and what a run reads of its folder is no other run's to change.
    Of several processes the main one holds it for all.

    Raises:
        InputError: (there or on that call) another run holds the folder, or has been there in between.
    """
    existed = folder.is_dir()
    with ExitStack() as held:
        taken = False

        def take() -> None:
            nonlocal taken
            if taken or not is_main():
                return
            if buckets.is_bucket(folder):
                held.callback(Lease(folder / NAME, key).free)
            else:
                held.callback(_free, _locked(folder / NAME, key))
            taken = True
            if not existed and (folder / "checkpoints").exists():
                raise InputError(f"{folder}: another run has begun there meanwhile; choose another {key}")

        if existed:
            take()
        yield take


def _locked(path: Path, key: str) -> IO[str]:
    """The file, opened and locked, with this process's number in it."""
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another {key}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "of unknown number"
        file.close()
        raise InputError(
            f"{path.parent} is in use by another run (process {holder}); wait until it ends, or choose another {key}"
        ) from error
    except OSError as error:
        if error.errno not in _NOT_HERE:
            file.close()
            raise InputError(f"{path}: cannot be locked ({error.strerror})") from error
        print(f"{path.parent}: its file system has no locks; see that one run at a time uses it", file=sys.stderr)
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _free(file: IO[str]) -> None:
    """Explicitly, for workers forked meanwhile may still have the file open."""
    try:
        fcntl.flock(file, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    file.close()
