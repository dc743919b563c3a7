"""Likelihoods of many rows summed up: in all, by noise level and by place in the block, each with its standard error.

The error is that of the noise that was drawn, the texts being what they are. It comes from pairs of draws that differ
by chance alone; a mean over a band of levels is a ratio of two sums, whose error is taken to first order.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.likelihood.estimate import Draws

BANDS = 4


def check_finite(nats: float | Float[np.ndarray, "..."], where: str = "") -> None:
    """Refuse to sum up what is no number.

    Args:
        where: the row, as it is told to a user.

    Raises:
        InputError: naming it.
    """
    if not np.isfinite(nats).all():
        raise InputError(
            f"{where}{': ' if where else ''}the model's probabilities are not finite; weights are damaged, or float16 "
            "overflows (--dtype float32)"
        )


class Tally:
    """Sums over rows."""

    def __init__(self, block_length: int | None):
        self.nats = self.variance = 0.0
        self.tokens = self.bytes = self.rows = self.drawn = 0
        # Of each band of levels: nats and tokens of the draws in it, the squares and products of their differences, and
        # how many draws there are.
        self.bands = np.zeros((BANDS, 6))
        self.places = np.zeros((block_length or 0, 4))  # nats, tokens, variance of the nats, tokens left to chance

    def add(self, draws: Draws, place: Int[np.ndarray, " C"] | None, size: int) -> None:
        """Add a row.

        Args:
            place: of each token in its block; None: there are no blocks.
            size: bytes of what is counted.
        """
        nats, variance = draws.nats
        self.nats, self.variance = self.nats + nats, self.variance + variance
        self.tokens, self.bytes, self.rows = self.tokens + draws.start.size, self.bytes + size, self.rows + 1
        self.drawn += int((~draws.is_certain).sum())
        if not draws.start.size:
            return
        self._add_levels(draws)
        if place is not None:
            of_token = draws.value.mean(axis=0), np.ones(place.size), _variances(draws.value), ~draws.is_certain
            np.add.at(self.places, place, np.stack(of_token, axis=1))

    def _add_levels(self, draws: Draws) -> None:
        """Each block's draws, in the bands of their levels: n/l · Σ ce of n tokens."""
        S, first = len(draws.value), draws.blocks
        begins = np.searchsorted(draws.start, first)
        nats, level = draws.of_blocks(draws.value), draws.level[:, begins]
        band = np.clip(np.ceil(level * BANDS - 1e-4).astype(int) - 1, 0, BANDS - 1)
        for n in range(BANDS):
            x, w = (np.where(band == n, value, 0.0) / S for value in (nats, draws.size[begins]))
            dx, dw = (value[0::2] - value[1::2] if S > 1 else np.zeros(1) for value in (x, w))
            count = (w > 0).sum() if S > 1 else 0
            self.bands[n] += x.sum(), w.sum(), (dx * dx).sum(), (dx * dw).sum(), (dw * dw).sum(), count

    def results(self) -> dict[str, Any]:
        """Everything that was measured, as a file has it; None where there is nothing to take the mean of."""
        error, bits = math.sqrt(self.variance), math.log(2)
        per_token, its_error = _ratio(self.nats, self.tokens), _ratio(error, self.tokens)
        perplexity = None if per_token is None else math.exp(min(per_token, 700.0))
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "is_exact": not self.drawn,
            "nats": _with(self.nats, error),
            "nats_per_token": _with(per_token, its_error),
            "bits_per_byte": _with(_ratio(self.nats / bits, self.bytes), _ratio(error / bits, self.bytes)),
            "perplexity": _with(perplexity, None if perplexity is None else perplexity * (its_error or 0.0)),
            "by_level": [self._band(n) for n in range(BANDS)],
            "by_place": [
                {
                    "place": n,
                    "tokens": int(count),
                    "is_exact": not drawn,
                    **_with(_ratio(nats, count), _ratio(math.sqrt(variance), count)),
                }
                for n, (nats, count, variance, drawn) in enumerate(self.places)
                if count
            ],
        }

    def _band(self, n: int) -> dict[str, Any]:
        """One band; a single draw says nothing of its error."""
        nats, tokens, xx, xw, ww, draws = self.bands[n]
        mean, error = _ratio(nats, tokens), None
        if mean is not None and draws != 1:
            variance = max(xx - 2 * mean * xw + mean**2 * ww, 0.0) * (draws / (draws - 1) if draws else 0)
            error = math.sqrt(variance) / tokens
        share = _ratio(tokens, self.tokens)
        return {
            "above": n / BANDS,
            "up_to": (n + 1) / BANDS,
            "share": share,
            "is_exact": not draws,
            **_with(mean, error),
        }


def grouped(places: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Places in the block in at most so many groups of neighbors, which a table has room for."""
    size = -(-len(places) // most)
    found = []
    for begin in range(0, len(places), size or 1):
        group = places[begin : begin + size]
        tokens = sum(p["tokens"] for p in group)
        mean = sum(p["mean"] * p["tokens"] for p in group) / tokens
        error = math.sqrt(sum((p["standard_error"] * p["tokens"]) ** 2 for p in group)) / tokens
        about = {"first": group[0]["place"], "last": group[-1]["place"], "tokens": tokens}
        found.append(about | {"is_exact": all(p["is_exact"] for p in group), **_with(mean, error)})
    return found


def _variances(value: Float[np.ndarray, "S C"]) -> Float[np.ndarray, " C"]:
    """Of each token's mean over the draws, from pairs of them."""
    if len(value) == 1:
        return np.zeros(value.shape[1])
    return np.square(value[0::2].astype(np.float64) - value[1::2]).sum(axis=0) / len(value) ** 2


def _ratio(x: float, y: float) -> float | None:
    return float(x / y) if y else None


def _with(mean: float | None, error: float | None) -> dict[str, float | None]:
    return {"mean": mean, "standard_error": error}
