"""Stopping a run from outside: SIGTERM, the notice of a preemption, SIGHUP, that of a terminal which goes away, or
ctrl-C. Preemptible machines give 30 seconds.

Until the first update nothing is to be saved, and the process leaves at once. From then on a request is answered where
the loop asks for it: after every update, and between the batches of an evaluation. What cannot be interrupted from
Python (a compile, a sampling program, a stream that hangs) has GRACE seconds; then another thread saves and ends the
process. Python's own signal handlers wait until such a call returns, so a thread of ours listens too.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
from jax.experimental import multihost_utils

GRACE = 5.0  # seconds
_NOTICES = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextmanager
def leave_on_sigterm() -> Iterator[None]:
    """While a run is being made ready, SIGTERM or SIGHUP ends it at once: there is nothing to save, which is no error.

    The process ends where it stands. An exception would be lost in a callback of the compiler's, and an orderly end
    would wait for workers and for other processes; what is half written has another name.
    """
    over = threading.Event()

    def leave(number: int) -> None:
        if number != signal.SIGINT:
            _tell("stopped: there is nothing to save")
            os._exit(0)
        if not over.wait(GRACE):  # ctrl-C raises an exception, but not deep in a compile
            _tell("interrupted")
            os._exit(128 + number)

    # The preemption service of jax.distributed has put its own in place, which Python cannot put back.
    of_jax = _c_handler() if jax.distributed.is_initialized() else None
    # One of Python's, for `_listening` to hear of it.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, *_hang_up())}
    try:
        with _listening(leave):
            yield
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        if of_jax is not None:
            _set_c_handler(of_jax)


def _hang_up() -> tuple[signal.Signals, ...]:
    """SIGHUP, unless `nohup` has it ignored."""
    return () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)


class Stop:
    """A request to stop, as the loop sees it.

    Where `jax.distributed` runs, a notice to any process reaches all of them, and the answer becomes yes on all of
    them at the same asking: all must ask equally often.
    """

    def __init__(self) -> None:
        self._asked, self._over, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._rescue: Callable[[], None] | None = None
        self._distributed = jax.distributed.is_initialized()
        self._times, self._agreed = 0, False

    def __call__(self) -> bool:
        """Whether to stop now."""
        if not self._distributed:
            return self._asked.is_set()
        self._times += 1
        self._agreed |= multihost_utils.reached_preemption_sync_point(self._times)
        return self._agreed

    @contextmanager
    def rescued(self, save: Callable[[], None]) -> Iterator[None]:
        """The block may take long: `save` is called for it, from another thread, if it goes on GRACE seconds after a
        request, and the process ends. Several processes would have to agree on the moment, so there it is waited for.
        """
        self._rescue = save
        try:
            yield
        finally:
            with self._lock:  # never given back once the rescue has begun
                self._rescue = None

    def _ask(self) -> None:
        self._asked.set()

    def _insist(self, _: int) -> None:
        self._ask()
        late = self._over.wait(GRACE)
        while not late and not self._distributed:
            with self._lock:
                if self._rescue is not None:
                    code = 0
                    try:
                        self._rescue()
                    except Exception as error:  # whatever it is, nobody else is there to tell it
                        _tell(f"error: {' '.join(str(error).split())}")
                        code = 2
                    sys.stdout.flush()
                    os._exit(code)
            late = self._over.wait(0.1)


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Requests to stop, for as long as the block lasts.

    The first ctrl-C asks to stop, a second one ends the process at once.
    """
    stop = Stop()
    distributed = jax.distributed.is_initialized()

    def ask(number: int, _: Any) -> None:
        stop._ask()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if distributed:  # SIGTERM is jax's: its preemption service agrees on the moment
            os.kill(os.getpid(), signal.SIGTERM)
        _tell(
            "stopping after this update"
            + ("; ctrl-C again ends it at once, unsaved" if number == signal.SIGINT else "")
        )

    ours = (signal.SIGINT, *_hang_up(), *(() if distributed else (signal.SIGTERM,)))
    before = {number: signal.signal(number, ask) for number in ours}
    try:
        with _listening(stop._insist):
            yield stop
    finally:
        stop._over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _listening(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of the first SIGTERM or ctrl-C at once, from another thread, whatever the main thread
    is doing. A second ctrl-C ends the process there, for the main thread may not come to it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        first = None
        while numbers := os.read(reader, 1):
            number = numbers[0]
            if number not in _NOTICES:
                continue
            if first is None:
                first = number
                threading.Thread(target=act, args=(number,), name="stopping", daemon=True).start()
            elif first == number == signal.SIGINT:
                os._exit(128 + number)
        os.close(reader)

    threading.Thread(target=listen, name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _listeners.append(writer)
    try:
        yield
    finally:
        _listeners.remove(writer)
        signal.set_wakeup_fd(before)
        os.close(writer)


_listeners: list[int] = []


def _be_deaf() -> None:
    """In a forked worker, whose pool ends it by SIGTERM: what it hears is no notice to the run, whose pipe it has."""
    if _listeners:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, *_hang_up()):
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_be_deaf)


def _tell(text: str) -> None:
    """Not `print`: a signal may interrupt one. A progress bar hides the cursor, and the process may end here."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    with suppress(OSError):  # the terminal may be what went away
        os.write(2, f"{show_cursor}{text}\n".encode())


def _c_handler() -> Any:
    """What the system calls on SIGTERM, as sigaction(2) tells it."""
    action = ctypes.create_string_buffer(512)  # more than any system's struct
    if ctypes.CDLL(None, use_errno=True).sigaction(int(signal.SIGTERM), None, action):
        raise OSError(ctypes.get_errno(), "sigaction")
    return action


def _set_c_handler(action: Any) -> None:
    if ctypes.CDLL(None, use_errno=True).sigaction(int(signal.SIGTERM), action, None):
        raise OSError(ctypes.get_errno(), "sigaction")
