"""A text in a bucket that grows: objects cannot be appended to, so now and then the whole text is written anew."""

import sys
import threading
import time
from pathlib import Path

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import objects

EVERY = 15.0  # seconds between two writes
_SHARE = 20  # a write that takes long is followed by this many times as long without one


class GrowingObject:
    """A text of which the bucket has the beginning, at most `EVERY` seconds old; all of it after `settle` or `close`.

    Args:
        text: what the object holds already.
    """

    def __init__(self, path: Path, text: str):
        self._path, self._pieces = path, [text]
        self._written = 1  # pieces that the bucket has
        self._lock, self._ends = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="growing-object", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Append."""
        self._pieces.append(text)

    def flush(self) -> None:
        """Nothing: it happens by itself."""

    def settle(self) -> None:
        """Wait until the bucket has all that was written so far.

        Raises:
            InputError: it cannot be written.
        """
        with self._lock:
            count = len(self._pieces)
            if self._written != count:
                objects.write(self._path, "".join(self._pieces[:count]))
                self._written = count

    def close(self) -> None:
        """Write what is left.

        Raises:
            InputError: it cannot be written.
        """
        self._ends.set()
        self._thread.join()
        self.settle()

    def _keep(self) -> None:
        pause = EVERY
        while not self._ends.wait(pause):
            began = time.monotonic()
            try:
                self.settle()
            except InputError as error:  # the next write may get there; if not, the next checkpoint says so
                print(f"{error}; trying again", file=sys.stderr, flush=True)
            pause = max(EVERY, _SHARE * (time.monotonic() - began))
