"""What became of the rows of a dataset: used, or left out for a reason; which columns and fields were read.

Nothing is left out in silence: rows in = rows used + rows left out, reason by reason, and the first of each is shown.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qwen3llada_jax.errors import listed

_LISTED = 12
_LINE = 280  # characters of reasons in a line


@dataclass
class Account:
    """Counts of what was read.

    Attributes:
        rows: that were read, and `used`: those that something is learned from.
        left_out: rows that nothing is learned from, by reason.
        answers_left_out: answers that are not learned although another of their row is, by reason.
        first: of each reason, the first row and what was wrong with it.
        columns, columns_left_out, fields, fields_left_out: in how many rows they stood.
    """

    rows: int = 0
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    answers_left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    columns: Counter[str] = field(default_factory=Counter)
    columns_left_out: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    fields_left_out: Counter[str] = field(default_factory=Counter)

    def count_row(self, entries: Iterable[tuple[str, str]], where: Callable[[], str]) -> None:
        """One row, by why each of its entries is left out (empty: it is used), and what was wrong with it."""
        entries = list(entries)
        reasons = [reason for reason, _ in entries]
        self.rows += 1
        if "" in reasons:
            self.used += 1
            self.answers_left_out.update(reason for reason in reasons if reason)
        else:
            self.left_out[reasons[0]] += 1
        for reason, detail in entries if "" in reasons else entries[:1]:
            if reason and reason not in self.first:
                self.first[reason] = where() + (f": {detail}" if detail else "")

    def count_seen(self, seen: str, times: int = 1) -> None:
        """The columns and fields of so many rows (see `seen_as`)."""
        for counts, names in zip(
            (self.columns, self.columns_left_out, self.fields, self.fields_left_out), json.loads(seen), strict=True
        ):
            for name in names:
                counts[name] += times

    def __add__(self, other: "Account") -> "Account":
        """The account of both."""
        total = Account()
        for name, ours in vars(self).items():
            theirs = getattr(other, name)
            setattr(total, name, theirs | ours if name == "first" else ours + theirs)
        return total

    @property
    def report(self) -> str:
        """All of it, in words, a subject a line."""
        lines = [
            f"columns: {listed(self.columns, most=40, room=2000)}"
            + _left_out("columns", self.columns_left_out, max(self.columns.values(), default=0))
        ]
        if self.fields or self.fields_left_out:
            lines.append(
                f"turn fields: {listed(self.fields, most=40, room=2000)}"
                + _left_out("turn fields", self.fields_left_out, None)
            )
        lost = sum(self.left_out.values())
        lines.append(f"rows: {self.rows:,} = {self.used:,} used + {lost:,} left out")
        lines += [f"  {count:,} left out: {self._why(reason)}" for reason, count in self.left_out.most_common(_LISTED)]
        if len(self.left_out) > _LISTED:
            lines.append(f"  and {len(self.left_out) - _LISTED} more reasons")
        lines += [
            f"  {count:,} answers of rows that are used left out: {self._why(reason)}"
            for reason, count in self.answers_left_out.most_common(_LISTED)
        ]
        if len(self.answers_left_out) > _LISTED:
            lines.append(f"  and {len(self.answers_left_out) - _LISTED} more reasons of answers")
        return "\n".join(lines)

    def _why(self, reason: str) -> str:
        return f"{reason} (first: {self.first[reason]})"

    def refusal(self) -> str:
        """Why nothing is used at all, in a line."""
        reasons = [f"{count:,} × {self._why(reason)}" for reason, count in self.left_out.most_common()]
        shown = [reason for i, reason in enumerate(reasons) if i == 0 or sum(map(len, reasons[: i + 1])) < _LINE]
        more = f"; and {len(reasons) - len(shown)} more reasons" if len(shown) < len(reasons) else ""
        return f"none of its {self.rows:,} rows can be used: {'; '.join(shown)}{more}"

    def as_json(self) -> dict[str, Any]:
        """For the checkpoint of a stream."""
        return {name: (dict(value) if isinstance(value, dict) else value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Account":
        """The account that `as_json` gave."""
        account = cls()
        for name, value in values.items():
            setattr(account, name, Counter(value) if isinstance(getattr(account, name), Counter) else value)
        return account


def seen_as(columns: Iterable[str], left_out: Iterable[str], fields: Iterable[str], without: Iterable[str]) -> str:
    """What was looked at in a row, as one text: most rows have the same."""
    return json.dumps([sorted(columns), sorted(left_out), sorted(fields), sorted(without)])


def _left_out(what: str, counts: Counter[str], rows: int | None) -> str:
    if not counts:
        return ""
    named = (
        name if rows is None or count >= rows else f"{name} (in {count:,} rows)" for name, count in counts.most_common()
    )
    return f"; {what} left out: {listed(named, most=40, room=2000)}"
