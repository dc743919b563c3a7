"""The text of tokens that will not change any more: what a stream may say while the rest is still being written."""

import bisect
from collections.abc import Sequence
from typing import Any

from qwen3llada_jax.text.tokens import up_to_stop
from qwen3llada_jax.writing.completions import filled, text_of
from qwen3llada_jax.writing.requests import Request

_HALF = "\ufffd"  # as which a character is decoded whose last bytes are missing


def tokens_of(ids: Sequence[int], most: int | None, ends: Sequence[int]) -> tuple[list[int], bool]:
    """(the ids before the end of the text and at most `most` of them, whether they end there)."""
    cut = list(ids[:most])
    kept = up_to_stop(cut, ends)
    return kept, len(kept) < len(cut) or len(cut) == most


def said(
    tokenizer: Any, request: Request, ids: Sequence[int], stops: Sequence[str], *, whole: bool
) -> tuple[str, bool]:
    """(the text of the first written ids, whether a stop string ends it).

    Args:
        ids: without the end; of a text with holes what fills the first of them.
        whole: nothing follows. Else what may still become another character, or the beginning of a stop string, is
            left out: the text of more ids begins with it.
    """
    text = (
        filled(tokenizer, request, _up_to_a_hole(request, ids)) if request.kind == "infill" else text_of(tokenizer, ids)
    )
    if not whole:
        text = text.rstrip(_HALF)
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if places:
        return text[: min(places)], True
    return text if whole else text[: len(text) - _begun(text, stops)], False


def covered(tokenizer: Any, ids: Sequence[int], text: str, begin: int = 0) -> int:
    """How many of the ids' tokens a text holds, one that ends within it counted; at least `begin`."""
    counts = range(begin, len(ids))
    return begin + bisect.bisect_left(counts, len(text), key=lambda n: len(text_of(tokenizer, ids[:n]).rstrip(_HALF)))


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at its end may be the beginning of a stop string."""
    most = min(max(map(len, stops), default=1) - 1, len(text))
    return next((n for n in range(most, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0)


def _up_to_a_hole(request: Request, ids: Sequence[int]) -> list[int]:
    """A text with holes as far as they are filled."""
    found, written = list[int](), iter(ids)
    for given in request.ids:
        token = next(written, None) if given is None else given
        if token is None:
            break
        found.append(token)
    return found
