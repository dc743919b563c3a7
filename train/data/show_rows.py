"""Rows as they are trained on, decoded for people: what is prompt, what is learned, and what only fills the batch."""

import itertools
from typing import Any

import numpy as np
from jaxtyping import Int

from .batches import Batches
from .loader import Batch


def shown(
    batches: Batches, tokenizer: Any, count: int, *, shift: bool = False, host_rows: Int[np.ndarray, " b"] | None = None
) -> str:
    """The first rows of the first updates, each with its parts marked.

    Args:
        host_rows: rows of a batch that this host has; None: all.
        shift: tokens are predicted at the position before them, which the first of a document has not.
    """
    blocks: list[str] = []
    step = 0
    while len(blocks) < count:
        batch = batches.take(step)
        step += 1
        here = range(len(batch.rows)) if host_rows is None else host_rows.tolist()
        blocks += [_row(batch, row, tokenizer, step, shift) for row in here[: count - len(blocks)]]
    return "\n\n".join(blocks)


def _row(batch: Batch, row: int, tokenizer: Any, update: int, shift: bool) -> str:
    ids = batch.tokens[row].tolist()
    prompt, real = int(batch.prompt_length[row]), int(batch.real_length[row])
    end, length = int(batch.used_length[row]), len(ids)
    parts = [f"── update {update}, row {row + 1}: {length} tokens"]
    if prompt:
        parts += [f"┌ prompt, {prompt} tokens, seen but not learned", tokenizer.decode(ids[:prompt])]
    texts = _documents(batch, row, ids[prompt:real], prompt, tokenizer)
    first = len(texts) if shift and not prompt else 0
    parts.append(f"┌ learned, {real - prompt - first} tokens" + ", all but the first of each document" * bool(first))
    parts += [line for i, text in enumerate(texts) for line in (["┌ next document"] if i else []) + [text]]
    if end > real:
        parts.append(f"┌ padding that is learned, {end - real} tokens: {tokenizer.decode(ids[real])} × {end - real}")
    if length > end:
        parts.append(f"┌ fills the batch, {length - end} tokens that nobody sees")
    return "\n".join(parts)


def _documents(batch: Batch, row: int, ids: list[int], begin: int, tokenizer: Any) -> list[str]:
    """The texts, divided where documents do not see each other."""
    if batch.segment_ids is None:
        return [tokenizer.decode(ids)]
    segments = batch.segment_ids[row, begin : begin + len(ids)].tolist()
    cuts = [0, *(i for i in range(1, len(ids)) if segments[i] != segments[i - 1]), len(ids)]
    return [tokenizer.decode(ids[a:b]) for a, b in itertools.pairwise(cuts)]
