"""Whether this process is one of the project's programs, or somebody else's that imports the library."""

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen3llada_jax.commands import COMMANDS, IS_CHECKOUT, NAME, PACKAGE


def is_program(typed: Sequence[str], programs: Sequence[str]) -> bool:
    """Whether `python … -m PROGRAM …` was typed, or `PROGRAM …` that is a script of this Python's.

    Args:
        programs: modules of `python -m`, or names of commands.
    """
    words = iter(typed[1:])
    for word in words:
        if word == "-m":
            return next(words, None) in programs
        if word in ("-X", "-W"):
            next(words, None)
        elif not word.startswith("-"):
            return Path(word).name in programs
    return False


def is_ours(room: str) -> bool:
    """Whether a package that is being imported is this checkout's, and no other of that name."""
    found = getattr(sys.modules.get(room), "__file__", None)
    return IS_CHECKOUT and found == str(PACKAGE.parent / room / "__init__.py")


_MODULES = [command.module for command in COMMANDS.values()]
_IN_CHECKOUT = [module for module in _MODULES if is_ours(module.partition(".")[0])]
_PROGRAMS = [NAME, "qwen3llada_jax", *_IN_CHECKOUT, *(f"qwen3llada_jax.{module}" for module in _MODULES)]
IS_ONE = is_program(sys.orig_argv, _PROGRAMS)
