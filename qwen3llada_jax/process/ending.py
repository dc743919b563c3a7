"""The process of a program: how it ends, and what becomes of it when its terminal or its reader goes away."""

import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.process import compilation_cache
from qwen3llada_jax.process.libtpu import leave_it_unless_there_is_a_tpu


def run(main: Callable[[], int | None], *, leaves_at_once: bool = False) -> NoReturn:
    """Run a program: an `InputError` becomes one line on standard error and exit code 2.

    So do what the machine lacks: the devices that JAX_PLATFORMS names, memory, a standard output that takes text. The
    process is the program's own, so what its libraries say beside that line is silenced here, and only here. It goes on
    when its terminal or the reader of its output goes away, unless its product goes there (`check_output`).

    Args:
        leaves_at_once: Ctrl-C ends the process even while a compiled program runs, which Python cannot interrupt;
            for programs that have nothing to put in order.
    """
    sys.unraisablehook = _without_late_callbacks
    # orbax logs its doings and, with a traceback, what it is about to raise, and asyncio the second write of several
    # that failed together; what matters reaches us as an exception.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    compilation_cache.say_trouble_once()
    _open_streams()
    leave_it_unless_there_is_a_tpu()
    code = 2
    try:
        if leaves_at_once:
            _leave_on_interrupt()
        try:
            code = main() or 0
        except SystemExit as stopped:  # --help
            code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
        sys.stdout.flush()
    except InputError as error:
        _say(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    except _SeenEnoughError:
        _discard_output()
        code = 0
    except Exception as error:
        lack = _what_the_machine_lacks(error)
        if lack is None:
            raise
        _say(f"error: {lack}")
    raise SystemExit(code)


def _say(line: str) -> None:
    with suppress(OSError):  # nobody may be there to read it
        print(line, file=sys.stderr, flush=True)


def _what_the_machine_lacks(error: Exception) -> str | None:
    """One line for an exception that tells of the machine, not of a mistake of ours."""
    text = " ".join(str(error).split())
    if traceback.extract_tb(error.__traceback__)[-1].filename.endswith("xla_bridge.py"):  # JAX looks for its devices
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms:
            return f"JAX_PLATFORMS={platforms}: no such device here, or JAX was installed without it; unset it, or cpu"
        return f"JAX finds no device ({text[:200]}); JAX_PLATFORMS=cpu does without"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return f"out of memory ({text[:200] or 'of this machine'}); do less at once: a smaller batch, shorter texts"
    if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_ERRORS:
        _discard_output()
        return f"standard output cannot be written ({error.strerror}); give it a place that takes text"
    return None


_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _open_streams() -> None:
    """Streams that were closed before the program began, and letters that the terminal's encoding has not.

    Python has None for a closed stream: `print` would drop what goes to standard output without a word, and put there
    what was meant for standard error.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = _Closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if stream is getattr(sys, f"__{name}__"):  # the process's own
                setattr(sys, name, _outliving(stream))


def _outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, whose end is not the program's."""
    stream.flush()
    raw = _Outlived(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.FileIO) else io.BufferedWriter(raw),  # type: ignore[type-var]  # as Python
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _SeenEnoughError(Exception):
    """The reader of a product (`| head`) is gone. No BrokenPipeError, for which rich would end the program by itself,
    and as which any other broken pipe would end it in silence."""


class _Outlived(io.FileIO):
    """Standard output or standard error. What can be written there no more is dropped from then on."""

    is_product = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self.is_product:
                raise (_SeenEnoughError() if isinstance(error, BrokenPipeError) else error) from error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries that write to the descriptor, too
            os.close(nowhere)
            if self.fileno() == 1:
                _say(f"standard output is gone ({error.strerror}); going on without it")
            return len(data)


class _Closed(io.TextIOBase):
    """A standard output that was closed before the program began."""

    encoding = "utf-8"

    def write(self, text: str, /) -> int:
        return len(text)

    def isatty(self) -> bool:
        return False


def check_output() -> None:
    """Say that the program's product goes to standard output: then it matters whether somebody takes it.

    Raises:
        InputError: it was closed before the program began.
    """
    if isinstance(sys.stdout, _Closed):
        raise InputError("standard output is closed: nothing that is written would be seen; give it a place")
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if isinstance(raw, _Outlived):
        raw.is_product = True


def _discard_output() -> None:
    """Nothing more can be written: else Python would try at its end, and report that it cannot."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave_on_interrupt() -> None:
    """End the process on Ctrl-C, whatever its main thread is doing.

    Python handles a signal between two of its own instructions; a compiled program, or compiling one, is one
    instruction of minutes. A signal's byte in a pipe is written at once, and a thread waits for it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell
        return
    receive, send = os.pipe()
    os.set_blocking(send, False)
    signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda *_: None)  # else a KeyboardInterrupt might end up in somebody's __del__

    def wait() -> None:
        while os.read(receive, 1) != bytes([signal.SIGINT]):
            pass
        _say("interrupted")
        _leave(130)

    threading.Thread(target=wait, daemon=True).start()


def _leave(code: int) -> NoReturn:
    """End the process here and now: at a usual end JAX waits for what it is computing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stream.isatty():
                stream.write("\x1b[?25h")  # a live view hides the cursor
            stream.flush()
    os._exit(code)


def _without_late_callbacks(unraisable: Any) -> None:
    """After a failed read or write, orbax closes an event loop that tensorstore still reports to: no news."""
    if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(unraisable)
