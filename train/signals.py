"""Stopping a run from outside: SIGTERM, the notice of a preemption, or ctrl-C, answered at the end of an update."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils


@contextmanager
def leave_on_sigterm() -> Iterator[None]:
    """While a run is being made ready, SIGTERM ends it at once: there is nothing to save, and that is no error."""

    def leave(*_: Any) -> None:
        os.write(2, b"stopped: there is nothing to save\n")
        raise SystemExit(0)

    if jax.distributed.is_initialized():  # SIGTERM is jax's
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """`should_stop(updates done)`, to be asked once after every update: save and leave when it says so.

    The first ctrl-C asks to stop, a second one ends the process at once. Where `jax.distributed` runs, a notice to
    any process reaches all of them, and the answer becomes True on all of them after the same update.
    """
    asked = False
    distributed = jax.distributed.is_initialized()

    def ask(number: int, _: Any) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if distributed:  # SIGTERM is jax's: its preemption service agrees on the update
            os.kill(os.getpid(), signal.SIGTERM)
        # Not `print`: a signal may interrupt one. A progress bar hides the cursor, a second ctrl-C would leave it so.
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        again = "; ctrl-C again ends it at once, unsaved" if number == signal.SIGINT else ""
        os.write(2, f"{show_cursor}stopping after this update{again}\n".encode())

    def should_stop(done: int) -> bool:
        return multihost_utils.reached_preemption_sync_point(done) if distributed else asked

    ours = (signal.SIGINT,) if distributed else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in ours}
    try:
        yield should_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
