"""The newer rules of sampling once more, in numpy and plain Python from their papers: what ours are compared with.

One row, greedy, no cache: every pass runs torch's model over the whole row. A rule is a class of its own here too, made
anew for each block: `look(p, masked, tokens)` sees the distributions [S, V] (float64) of a block, which of its places
are masked, and what stands there, and says what the pass does. `Close` keeps the smallest difference that decided
anything: where it is below float32's rounding, right samplers may differ.
"""

from typing import NamedTuple

import numpy as np
from torch_families import Close
from torch_twins import logits_of


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


class KLASS:
    def __init__(self, close: Close, level: float, kl: float, passes: int):
        self.close, self.level, self.kl, self.passes = close, level, kl, passes
        self.before, self.history = None, []

    def look(self, p, masked, tokens):
        """Stable are places whose last few KL(now ‖ before) are all small."""
        if self.before is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                self.history.append(np.where(p > 0, p * np.log(p / self.before), 0.0).sum(1))
            for value in self.history[-1][masked]:
                self.close.between(value, self.kl)
        self.before = p
        is_sure = above(p.max(1), self.level, self.close) & masked
        recent = self.history[-self.passes :]
        if len(recent) < self.passes:
            is_sure[:] = False
        for changed in recent:
            is_sure &= changed < self.kl
        return Pass(np.flatnonzero(is_sure).tolist() or [surest(p, masked, self.close)])


class LESS:
    def __init__(self, close: Close, level: float, js: float, passes: int, top: int):
        self.close, self.level, self.js, self.passes, self.top = close, level, js, passes, top
        self.before, self.still = None, None

    def look(self, p, masked, tokens):
        shares = []
        for row in p:
            ids = np.argsort(-row)[: self.top]
            shares.append({int(i): row[i] / row[ids].sum() for i in ids})
            self.close.between(*np.log(row[np.argsort(-row)[: self.top + 1]]))
        if self.before is None:
            self.still = np.zeros(len(p), int)
        else:
            for i, (now, then) in enumerate(zip(shares, self.before, strict=True)):
                js = 0.0
                for token in {*now, *then}:
                    a, b = now.get(token, 0.0), then.get(token, 0.0)
                    js += sum(x / 2 * np.log(2 * x / (a + b)) for x in (a, b) if x)
                if masked[i]:
                    self.close.between(js, self.js)
                is_same = max(now, key=now.get) == max(then, key=then.get)
                self.still[i] = self.still[i] + 1 if js < self.js and is_same else 0
        self.before = shares
        is_sure = above(p.max(1), self.level, self.close) & masked & (self.still >= self.passes)
        return Pass(np.flatnonzero(is_sure).tolist() or [surest(p, masked, self.close)])


class StableAndConfident:
    """Of a block that is otherwise written one by one."""

    def __init__(self, close: Close, entropy: float, passes: int):
        self.close, self.entropy, self.passes, self.seen = close, entropy, passes, []

    def look(self, p, masked, tokens):
        self.seen.append(p.argmax(1))
        recent = self.seen[-self.passes - 1 :]
        is_stable = len(recent) == self.passes + 1 and all((x == recent[-1])[masked].all() for x in recent)
        mean = np.mean([-(row[row > 0] * np.log(row[row > 0])).sum() for row in p[masked]])
        self.close.between(mean, self.entropy)
        if is_stable and mean < self.entropy:
            return Pass(np.flatnonzero(masked).tolist())
        return Pass([surest(p, masked, self.close)])


class WINO:
    """The published code's counts, with what the model says at the token itself in the place of a shadow block."""

    def __init__(self, close: Close, wide: float, narrow: float):
        self.close, self.wide, self.narrow, self.last = close, wide, narrow, 30

    def look(self, p, masked, tokens):
        sure = np.where(masked, p.max(1), -np.inf)
        back = np.where(masked, np.inf, p[np.arange(len(p)), tokens])
        most = min(max(int(masked.sum() * 0.7), 5), 20)
        write = np.flatnonzero(sure > self.wide)
        for value in sure[masked]:
            self.close.between(value, self.wide)
        for value in back[~masked]:
            self.close.between(value, self.narrow)
        if len(write) > most:
            order = np.argsort(-sure, kind="stable")
            self.close.between(*sure[order[most - 1 : most + 1]])
            write = np.sort(order[:most])
        elif not len(write):
            write = np.array([surest(p, masked, self.close)])
        again = np.array([], int)
        if len(write) > 1:
            again = np.flatnonzero(back < self.narrow)
            if len(again) >= self.last:
                order = np.argsort(back, kind="stable")
                self.close.between(*back[order[max(self.last - 2, 0) : self.last]])
                again = order[: self.last - 1]
        self.last = len(write)
        return Pass(write.tolist(), again.tolist())


class Edits:
    """Threshold decoding in which written tokens are replaced."""

    def __init__(self, close: Close, level: float, edit: float):
        self.close, self.level, self.edit = close, level, edit

    def look(self, p, masked, tokens):
        write = np.flatnonzero((p.max(1) > self.level) & masked).tolist()
        for i, value in enumerate(p.max(1)):
            self.close.between(value, self.level if masked[i] else self.edit)
        if masked.any():
            write = write or [surest(p, masked, self.close)]
        best = p.argmax(1)
        surer = np.flatnonzero(~masked & (p.max(1) > self.edit) & (best != tokens))
        return Pass(write, edit={int(i): int(best[i]) for i in surer})
