"""Is an answer right? How `sample.compare` holds a written text against a reference, looking at both alike.

exact         the texts, blanks at both ends aside
contains      the reference stands somewhere in the text
last-number   their last numbers, by value: `#### 1,800`, `$1800.` and `1800.00` are the same
regex=…       the first match of a pattern (its first group, if it has one), blanks at both ends aside
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import shortened

KINDS = ("exact", "contains", "last-number", "regex=PATTERN")
Match = Callable[[str, str], bool]
_NUMBER = re.compile(r"[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)
_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


def match_of(text: str) -> tuple[str, Match]:
    """(its name, whether a written text and a reference match).

    Raises:
        InputError: no such way to match, or a pattern that is none.
    """
    name, equals, pattern = text.partition("=")
    if name == "regex" and equals:
        try:
            return name, _same(_first_match(re.compile(pattern)))
        except re.error as error:
            raise InputError(f"--match {text!r}: the pattern is none ({error})") from error
    if text == "contains":
        return name, lambda written, right: right.strip() in written
    if text == "exact":
        return name, lambda written, right: written.strip() == right.strip()
    if text == "last-number":
        return name, _same(last_number)
    raise InputError(f"--match {text!r} is unknown; choose one of {', '.join(KINDS)}")


def check_references(match: Match, answers: Sequence[str | None], what: str) -> None:
    """Refuse references that do not even match themselves: nothing could be right.

    Raises:
        InputError: naming the first.
    """
    for number, answer in enumerate(answers, 1):
        if answer is not None and not match(answer, answer):
            raise InputError(
                f"--match {what}: the answer of prompt {number} has none of it ({shortened(answer)!r}); match otherwise"
            )


def without_empty_thought(text: str) -> str:
    """A text without the empty think block that Qwen3's chat template puts at the head of an answer."""
    found = _EMPTY_THOUGHT.match(text)
    return text[found.end() :] if found else text


def last_number(text: str) -> Decimal | None:
    """The last number of a text, by value; commas group digits."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _first_match(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def find(text: str) -> str | None:
        found = pattern.search(text)
        return None if found is None else (found[1 if pattern.groups else 0] or "").strip()

    return find


def _same(look: Callable[[str], Any]) -> Match:
    """Both texts have it, and it is the same."""

    def match(written: str, right: str) -> bool:
        found = look(written)
        return found is not None and found == look(right)

    return match
