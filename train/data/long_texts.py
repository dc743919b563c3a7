"""Ids of texts of any length: a long one is cut where a token ends anyhow, and its pieces are encoded side by side.

A tokenizer encodes a text as a whole, on one core, and keeps some hundred bytes for each of its tokens meanwhile, of
which a file of a gigabyte has hundreds of millions.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

PIECE = 1 << 18  # characters
_AT_ONCE = 32  # pieces that are encoded together
_LOOKED_AT = 200  # characters at either side of a cut
_CUT = re.compile(r"\S\n(?=\S)")


def encode(tokenizer: Any, texts: Sequence[str], piece: int = PIECE) -> list[list[int] | Int[np.ndarray, " n"]]:
    """The ids of every text, without special tokens; of one that is longer than a piece as an array."""
    short = iter(_ids(tokenizer, [text for text in texts if len(text) <= piece]))
    return [next(short) if len(text) <= piece else _of_pieces(tokenizer, text, piece) for text in texts]


def _of_pieces(tokenizer: Any, text: str, piece: int) -> Int[np.ndarray, " n"]:
    pieces = list(pairwise(cuts_of(tokenizer, text, piece)))
    found: list[Int[np.ndarray, " m"]] = []
    for first in range(0, len(pieces), _AT_ONCE):
        some = [text[begin:end] for begin, end in pieces[first : first + _AT_ONCE]]
        found += [np.asarray(ids, np.int32) for ids in _ids(tokenizer, some)]
    return np.concatenate(found)


def cuts_of(tokenizer: Any, text: str, piece: int) -> list[int]:
    """Where pieces of about this length begin, and the text's end.

    They begin with a line. A tokenizer to which that matters (one that puts a space before a text, say) shows it where
    both sides of a cut are encoded alone and together; its texts are left whole there.
    """
    found = [0]
    for place in range(piece, len(text), piece):
        line = _CUT.search(text, place, place + piece)
        if line is not None and _is_free(tokenizer, text, line.end()):
            found.append(line.end())
    return [*found, len(text)]


def _is_free(tokenizer: Any, text: str, cut: int) -> bool:
    before, after = text[max(0, cut - _LOOKED_AT) : cut], text[cut : cut + _LOOKED_AT]
    left, right, both = _ids(tokenizer, [before, after, before + after])
    return left + right == both


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
