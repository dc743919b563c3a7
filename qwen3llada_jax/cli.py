"""What the programs share: flags with `-` or `_`, a nearest guess for an unknown one, errors in one line."""

import argparse
import difflib
import errno
import io
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from qwen3llada_jax import commands
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import expanded
from qwen3llada_jax.libtpu import leave_it_unless_there_is_a_tpu


class Place(str):
    """The `type` of a flag that names a folder, or a model on the hub."""


class Parser(argparse.ArgumentParser):
    """argparse with the house's manners: one-line errors (exit 2), `--gen_length` as good as `--gen-length`."""

    def __init__(self, description: str, **settings: Any):
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `arguments` (default: the command line)."""
        typed = list(sys.argv[1:] if arguments is None else arguments)
        arguments = [_hyphens(a) for a in typed]
        flags = [s for action in self._actions for s in action.option_strings]
        with_value = [s for action in self._actions if action.nargs != 0 for s in action.option_strings]
        # Before argparse complains of what is missing because of the typo.
        for before, argument, as_typed in zip(["", *arguments], arguments, typed, strict=False):
            flag = argument.split("=")[0]
            if flag.startswith("--") and flag not in flags:
                guess = nearest(flag, flags)
                if before in with_value:
                    guess += f" (as the value of {before}: {before}={shlex.quote(as_typed)})"
                raise InputError(f"unknown option {flag!r}{guess}")
        self.refuse_twice(arguments)
        return self.parse_args(arguments)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which `parse_args` calls; a leading `~` of a path is the home folder."""
        flags, rest = super().parse_known_args(args, namespace)
        for name, value in vars(flags).items():
            setattr(flags, name, [_at_home(v) for v in value] if isinstance(value, list) else _at_home(value))
        return flags, rest

    def refuse_twice(self, arguments: Sequence[str]) -> None:
        """Refuse an option that takes one value and is given several times: argparse would take the last."""
        given = [a.split("=")[0] for a in arguments]
        for action in self._actions:
            names = action.option_strings
            if isinstance(action, argparse._StoreAction) and sum(g in names for g in given) > 1:
                raise InputError(f"{names[0]} is given twice; leave one of the two out")

    def format_help(self) -> str:
        """As argparse makes it, with the programs named as they were started."""
        return commands.as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message if len(message) < 300 else message[:300] + '…'} (see --help)")


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or nothing when no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


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


def _at_home(value: Any) -> Any:
    """A path with its `~` resolved; anything else as it is."""
    if isinstance(value, Path):
        return expanded(value)
    return str(expanded(value)) if isinstance(value, Place) and value.startswith("~") else value


def _hyphens(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value
