"""Rows from a dataset that is read as it comes, for ever, in an order that a resumed run meets again exactly.

Several hosts may each read a lane of it: its own files, where they divide by the lanes, or every so many-th row.
"""

import copy
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import readers

from .. import sources
from ..account import Account
from ..loader import Row
from ..rows import cut_rows
from ..tokenize import Examples, Reading, TokenizeConfig, tokenize_with

CHUNK = 64  # examples tokenized together


@dataclass(frozen=True)
class Stream:
    """A dataset to read as it comes.

    Attributes:
        first: its first rows, by which columns are found; the same on every host.
    """

    source: sources.Source
    config: TokenizeConfig
    tokenizer: Any
    reading: Reading
    first: list[Mapping[str, Any]]

    def divides(self, lanes: int) -> bool:
        """Whether every lane has files of its own, as many as any other."""
        return bool(self.source.dataset.num_shards % lanes == 0)

    def how(self, lanes: int) -> str:
        """How lanes read it, in words."""
        files = self.source.dataset.num_shards
        if self.divides(lanes):
            return f"{self.source.name}: {files:,} files, {files // lanes:,} in each"
        return (
            f"{self.source.name}: each host reads all of it and tokenizes only its rows, one in {lanes}, for its "
            f"{files:,} file{'s' * (files != 1)} (shards) do not divide by {lanes}"
        )

    def rows(self, lane: int = 0, lanes: int = 1) -> "StreamedRows":
        """The rows of one of so many lanes: each row of the dataset is in exactly one of them."""
        source, every = self.source, 1
        if lanes > 1:
            dataset = source.dataset.shard(1, 0)  # lanes beside each other in a process have positions of their own
            if self.divides(lanes):
                dataset = source.dataset.shard(lanes, lane, contiguous=False)
            else:
                every = lanes
            source = replace(source, dataset=dataset, name=f"{source.name} (lane {lane + 1} of {lanes})")
        return StreamedRows(source, self, lane if every > 1 else 0, every)


class StreamedRows:
    """The rows of one dataset, epoch after epoch; its shards are shuffled anew in each but the first.

    Args:
        remainder, every: only examples whose number leaves this remainder are used.
    """

    def __init__(self, source: sources.Source, stream: Stream, remainder: int = 0, every: int = 1):
        self.name, self.source, self._config = source.name, source, stream.config
        self._tokenize = tokenize_with(stream.config, stream.tokenizer, source, stream.reading, stream.first)
        self._dataset, self._remainder, self._every = source.dataset, remainder, every
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
            kept, end = {}, self._at
            for example in islice(self._examples, CHUNK * self._every):
                if end % self._every == self._remainder:
                    kept[end] = example
                end += 1
            self._read = self._dataset.state_dict()
        except Exception as error:  # the library's own zoo, and the network's
            raise sources.unreadable(self.name, error) from error
        before = {
            "epoch": self.epoch, "read": read, "carry": self._carry, "given": 0, "at": self._at,
            "counts": dict(self.counts), "account": copy.deepcopy(self.account.as_json()),
        }  # fmt: skip
        if end == self._at:
            self._examples = None
            return False
        if not self.source.is_raw:
            kept = {number: readers.from_columns(example) for number, example in kept.items()}
        entry = self._tokenize(list(kept.values()), list(kept))
        rows, self._carry = cut_rows(entry, self._config, self._carry)
        self._count(entry, kept)
        self._at = end
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

    def _count(self, entry: Examples, examples: dict[int, dict[str, Any]]) -> None:
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
            where = partial(self.source.where, number, examples[number])
            self.account.count_row([(why, detail) for _, why, detail in group], where)
        for seen, times in Counter(filter(None, entry["seen"])).items():
            self.account.count_seen(seen, times)

    def _why(self) -> str:
        return f": {self.account.refusal()}" if self.account.left_out else ""
