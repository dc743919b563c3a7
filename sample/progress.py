"""How far a program is, on a terminal; nothing where errors go to a file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def tracked(found: Iterable[T], what: str, count: int) -> Iterator[T]:
    """The same things, `count` of them, with a bar on stderr while they come."""
    quiet = not sys.stderr.isatty()
    return iter(track(found, what, count, console=Console(stderr=True), disable=quiet, transient=True))
