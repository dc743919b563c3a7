"""The newer rules of sampling once more, in numpy and plain Python from their papers: what ours are compared with.

One row, greedy, no cache: every pass runs torch's model over the whole row. A rule is a class of its own here too, made
anew for each block: `look(p, masked, tokens)` sees the distributions [S, V] (float64) of a block, which of its places
are masked, and what stands there, and says what the pass does. `Close` keeps the smallest difference that decided
anything: where it is below float32's rounding, right samplers may differ.
"""

from typing import NamedTuple

import numpy as np
from conftest import logits_of
from torch_families import Close


class Pass(NamedTuple):
    """What a pass does to a block: places that are written, and masked again, and {place: token} replaced."""

    write: list[int]
    again: list[int] = []  # noqa: RUF012
    edit: dict[int, int] = {}  # noqa: RUF012


def written(reference, prompt, rule_of, *, gen_length, block_length, never, mask, close, stays=None) -> tuple:
    """(answer, passes, {place: the pass that wrote it last}) under `full`.

    Args:
        rule_of: () → a rule, for each block.
        stays: passes that a full block may go on for at most; it goes on until one of them replaces nothing.
    """
    tokens = [*prompt, *[mask] * gen_length]
    passes, at = 0, {}
    for begin in range(len(prompt), len(tokens), block_length):
        rule, block = rule_of(close), slice(begin, begin + block_length)
        masked, more = np.ones(block_length, bool), 0
        while True:
            was_full = not masked.any()
            logits = logits_of(reference, np.array([tokens]))[0, block].astype(np.float64)
            logits[:, never] = -np.inf
            for row in np.sort(logits, axis=1)[:, -2:]:
                close.between(*row)
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            now = rule.look(p, masked.copy(), np.array(tokens[block]))
            for i in now.write:
                tokens[begin + i], masked[i], at[begin + i] = int(p[i].argmax()), False, passes
            for i in now.again:
                tokens[begin + i], masked[i] = mask, True
            for i, token in now.edit.items():
                tokens[begin + i], at[begin + i] = token, passes
            passes, more = passes + 1, more + was_full
            if not masked.any() and (not stays or more == stays or (was_full and not now.edit)):
                break
    return tokens[len(prompt) :], passes, at


def surest(p, masked, close) -> int:
    """The masked place with the likeliest token."""
    sure = np.where(masked, p.max(1), -1.0)
    best = sorted(sure, reverse=True)
    if best[1] > 0:
        close.between(*best[:2])
    return int(sure.argmax())


def above(values, level, close):
    for value in values:
        close.between(float(value), level)
    return values > level


class LocalLeap:
    def __init__(self, close: Close, anchor: float, near: float, radius: int):
        self.close, self.anchor, self.near, self.radius = close, anchor, near, radius

    def look(self, p, masked, tokens):
        sure, found = p.max(1), set()
        for i in np.flatnonzero(masked):
            self.close.between(sure[i], self.anchor)
            self.close.between(sure[i], self.near)
            if sure[i] >= self.anchor:
                found.add(int(i))
                for j in range(max(0, i - self.radius), min(len(p), i + self.radius + 1)):
                    if masked[j] and sure[j] >= self.near:
                        found.add(j)
        return Pass(sorted(found) or [surest(p, masked, self.close)])
