"""A lane: rows of one or several streams, mixed by weight, shuffled block by block, in an order that can be met again.

Rows are read in blocks of `shuffle_buffer`, and each block is shuffled by itself: unlike a buffer that is refilled row
by row, a block can be read again. So the position saved with a checkpoint is small (where each dataset stood when the
step's block began, and the tokens then left over) and the rest follows from the number of the step.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from .. import shuffle
from ..loader import Row
from .rows import StreamedRows

_PLAIN_BLOCK = 256  # rows of a block that is not shuffled
_KEPT = 8  # beginnings of blocks remembered for `state`
_BLOCK_STREAM = 0x626C6B


class Lane:
    """The rows that a batch takes from this lane. `take(step)` may go back over the block in use, but not further.

    Args:
        parts: rows of each dataset, of this lane alone.
        weights: how often each is drawn, in any unit.
        number: of this lane, among `lanes`.
        rows_per_step: of this lane in a batch.
        shuffle_buffer: rows of a block; 1: in their own order.
    """

    def __init__(
        self,
        parts: list[StreamedRows],
        weights: tuple[float, ...],
        *,
        number: int,
        lanes: int,
        rows_per_step: int,
        shuffle_buffer: int,
        seed: int,
    ):
        self.parts, self._weights = parts, weights
        self._lane, self._lanes, self._rows_per_step, self._seed = number, lanes, rows_per_step, seed
        self._shuffles, self._size = shuffle_buffer > 1, shuffle_buffer if shuffle_buffer > 1 else _PLAIN_BLOCK
        for part in parts:
            part.next()  # so that a stream without a row is refused now
        self.found = [part.account.report for part in parts]  # of the first rows
        self.restore(None, 0)

    def numbers(self, step: int) -> Int[np.ndarray, " b"]:
        """The rows of update `step`, as this lane numbers them."""
        return step * self._rows_per_step + self._shift + np.arange(self._rows_per_step)

    def take(self, step: int) -> list[Row]:
        """The rows of update `step` (the first is 0).

        Raises:
            InputError: a stream cannot be read on.
            ValueError: a step before the block in use.
        """
        return [self._row(int(number)) for number in self.numbers(step)]

    def state(self, step: int) -> dict[str, Any]:
        """What `restore` needs to go on with `take(step)`, as JSON; `step` is that of the last `take`, or the next.

        Raises:
            ValueError: another step.
        """
        number = int(self.numbers(step)[0])
        start = self._start_of(number)
        if start not in self._states:
            raise ValueError(f"no position is known for step {step}")
        return {"row": start, "next": number, "sources": self._states[start]}

    def restore(self, state: dict[str, Any] | None, step: int) -> None:
        """Go on with `take(step)` from its `state`; None: the lane begins anew with that step."""
        plain = step * self._rows_per_step
        if state is None:
            state = {"row": plain, "sources": [None] * len(self.parts)}
        # Where another run goes on from this state with batches of another size, its rows are numbered from here.
        self._shift = state.get("next", plain) - plain
        self._first = self._at = state["row"]
        self._restore_parts(state["sources"])
        self._states: dict[int, list] = {self._at: [part.state() for part in self.parts]}
        self._blocks: dict[int, list[Row]] = {}

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
        # Rows are mixed as the rows of all lanes together, dealt to them in turn.
        ids = np.arange(start, start + self._size) * self._lanes + self._lane
        source, _ = shuffle.mixture_schedule(ids, self._weights, self._seed)
        rows = [self.parts[number].next() for number in source]
        self._at = start + self._size
        if self._shuffles:
            draw = np.random.default_rng([self._seed, start, self._lane, _BLOCK_STREAM])
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
