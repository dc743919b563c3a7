"""The one exception that means "the input is wrong", and how its line stays short."""

from collections.abc import Iterable
from typing import Any

MOST = 480  # characters of a line that a terminal shows without scrolling its head away


class InputError(ValueError):
    """Bad input from outside (a file, a flag, a token id). Programs print it as one line and exit with 2.

    A message longer than a screen, because of a name that it quotes, loses its middle: thing and fix stand at its ends.
    """

    def __init__(self, message: str):
        super().__init__(message if len(message) <= MOST else brief(message, MOST))


def listed(items: Iterable[str], separator: str = ", ", *, most: int = 10, room: int = 260) -> str:
    """The first of many things, and how many more there are: at most `most` of them and about `room` characters."""
    everything = [brief(item) for item in items]
    shown: list[str] = []
    for item in everything[:most]:
        if shown and len(separator.join([*shown, item])) > room:
            break
        shown.append(item)
    left = len(everything) - len(shown)
    return separator.join(shown) + (f"{separator}… and {left:,} more" if left else "")


def brief(text: Any, most: int = 120) -> str:
    """A text on one line of at most `most` characters, its middle left out."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most * 2 // 3]} … {line[-(most // 4) :]}"


def shown(value: Any, most: int = 80) -> str:
    """A value as it would be typed, never longer than `most` characters."""
    try:
        return brief(repr(value), most)
    except (RecursionError, ValueError):  # nested too deeply; a whole number of thousands of digits
        return f"a {type(value).__name__}"
