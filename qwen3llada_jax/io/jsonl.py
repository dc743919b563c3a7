"""A row of data from its JSON text."""

import json
from typing import Any

from qwen3llada_jax.errors import brief

TWICE = "has a key that stands there twice"


class BadRowError(Exception):
    """A row that cannot be used; its text says why, in the same words for every row of that fault.

    Attributes:
        detail: what is wrong in this very row, beyond the fault's own words.
        is_malformed: the row is odd, rather than merely of no use (empty, or nothing to learn in it).
    """

    def __init__(self, reason: str, detail: str = "", *, is_malformed: bool = True):
        super().__init__(reason)
        self.detail, self.is_malformed = detail, is_malformed

    @property
    def in_full(self) -> str:
        """The reason, and what is wrong in this very row."""
        return f"{self}: {self.detail}" if self.detail else str(self)


class NoFormatError(BadRowError):
    """A row whose columns are those of no known format."""


def parse_row(text: str) -> dict[str, Any]:
    """The object that a line of JSON holds.

    Raises:
        BadRowError: no JSON, no object, or a key that stands in it twice.
    """
    try:
        row = json.loads(text, object_pairs_hook=_once)
    except BadRowError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRowError("is not valid JSON", brief(error)) from error
    if not isinstance(row, dict):
        raise BadRowError("is no JSON object", shortened(row))
    return row


def shortened(value: Any, most: int = 60) -> str:
    """A value as it is shown to people: one line, not long."""
    return brief(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), most)


def kind_of(value: Any) -> str:
    """What a JSON value is, in a word."""
    if value is None:
        return "null"
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), type(value).__name__)


def check_text(text: str) -> str:
    """A text that can be tokenized.

    Raises:
        BadRowError: it holds half of a surrogate pair, which is no character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = ascii(text[max(0, error.start - 9) : error.end + 9])
        raise BadRowError("holds half of a surrogate pair", around) from error
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRowError(TWICE, shortened(twice))
    return found
