"""Finished turns of chats, kept for the next: it begins with the same tokens, and they are not read again."""

from collections.abc import Sequence

from qwen3llada_jax.sampling.rows.keeping import Prefix


class Kept:
    """The latest turns, at most so many."""

    def __init__(self, most: int):
        self._most = most
        self._turns: list[Prefix] = []

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._most > 0

    def best(self, ids: Sequence[int | None], block_length: int) -> Prefix | None:
        """The turn of those read in such blocks that a text begins with furthest; None: not for a block."""
        read_so = [turn for turn in self._turns if turn.block_length == block_length]
        found = max(read_so, key=lambda turn: _in_common(turn.ids, ids), default=None)
        return found if found is not None and _in_common(found.ids, ids) >= block_length else None

    def add(self, turn: Prefix) -> None:
        """Keep a turn, in the place of those that it begins with, or of the oldest."""
        self._turns = [old for old in self._turns if _in_common(old.ids, turn.ids) < len(old.ids)]
        self._turns = [*self._turns, turn][-self._most :]


def _in_common(one: Sequence[int], other: Sequence[int | None]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
