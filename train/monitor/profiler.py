"""A trace of a few updates, by `jax.profiler`."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets, objects

WARM_UP = 2  # updates before the trace: the first compiles, the second may still fill caches


class Profile:
    """Traces `updates` updates of a run that goes from `first` to `last`, after its first two; 0: none.

    Raises:
        InputError: the run has too few updates left.
    """

    def __init__(self, folder: Path, updates: int, first: int, last: int):
        self.folder = folder
        self._start = first + WARM_UP if updates else None
        self._end = first + WARM_UP + updates
        if updates and self._end > last:
            raise InputError(
                f"project.profile {updates} needs {WARM_UP + updates} updates (the first {WARM_UP} warm up), "
                f"and this run has only {last - first} to go"
            )

    def before(self, step: int, pending: Any) -> None:
        """Update `step` is about to start; `pending` is to be finished before a trace begins."""
        if step == self._start:
            jax.block_until_ready(pending)
            self._written = Path(tempfile.mkdtemp(prefix="profile-")) if buckets.is_bucket(self.folder) else self.folder
            jax.profiler.start_trace(str(self._written))

    def after(self, done: int, pending: Any) -> bool:
        """Whether the trace has just been written: `done` updates were started, `pending` is of the last."""
        if self._start is None or done != self._end:
            return False
        jax.block_until_ready(pending)
        jax.profiler.stop_trace()
        if self._written != self.folder:
            objects.upload_folder(self._written, self.folder)
            shutil.rmtree(self._written)
        return True
