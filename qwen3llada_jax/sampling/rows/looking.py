"""How far a row is written: what is final of it, and what stands in the block that is being written."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.state import Canvas


class Written(NamedTuple):
    """How far a request is written: its own places alone, in order; nothing that was given.

    Attributes:
        ids: which nothing will change.
        draft: ids of the places behind these, up to the end of the current block; None: masked. The others may still
            be masked again or replaced, or a place before them is still masked.
        written_at: of `ids` and `draft`, the row's pass (0, 1, …) that wrote each; -1: masked, or an EOS that no pass
            wrote but a stop rule, which fills the row behind the first.
        confidence: of the same, the probability the model gave the token when it was written; masked: 0, filled: 1.
        nfe: forward passes so far.
    """

    ids: list[int]
    draft: list[int | None]
    written_at: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    nfe: int


def stays(parameters: Parameters, structure: Structure) -> bool:
    """Whether no rule of a program changes what is written within a block (under `speculate` it is verified)."""
    return structure.speculate or (parameters.remask is None and parameters.edit is None)


def written(
    row: Canvas,
    is_given: Bool[np.ndarray, " L"],
    end: int,
    block: int,
    *,
    is_done: bool,
    what_is_written_stays: bool,
    structure: Structure,
) -> Written:
    """How far a row is written.

    Args:
        row: [L] or a number each, of numpy.
        end: of what was asked for; whatever is behind it fills a block up.
        block: the current one.
    """
    S, L = structure.block_length, len(row.tokens)
    inside = np.minimum(row.places, L - 1)
    number: Any = np.flatnonzero((row.places < end) & ~is_given[inside])  # of the request's own among all places
    places = row.places[number]
    masked = row.is_masked[places]
    is_final = ~masked & (is_done | what_is_written_stays | (number < block * S))
    many = int(np.argmin(np.append(is_final, False)))
    ends = int(np.searchsorted(number, (block + 1) * S))
    until = many + S if structure.speculate else max(many, ends)  # there a block begins behind what is verified
    shown, masked, tokens = places[:until], masked[:until], row.tokens[places[:until]].tolist()
    draft = [None if is_masked else token for token, is_masked in zip(tokens[many:], masked[many:], strict=True)]
    found = np.where(masked, -1, row.written_at[shown]), np.where(masked, np.float32(0), row.confidence[shown])
    return Written(tokens[:many], draft, *found, int(row.nfe))
