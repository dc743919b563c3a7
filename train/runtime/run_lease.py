"""One run at a time in a folder of a bucket: FOLDER/.lock, an object that its holder writes anew every ten seconds.

A bucket has no locks that end with a process. What it has is the generation of an object: a write can be made to
succeed only if the object is still the one that was read, or not there. So whoever would take a lock that is there
watches it: a new generation shows that its holder lives; one that does not change for a minute is nobody's any more,
and is written over, if it still is that one. No two machines' clocks are compared. On the holder's own machine nobody
waits: there it is known whether the process lives.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets, objects

BEAT = 10.0  # seconds between two writes of a holder
PATIENCE = 60.0  # seconds without one after which a lock is nobody's


class Lease:
    """A lock that is held, from the moment it is made until `free`.

    Raises:
        InputError: another run holds it.
    """

    def __init__(self, path: Path, key: str):
        self._path = path
        self._me = {"id": uuid.uuid4().hex, "process": os.getpid(), "host": socket.gethostname(),
                    "system": _system(), "began": _began(os.getpid())}  # fmt: skip
        self._generation = self._taken(key)
        self._ends = threading.Event()
        self._beat = threading.Thread(target=self._keep, name="run-lease", daemon=True)
        self._beat.start()

    def free(self) -> None:
        """Give it up; where that cannot be told to the bucket, it is nobody's in a minute."""
        from google.api_core.exceptions import GoogleAPIError

        self._ends.set()
        self._beat.join()
        try:
            with buckets.answering(self._path):
                objects.blob_of(self._path).delete(if_generation_match=self._generation)
        except (InputError, GoogleAPIError):
            print(f"{self._path}: could not be removed; another run waits {PATIENCE:.0f} s for it", file=sys.stderr)

    def _taken(self, key: str) -> int:
        """The generation under which it is ours."""
        while True:
            found = self._read()
            if found is not None and not self._is_free(*found, key):
                continue
            generation = self._write(0 if found is None else found[1])
            if generation is not None:
                return generation

    def _is_free(self, holder: dict[str, Any], generation: int, key: str) -> bool:
        """Wait until it shows that a holder is gone.

        Returns:
            False: the lock has been given up meanwhile, or taken by another.

        Raises:
            InputError: the holder lives.
        """
        used = InputError(
            f"{self._path.parent} is in use by another run (process {holder.get('process')} on {holder.get('host')}); "
            f"wait until it ends, or choose another {key}"
        )
        if holder.get("system") is not None and holder.get("system") == self._me["system"]:
            if _began(int(holder.get("process") or 0)) == holder.get("began"):
                raise used
            return True
        print(
            f"{self._path.parent}: was used by process {holder.get('process')} on {holder.get('host')}; looking for up "
            f"to {PATIENCE:.0f} s whether that still runs", file=sys.stderr, flush=True,
        )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(min(1.0, BEAT / 4))
            now = self._read()
            if now is None:
                return False
            if now[1] != generation:
                if now[0].get("id") == holder.get("id"):
                    raise used
                return False
        return True

    def _read(self) -> tuple[dict[str, Any], int] | None:
        """(who holds it, generation); None: nobody."""
        named = objects.blob_of(self._path)
        with buckets.answering(self._path):
            blob = named.bucket.get_blob(named.name)
            found = objects.read_newest(blob, lambda blob: blob.download_as_bytes(if_generation_match=blob.generation))
        if found is None:
            return None
        blob, text = found
        try:
            holder = json.loads(text)
        except ValueError:
            holder = None
        return holder if isinstance(holder, dict) else {}, int(blob.generation)

    def _write(self, generation: int) -> int | None:
        """Write it where it still is that generation (0: not there); the new one, None: another was first."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = objects.blob_of(self._path)
        with buckets.answering(self._path):
            try:
                blob.upload_from_string(json.dumps(self._me), if_generation_match=generation)
            except (PreconditionFailed, NotFound):
                found = self._read()  # ours, if the answer to an earlier try of this write was lost
                return found[1] if found is not None and found[0].get("id") == self._me["id"] else None
        return int(blob.generation)

    def _keep(self) -> None:
        while not self._ends.wait(BEAT):
            try:
                generation = self._write(self._generation)
            except InputError:  # nobody answers: nothing else of this run gets there either
                continue
            if generation is None:
                # Nothing more may be written, by no thread: the folder is another's.
                line = f"{self._path.parent}: another run has taken the folder, for this one was silent; it ends\n"
                os.write(2, line.encode())
                os._exit(2)
            self._generation = generation


def _system() -> str | None:
    """Tells where process numbers mean the same: a machine since it was started, or a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _began(process: int) -> str | None:
    """When a process began, in the system's ticks: a number that comes again is another process. None: it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
