"""What the programs share: flags with `-` or `_`, a nearest guess for an unknown one, errors in one line."""

import argparse
import difflib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.libtpu import leave_it_unless_there_is_a_tpu


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

    def refuse_twice(self, arguments: Sequence[str]) -> None:
        """Refuse an option that takes one value and is given several times: argparse would take the last."""
        given = [a.split("=")[0] for a in arguments]
        for action in self._actions:
            names = action.option_strings
            if isinstance(action, argparse._StoreAction) and sum(g in names for g in given) > 1:
                raise InputError(f"{names[0]} is given twice; leave one of the two out")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or nothing when no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a program: an `InputError` becomes one line on standard error and exit code 2."""
    sys.unraisablehook = _without_late_callbacks
    leave_it_unless_there_is_a_tpu()
    try:
        code = main() or 0
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        sys.stderr.close()
        code = 0
    raise SystemExit(code)


def _without_late_callbacks(unraisable: Any) -> None:
    """After a failed read or write, orbax closes an event loop that tensorstore still reports to: no news."""
    if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(unraisable)


def _hyphens(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value
