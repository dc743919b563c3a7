"""Means of draws, and how far they are off."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Estimate(NamedTuple):
    """−log p of each row, or a bound above it, in nats, with its standard error.

    Attributes:
        mean: [B]
        standard_error: [B] of the noise that was drawn; 0 where nothing is left to chance.
        tokens: [B] how many tokens it is the sum of: prompts are not counted, nor, with shift, a row's first token.
    """

    mean: Float[np.ndarray, " B"]
    standard_error: Float[np.ndarray, " B"]
    tokens: Int[np.ndarray, " B"]

    @property
    def per_token(self) -> "Estimate":
        """Nats per token of each row; not a number where there are none."""
        count = np.where(self.tokens > 0, self.tokens, np.nan)
        return Estimate(self.mean / count, self.standard_error / count, self.tokens)

    @property
    def total(self) -> "Estimate":
        """All rows together, as one."""
        error = np.sqrt(np.square(self.standard_error).sum(keepdims=True))
        return Estimate(self.mean.sum(keepdims=True), error, self.tokens.sum(keepdims=True))


@dataclass(frozen=True)
class Draws:
    """What the draws of one row gave, of the C tokens that it is asked for.

    Attributes:
        value: [S, C] weighted −log p of the noised tokens of each draw, 0 at the others: its mean over the draws is
            each token's part of the bound.
        level: [S, C] noise level of each token's block.
        start, size, is_certain: [C] its block (`reading.Blocks`).
        method: how they were drawn.
    """

    value: Float[np.ndarray, "S C"]
    level: Float[np.ndarray, "S C"]
    start: Int[np.ndarray, " C"]
    size: Int[np.ndarray, " C"]
    is_certain: Bool[np.ndarray, " C"]
    method: str

    @property
    def blocks(self) -> Int[np.ndarray, " G"]:
        """Where in C each block begins."""
        return np.unique(self.start)

    @property
    def nats(self) -> tuple[float, float]:
        """(the bound, the variance of its estimate)."""
        if not self.start.size:
            return 0.0, 0.0
        sums = self.of_blocks(self.value)
        return float(sums.sum() / len(sums)), variance_of_sum(sums, self.method) / len(sums) ** 2

    def of_blocks(self, value: Float[np.ndarray, "S C"]) -> Float[np.ndarray, "S G"]:
        """Sums over the tokens of each block."""
        return np.add.reduceat(value.astype(np.float64), self.blocks, axis=1)


def variance_of_sum(draws: Float[np.ndarray, "S G"], method: str) -> float:
    """The variance of the sum over all draws, and over G quantities whose draws know nothing of one another.

    Of two draws of a stratum (a − b)² has the expectation of the variance of a + b. Antithetic draws depend on one
    another within a pair, and pairs are all alike. A single draw has none: then nothing is left to chance.
    """
    if len(draws) == 1:
        return 0.0
    if method == "stratified":
        return float(np.square(draws[0::2] - draws[1::2]).sum())
    pairs = draws[0::2] + draws[1::2]
    return float(len(pairs) * pairs.var(axis=0, ddof=1).sum())
