"""Batches of streamed rows, of which each host reads its own lane.

The rows of a batch are dealt to lanes: of S lanes, lane s gives the s-th part of every batch. A run is cut into as many
lanes as there were hosts when it began (`shuffle.lanes_of`), and keeps them: what a lane gives depends on its number
and on S alone. So a run that goes on on another number of hosts meets the rows it would have met; hosts then read
several lanes, or the same one.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.model import check_tokens

from ...runtime.distributed import gathered
from .. import shuffle
from ..account import Account
from ..loader import Batch, Row, assemble, buckets
from .lane import Lane
from .rows import Stream


class StreamedBatches:
    """Batches of streamed rows. `take(step)` may go back over the blocks in use, but not further.

    Args:
        lanes: to cut the streams into; more than one only where all rows are full, for a host does not know how long
            the rows of others are.
        host_rows: rows of a batch that this host needs; None: all.
        told: what else is to be said of how they are read.
    """

    rows_per_epoch = None

    def __init__(
        self,
        streams: Sequence[Stream],
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
        lanes: int = 1,
        host_rows: Int[np.ndarray, " b"] | None = None,
        told: str = "",
    ):
        self.fingerprint = fingerprint
        self._streams, self._weights, self._told = streams, weights, told
        self._batch_size, self._seed, self._pad_id, self._length = batch_size, seed, pad_id, length
        self._vocab_size, self._pads_answers, self._buffer = vocab_size, pads_answers, shuffle_buffer
        self._host_rows = np.arange(batch_size) if host_rows is None else host_rows
        self._wished = self._count = lanes
        self._padding = [0, 0]  # tokens that are padding, tokens
        shuffle.shares(weights)  # refuses impossible ones now
        self._lanes = self._opened(lanes)
        self._found = next(iter(self._lanes.values())).found

    @property
    def parts(self) -> list:
        """The rows of each dataset, of a lane that this host reads."""
        return next(iter(self._lanes.values())).parts

    @property
    def report(self) -> str:
        """What will be read, and what the first rows of this host were found to be, in words."""
        how = f"shuffled in blocks of {self._buffer:,} rows" if self._buffer > 1 else "in its own order"
        said = []
        for stream, found in zip(self._streams, self._found, strict=True):
            said += [f"stream of {stream.source.report}, {how}; of its first rows:", found]
        if self._wished > 1:
            said.append(f"read in {self._wished} lanes, one for each host, all of which are counted at the end")
            said += [f"  {stream.how(self._wished)}" for stream in self._streams]
        said += [self._told] * bool(self._told)
        lengths = ", ".join(map(str, buckets(self._length)))
        return "\n".join([*said, f"batches of {self._batch_size} rows, of length {lengths}"])

    def counts(self) -> str:
        """What has been read, left out, cut and padded, in words, of all hosts, which must ask at the same moment.

        Resumed runs count on (but for padding).
        """
        here = {
            str(number): [[part.epoch, dict(part.counts), part.account.as_json()] for part in lane.parts]
            for number, lane in self._lanes.items()
        }
        lanes = list(self._of_all(here).values())
        said = []
        for i, stream in enumerate(self._streams):
            epochs, counted, accounts = zip(*(lane[i] for lane in lanes), strict=True)
            passes = f"{min(epochs)}" + f" to {max(epochs)}" * (min(epochs) < max(epochs))
            total: Counter[str] = sum(map(Counter, counted), Counter())
            counts = ", ".join(f"{number:,} {what}" for what, number in total.items() if number)
            account = sum(map(Account.from_json, accounts), Account())
            said += [f"{stream.source.name}: {passes} whole passes, {counts or 'nothing'} read", account.report]
        return "\n".join([*said, f"{self._padding[0] / max(1, self._padding[1]):.1%} padding"])

    def take(self, step: int) -> Batch:
        """The batch of update `step` (the first is 0).

        Raises:
            InputError: the stream cannot be read on, or its ids are not the model's.
            ValueError: a step before the block in use.
        """
        size, found = self._batch_size // self._count, dict[int, Row]()
        numbers, sizes = np.zeros(self._batch_size, np.int64), np.full(self._batch_size, self._length)
        prompts = np.zeros(self._batch_size, np.int64)
        for lane, of_lane in self._lanes.items():
            here = slice(lane * size, (lane + 1) * size)
            rows = of_lane.take(step)
            found |= dict(enumerate(rows, here.start))
            numbers[here] = of_lane.numbers(step) * self._count + lane
            sizes[here] = [len(row.ids) for row in rows]
            prompts[here] = [row.prompt_length for row in rows]
        batch = assemble(
            found, sizes, prompts, numbers, self._pad_id, length=self._length, pads_answers=self._pads_answers
        )
        check_tokens(batch.tokens, self._vocab_size)
        self._padding[0] += batch.tokens.size - int(batch.real_length.sum())
        self._padding[1] += batch.tokens.size
        return batch

    def state(self, step: int) -> dict[str, Any]:
        """What this host knows of where `take(step)` goes on, as JSON; `step` is that of the last `take`, or the next.

        Raises:
            ValueError: another step.
        """
        if self._count == 1:
            return self._lanes[0].state(step)
        return {"lanes": {str(number): lane.state(step) for number, lane in self._lanes.items()}}

    def to_save(self, state: dict[str, Any]) -> dict[str, Any]:
        """What `restore` needs on any number of hosts, from what each knows; all must ask at the same moment."""
        return {"lanes": self._of_all(state["lanes"])} if "lanes" in state else state

    def restore(self, state: dict[str, Any] | None, step: int) -> str | None:
        """Go on with `take(step)` from what was saved; None: the stream begins anew with that step.

        Returns:
            What people are to be told of it.

        Raises:
            InputError: batches do not divide over its lanes.
        """
        none = dict.fromkeys(map(str, range(self._wished)))
        states = none if state is None else state.get("lanes", {"0": state})
        if self._batch_size % len(states):
            raise InputError(
                f"training.batch_size {self._batch_size} does not divide by {len(states)}, the lanes that this run's "
                "stream was cut into when it began; set a multiple of that"
            )
        if self._count != len(states):
            self._count, self._lanes = len(states), self._opened(len(states))
        for number, lane in self._lanes.items():
            lane.restore(states[str(number)], step)
        if self._count == self._wished:
            return None
        return (
            f"the stream was cut into {self._count} lane(s) when the run began, one for each host, and stays so; of "
            f"{self._wished} now, each host reads {len(self._lanes)}"
        )

    def _opened(self, lanes: int) -> dict[int, Lane]:
        """Of so many lanes, those that this host needs."""
        size = self._batch_size // lanes
        return {
            lane: Lane(
                [stream.rows(lane, lanes) for stream in self._streams], self._weights, number=lane, lanes=lanes,
                rows_per_step=size, shuffle_buffer=self._buffer, seed=self._seed,
            )
            for lane in np.unique(self._host_rows // size).tolist()
        }  # fmt: skip

    def _of_all(self, here: dict[str, Any]) -> dict[str, Any]:
        """By lane, what the hosts say that read it: all of them the same."""
        said = [here] if self._count == 1 else gathered(here)
        found = {number: of_lane for of_host in said for number, of_lane in of_host.items()}
        return {number: found[number] for number in sorted(found, key=int)}
