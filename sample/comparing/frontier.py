"""How good rules are for how many forward passes: intervals over prompts, and the area under a rule's sweep.

Every way to sample wrote the same prompts, so prompts are drawn anew, with replacement, and the same ones for all ways
(the paired bootstrap; Efron and Tibshirani 1993, chapter 13): what makes a prompt hard moves all of them together, and
differences have narrower intervals than their two sides. Intervals are the middle 95% of the draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from qwen3llada_jax.sampling.config import SETTINGS

from ..own_rules import is_own

DRAWS = 2000
_SWEPT = {"order", "commit", "remask", "finish", "edit"}  # rules whose numbers are levels of a sweep


@dataclass(frozen=True)
class Points:
    """What each of M ways to sample wrote for each of n prompts.

    Attributes:
        good: [M, n] right answers, or the log-probability of a text; its mean is `good` / `out_of`, both summed.
        out_of: [M, n] 1, or the tokens of the text.
        tokens, nfe: [M, n] tokens written, forward passes.
    """

    good: Float[np.ndarray, "M n"]
    out_of: Float[np.ndarray, "M n"]
    tokens: Int[np.ndarray, "M n"]
    nfe: Int[np.ndarray, "M n"]

    def drawn(self, seed: int) -> tuple[Float[np.ndarray, "M R"], Float[np.ndarray, "M R"]]:
        """(quality, tokens a forward) of R draws of the prompts; NaN where a draw has no tokens to judge."""
        n = self.good.shape[1]
        times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS).T.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.good @ times / (self.out_of @ times), self.tokens @ times / (self.nfe @ times)


def interval(draws: Float[np.ndarray, " R"]) -> list[float] | None:
    """The middle 95%, without draws that have nothing to say."""
    there = draws[np.isfinite(draws)]
    return [float(x) for x in np.percentile(there, (2.5, 97.5))] if there.size else None


def with_intervals(rows: Sequence[Mapping[str, Any]], measure: str, points: Points, seed: int) -> list[dict[str, Any]]:
    """The rows, with intervals of their quality, of their tokens a forward, and of what they gain on the first."""
    quality, speed = points.drawn(seed)
    found = []
    for i, row in enumerate(rows):
        gain = None if row[measure] is None or rows[0][measure] is None else row[measure] - rows[0][measure]
        more = {
            "interval": interval(quality[i]),
            "tokens_per_forward_interval": interval(speed[i]),
            "difference_to_first": gain,
            "difference_interval": interval(quality[i] - quality[0]),
        }
        found.append({**row, **more})
    return found


def sweeps(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Which rows are levels of one rule: budgets of steps, or numbers of a rule (`threshold=0.9`, `threshold=0.5`)."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault("+".join(_without_level(part.strip()) for part in row["rule"].split("+")), []).append(i)
    return found


def _without_level(part: str) -> str:
    if is_own(part):
        return ":".join(part.split(":")[:2])
    name = part.partition("=")[0].strip().replace("-", "_")
    is_level = name in SETTINGS and SETTINGS[name].slot in _SWEPT and not isinstance(SETTINGS[name].kind, tuple)
    return name if is_level else part


def aup(tokens_per_forward: Sequence[float] | np.ndarray, accuracy: Sequence[float] | np.ndarray, best: float) -> float:
    """Accuracy under parallelism of one rule's sweep, accuracies in percent.

    d3LLM (Qian et al., 2025, "AUP: when Accuracy Meets Parallelism"): with points (ρ, y) by rising ρ, those of
    y < y₁ − 5 left out,

        AUP = ρ₁ y₁ + ½ Σ (ρᵢ − ρᵢ₋₁)(yᵢ W(yᵢ) + yᵢ₋₁ W(yᵢ₋₁)),   W(y) = min(exp(−3 (1 − y / y_max)), 1).

    Args:
        best: y_max, the highest accuracy that any rule reached on the task.
    """
    order = np.argsort(tokens_per_forward, kind="stable")
    rho, y = (np.asarray(x, np.float64)[order] for x in (tokens_per_forward, accuracy))
    kept = y >= y[0] - 5
    rho, y = rho[kept], y[kept]
    weighed = y * np.minimum(np.exp(-3 * (1 - y / best)), 1) if best > 0 else y
    return float(rho[0] * y[0] + (np.diff(rho) * (weighed[1:] + weighed[:-1])).sum() / 2)


def areas(rows: Sequence[Mapping[str, Any]], measure: str, points: Points, seed: int) -> list[dict[str, Any]]:
    """{rule, levels, aup, interval} of each rule's sweep; y_max is the best of all of them, in each draw its best."""
    quality, speed = points.drawn(seed)
    best = 100 * quality.max(axis=0)
    found = []
    for rule, at in sweeps(rows).items():
        rho, y = ([rows[i][name] for i in at] for name in ("tokens_per_forward", measure))
        value = aup(rho, [100 * x for x in y], 100 * max(row[measure] for row in rows))
        draws = np.array([aup(speed[at, r], 100 * quality[at, r], best[r]) for r in range(DRAWS)])
        found.append({"rule": rule, "levels": len(at), "aup": value, "interval": interval(draws)})
    return found
