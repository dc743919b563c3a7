"""Rows of token ids, addressed by number, and the padded batches that are made of them."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from .sources import Source

_UNIT = 128


class Tokens:
    """Token ids that lie in pieces (the parts of a mapped file, say), read as one array; no piece is ever copied.

    Args:
        span: their lowest and highest id, where they are known already; else all ids are read when it is asked for.
    """

    def __init__(self, pieces: Sequence[Int[np.ndarray, " n"]], span: tuple[int, int] | None = None):
        self._span = span
        self.pieces = [piece for piece in pieces if len(piece)]
        self._ends = np.cumsum([len(piece) for piece in self.pieces], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.pieces else 0

    def __getitem__(self, part: slice) -> Int[np.ndarray, " n"]:
        start, stop, _ = part.indices(len(self))
        found = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            piece, end = self.pieces[number], int(self._ends[number])
            begin = end - len(piece)
            found.append(piece[start - begin : min(stop, end) - begin])
            start, number = end, number + 1
        return found[0] if len(found) == 1 else np.concatenate(found) if found else np.zeros(0, np.int32)

    def span(self) -> tuple[int, int]:
        """The lowest and the highest id."""
        if self._span is None:
            self._span = span_of(self.pieces)
        return self._span


def span_of(pieces: Sequence[Int[np.ndarray, " n"]]) -> tuple[int, int]:
    """The lowest and the highest of all ids; (0, 0) where there is none."""
    some = [piece for piece in pieces if len(piece)]
    lowest = min((int(piece.min()) for piece in some), default=0)
    return lowest, max((int(piece.max()) for piece in some), default=0)


class Row(NamedTuple):
    """One row: its ids, how many of them are prompt, and where in it further documents begin (None: not told)."""

    ids: Int[np.ndarray, " S"]
    prompt_length: int = 0
    documents: Int[np.ndarray, " d"] | None = None


@dataclass(frozen=True)
class Rows:
    """Numbered rows of token ids.

    Attributes:
        values: all ids.
        starts: [n] where each row begins in `values`.
        sizes: [n] its tokens.
        prompt_lengths: [n] tokens of each row that are prompt.
        report: what was read, cut and dropped, in words.
        documents: [d] where documents begin in `values`, ascending; None when rows are not divided.
        digest: tells what training sees of them from anything else, where that is known already.
        source: of a dataset's rows, where they come from.
    """

    values: Tokens
    starts: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " n"]
    prompt_lengths: Int[np.ndarray, " n"]
    report: str
    documents: Int[np.ndarray, " d"] | None = None
    digest: str | None = None
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, number: int) -> Row:
        """The row of that number."""
        start = int(self.starts[number])
        end = start + int(self.sizes[number])
        documents = None
        if self.documents is not None:
            first, last = np.searchsorted(self.documents, [start + 1, end])
            documents = self.documents[first:last] - start
        return Row(self.values[start:end], int(self.prompt_lengths[number]), documents)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all that training sees of these rows."""
        if self.digest is not None:
            return self.digest
        digest = hashlib.sha256(str([len(self.values), len(self), self.documents is not None]).encode())
        for piece in self.values.pieces:
            digest.update(np.ascontiguousarray(piece, np.int32).data)
        for array in (self.starts, self.sizes, self.prompt_lengths, self.documents):
            if array is not None:
                digest.update(np.ascontiguousarray(array, np.int64).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Batch:
    """Padded rows.

    Attributes:
        tokens: [B, L] ids, `pad_id` after a row's end. Rows that were not asked for are zeros.
        prompt_length: [B].
        real_length: [B] tokens before the padding.
        used_length: [B] tokens that count: its own, and where answers are padded with EOS that is learned, all up to
            the longest row's end (LLaDA's rule). What lies behind only fills the bucket.
        rows: [B] number of each row in the data.
        segment_ids: [B, L] number of each token's document within its row; None: rows are not divided.
        positions: [B, L] its position within that document; None with `segment_ids`.
    """

    tokens: Int[np.ndarray, "B L"]
    prompt_length: Int[np.ndarray, " B"]
    real_length: Int[np.ndarray, " B"]
    rows: Int[np.ndarray, " B"]
    used_length: Int[np.ndarray, " B"]
    segment_ids: Int[np.ndarray, "B L"] | None = None
    positions: Int[np.ndarray, "B L"] | None = None


def join(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, numbered on."""
    if len(parts) == 1:
        return parts[0]
    shifts = np.cumsum([0, *(len(part.values) for part in parts)])
    documents = [p.documents + shift for p, shift in zip(parts, shifts, strict=False) if p.documents is not None]
    digest = hashlib.sha256("\0".join(part.fingerprint for part in parts).encode()).hexdigest()
    return Rows(
        Tokens([piece for part in parts for piece in part.values.pieces]),
        np.concatenate([p.starts + shift for p, shift in zip(parts, shifts, strict=False)]),
        np.concatenate([p.sizes for p in parts]),
        np.concatenate([p.prompt_lengths for p in parts]),
        "\n".join(p.report for p in parts),
        np.concatenate(documents) if documents else None,
        digest,
    )


def collect(rows: Sequence[Row], report: str, source: Source | None = None) -> Rows:
    """Rows held in memory."""
    sizes = np.array([len(row.ids) for row in rows], np.int64)
    starts = np.cumsum([0, *sizes])[:-1]
    divided = [
        np.append(start, start + row.documents)
        for start, row in zip(starts, rows, strict=True)
        if row.documents is not None
    ]
    return Rows(
        Tokens([row.ids for row in rows]),
        starts,
        sizes,
        np.array([row.prompt_length for row in rows], np.int64),
        report,
        np.concatenate(divided) if divided else None,
        source=source,
    )


def buckets(length: int) -> list[int]:
    """The lengths that batches of rows of at most `length` tokens are laid out in: few, so that few programs are
    compiled, and multiples of 128, which the kernels of accelerators ask for (shorter rows have one of their own).

    At most a third of a batch is empty beyond its longest row, but in the shortest.
    """
    if length <= _UNIT:
        return [length]
    most, found, size = -(-length // _UNIT) * _UNIT, [], _UNIT
    while size < most:
        found += [size, size * 3 // 2] if size > _UNIT else [size]
        size *= 2
    return [size for size in found if size < most] + [most]


def padded_length(sizes: Int[np.ndarray, "... B"], length: int) -> Int[np.ndarray, "..."]:
    """The bucket of a batch: the least that holds its longest row."""
    sizes_of = np.array(buckets(length))
    return sizes_of[np.searchsorted(sizes_of, np.minimum(sizes.max(axis=-1), length))]


def make_batch(
    rows: Rows,
    numbers: Int[np.ndarray, " B"],
    pad_id: int,
    *,
    length: int,
    host_rows: Int[np.ndarray, " b"] | None = None,
    at_least: int = 0,
    laid_out: int = 0,
    pads_answers: bool = False,
) -> Batch:
    """Those rows, padded.

    Args:
        at_least: pad as if one of the rows had so many tokens.
        laid_out: fill up as if one of the rows had so many tokens.
        pads_answers: the EOS up to the longest row's end belong to answers.
        host_rows: rows of the batch to fill in (those of this host's devices); None: all. Lengths are told of all rows,
            and the batch has the same shape on every host.
    """
    wanted = range(len(numbers)) if host_rows is None else host_rows.tolist()
    found = {i: rows.row(int(numbers[i])) for i in wanted}
    return assemble(
        found, rows.sizes[numbers], rows.prompt_lengths[numbers], numbers, pad_id, length=length, at_least=at_least,
        laid_out=laid_out, pads_answers=pads_answers,
    )  # fmt: skip


def assemble(
    rows: Mapping[int, Row],
    sizes: Int[np.ndarray, " B"],
    prompt_lengths: Int[np.ndarray, " B"],
    numbers: Int[np.ndarray, " B"],
    pad_id: int,
    *,
    length: int,
    at_least: int = 0,
    laid_out: int = 0,
    pads_answers: bool = False,
) -> Batch:
    """The batch of these rows, by their place in it; what is known of all its rows, and the ids of some or all."""
    sizes = np.minimum(sizes, length)
    longest = min(max(int(sizes.max()), at_least), length)
    shape = (len(sizes), int(padded_length(np.array([longest, laid_out]), length)))
    tokens = np.zeros(shape, np.int32)
    is_divided = any(row.documents is not None for row in rows.values())
    segment_ids = np.zeros(shape, np.int32) if is_divided else None
    positions = np.zeros(shape, np.int32) if is_divided else None
    for i, row in rows.items():
        size = int(sizes[i])
        tokens[i, :size], tokens[i, size:] = row.ids[:size], pad_id
        if row.documents is not None and segment_ids is not None and positions is not None:
            place = np.arange(shape[1])
            segment_ids[i] = np.searchsorted(row.documents, place, side="right")
            positions[i] = place - np.append(0, row.documents)[segment_ids[i]]
    return Batch(
        tokens, prompt_lengths.astype(np.int32), sizes.astype(np.int32), numbers.astype(np.int64),
        np.full_like(sizes, longest, np.int32) if pads_answers else sizes.astype(np.int32), segment_ids, positions,
    )  # fmt: skip
