"""Rows from datasets that are read as they come, for ever, in an order that a resumed run meets again exactly.

Rows are read in blocks of `shuffle_buffer`, and each block is shuffled by itself: unlike a buffer that is refilled row
by row, a block can be read again. So the position saved with a checkpoint is small (where each dataset stood when the
step's block began, and the tokens then left over) and the rest follows from the number of the step.
"""

import copy
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import readers
from qwen3llada_jax.model.model import check_tokens

from . import shuffle, sources
from .account import Account
from .loader import Batch, Row, assemble, buckets
from .rows import cut_rows
from .tokenize import Examples, Tokenize, TokenizeConfig

CHUNK = 64  # examples tokenized together
_PLAIN_BLOCK = 256  # rows of a block that is not shuffled
_KEPT = 8  # beginnings of blocks remembered for `state`
_BLOCK_STREAM = 0x626C6B


class StreamedRows:
    """The rows of one dataset, epoch after epoch; its shards are shuffled anew in each but the first."""

    def __init__(self, source: sources.Source, tokenize: Tokenize, how: TokenizeConfig):
        self.name, self.identity, self.report = source.name, source.identity, source.report
        self.source, self._tokenize, self._config = source, tokenize, how
        self._dataset = source.dataset
        self._read: dict[str, Any] | None = None
        self.restore(None)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on where `state` was taken; None: at the beginning."""
        state = state or {"epoch": 0, "read": None, "carry": [], "given": 0, "at": 0, "counts": {}, "account": {}}
        self.epoch, self._carry, self.counts = state["epoch"], state["carry"], Counter(state["counts"])
        self.account, self._at = Account.from_json(copy.deepcopy(state["account"])), state["at"]
        self._examples: Iterator[Any] | None = None
        self._rows: deque[Row] = deque()
        self._before = {**state, "given": 0}
        self._given, self._rows_this_epoch = 0, 0
        self._open(state["read"])
        for _ in range(state["given"]):  # rows of a chunk that was in the middle of being used
            self.next()

    def state(self) -> dict[str, Any]:
        """Where the next row comes from, as JSON: the dataset's own position before the chunk of examples in use,
        the tokens left over then, and the rows of it that are used up."""
        return {**self._before, "given": self._given}

    def next(self) -> Row:
        """The next row.

        Raises:
            InputError: the dataset cannot be read on, or a whole epoch of it holds nothing to train on.
        """
        while not self._rows:
            if not self._refill():
                if not self._rows_this_epoch and not self._carry:
                    raise InputError(f"{self.name}: a whole pass found nothing to train on{self._why()}")
                self.epoch, self._rows_this_epoch, self._at = self.epoch + 1, 0, 0
                self._open(None)
        self._given += 1
        return self._rows.popleft()

    def first(self, count: int) -> list[Row]:
        """So many rows, or those of one pass if it has fewer.

        Raises:
            InputError: it has none.
        """
        while len(self._rows) < count and self._refill():
            pass
        if not self._rows:
            raise InputError(f"{self.name}: found no row of max_length {self._config.length}{self._why()}")
        return list(islice(self._rows, count))

    def _refill(self) -> bool:
        """Tokenize the next few examples; False when the epoch has ended."""
        if self._examples is None:
            return False
        read = self._read
        try:
            examples = list(islice(self._examples, CHUNK))
            self._read = self._dataset.state_dict()
        except Exception as error:  # the library's own zoo, and the network's
            raise sources.unreadable(self.name, error) from error
        before = {
            "epoch": self.epoch, "read": read, "carry": self._carry, "given": 0, "at": self._at,
            "counts": dict(self.counts), "account": copy.deepcopy(self.account.as_json()),
        }  # fmt: skip
        if not examples:
            self._examples = None
            return False
        numbers = range(self._at, self._at + len(examples))
        if not self.source.is_raw:
            examples = [{name: readers.from_column(value) for name, value in example.items()} for example in examples]
        entry = self._tokenize(examples, numbers)
        rows, self._carry = cut_rows(entry, self._config, self._carry)
        self._count(entry, examples, numbers)
        self._at += len(examples)
        if rows:
            # Chunks that fill no row leave the mark where it is: they are read again with the next.
            self._before, self._given = before, 0
            self._rows_this_epoch += len(rows)
            self._rows.extend(rows)
        return True

    def _open(self, read: Any) -> None:
        # The epoch must be set before the position: a position of another epoch is ignored.
        self._dataset.set_epoch(self.epoch)
        self._dataset.load_state_dict(copy.deepcopy(read))
        self._examples, self._read = iter(self._dataset), read

    def _count(self, entry: Examples, examples: list[dict[str, Any]], numbers: range) -> None:
        """Rows of the first pass; later ones find the same again."""
        self.counts["tokens"] += sum(map(len, entry["ids"]))
        self.counts["rows"] += len(examples)
        cut = [cut for cut, why in zip(entry["cut"], entry["why"], strict=True) if cut and not why]
        self.counts["answers cut"] += len(cut)
        self.counts["tokens cut off"] += sum(cut)
        if self.epoch:
            return
        found = list(zip(entry["row"], entry["why"], entry["detail"], strict=True))
        for number, group in groupby(found, lambda one: one[0]):
            example = examples[number - numbers[0]]
            where = partial(self.source.where, number, example)
            self.account.count_row([(why, detail) for _, why, detail in group], where)
        for seen, times in Counter(filter(None, entry["seen"])).items():
            self.account.count_seen(seen, times)

    def _why(self) -> str:
        return f": {self.account.refusal()}" if self.account.left_out else ""


class StreamedBatches:
    """Batches of streamed rows. `take(step)` may go back over the block in use, but not further.

    Every host reads the whole stream, and keeps of each batch the rows of its devices: simple, and the same on any
    number of hosts.
    """

    rows_per_epoch = None

    def __init__(
        self,
        parts: list[StreamedRows],
        weights: tuple[float, ...],
        *,
        batch_size: int,
        shuffle_buffer: int,
        seed: int,
        pad_id: int,
        length: int,
        vocab_size: int,
        fingerprint: str,
        pads_answers: bool = False,
    ):
        self.fingerprint = fingerprint
        self.parts, self._weights = parts, weights
        self._batch_size, self._seed, self._pad_id, self._length = batch_size, seed, pad_id, length
        self._vocab_size, self._pads_answers = vocab_size, pads_answers
        self._shuffles, self._size = shuffle_buffer > 1, shuffle_buffer if shuffle_buffer > 1 else _PLAIN_BLOCK
        self._padding = [0, 0]  # tokens that are padding, tokens
        shuffle.shares(weights)  # refuses impossible ones now
        for part in parts:
            part.next()  # so that a stream without a row is refused now
        self._found = [part.account.report for part in parts]
        self.restore(None, 0)

    @property
    def report(self) -> str:
        """What will be read, and what its first rows were found to be, in words."""
        how = f"shuffled in blocks of {self._size:,} rows" if self._shuffles else "in its own order"
        said = []
        for part, found in zip(self.parts, self._found, strict=True):
            said += [f"stream of {part.report}, {how}; of its first rows:", found]
        lengths = ", ".join(map(str, buckets(self._length)))
        return "\n".join([*said, f"batches of {self._batch_size} rows, of length {lengths}"])

    def counts(self) -> str:
        """What has been read, left out, cut and padded, in words; resumed runs count on (but for padding)."""
        said = []
        for part in self.parts:
            counts = ", ".join(f"{number:,} {what}" for what, number in part.counts.items() if number)
            said += [f"{part.name}: {part.epoch} whole passes, {counts or 'nothing'} read", part.account.report]
        return "\n".join([*said, f"{self._padding[0] / max(1, self._padding[1]):.1%} padding"])

    def take(self, step: int) -> Batch:
        """The batch of update `step` (the first is 0).

        Raises:
            InputError: the stream cannot be read on, or its ids are not the model's.
            ValueError: a step before the block in use.
        """
        numbers = self._number(step) + np.arange(self._batch_size)
        rows = [self._row(int(number)) for number in numbers]
        sizes = np.array([len(row.ids) for row in rows])
        prompts = np.array([row.prompt_length for row in rows])
        batch = assemble(
            dict(enumerate(rows)), sizes, prompts, numbers, self._pad_id, length=self._length,
            pads_answers=self._pads_answers,
        )  # fmt: skip
        check_tokens(batch.tokens, self._vocab_size)
        self._padding[0] += batch.tokens.size - int(batch.real_length.sum())
        self._padding[1] += batch.tokens.size
        return batch

    def state(self, step: int) -> dict[str, Any]:
        """What `restore` needs to go on with `take(step)`, as JSON; `step` is that of the last `take`, or the next.

        Raises:
            ValueError: another step.
        """
        start = self._start_of(self._number(step))
        if start not in self._states:
            raise ValueError(f"no position is known for step {step}")
        return {"row": start, "next": self._number(step), "sources": self._states[start]}

    def restore(self, state: dict[str, Any] | None, step: int) -> None:
        """Go on with `take(step)` from its `state`; None: the stream begins anew with that step."""
        if state is None:
            state = {"row": step * self._batch_size, "sources": [None] * len(self.parts)}
        # Where another run goes on from this state with batches of another size, its rows are numbered from here.
        self._shift = state.get("next", step * self._batch_size) - step * self._batch_size
        self._first = self._at = state["row"]
        self._restore_parts(state["sources"])
        self._states: dict[int, list] = {self._at: [part.state() for part in self.parts]}
        self._blocks: dict[int, list[Row]] = {}

    def _number(self, step: int) -> int:
        """Of the first row of a step."""
        return step * self._batch_size + self._shift

    def _start_of(self, number: int) -> int:
        return self._first + (number - self._first) // self._size * self._size

    def _row(self, number: int) -> Row:
        start = self._start_of(number)
        if start < self._first or (start not in self._blocks and start < min(self._states)):
            raise ValueError(f"row {number} lies before what a stream can go back to")
        while start not in self._blocks:
            self._read_block(start if start in self._states else max(self._states))
        return self._blocks[start][number - start]

    def _read_block(self, start: int) -> None:
        if self._at != start:
            self._restore_parts(self._states[start])
        source, _ = shuffle.mixture_schedule(np.arange(start, start + self._size), self._weights, self._seed)
        rows = [self.parts[number].next() for number in source]
        self._at = start + self._size
        if self._shuffles:
            draw = np.random.default_rng([self._seed, start, 0, _BLOCK_STREAM])
            rows = [rows[number] for number in draw.permutation(len(rows))]
        self._blocks[start] = rows
        self._states[self._at] = [part.state() for part in self.parts]
        while len(self._blocks) > 2:
            del self._blocks[next(iter(self._blocks))]  # the one read longest ago
        while len(self._states) > _KEPT:
            del self._states[min(self._states)]

    def _restore_parts(self, states: list) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.restore(state)
