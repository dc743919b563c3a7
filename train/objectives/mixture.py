"""Several objectives of which each update draws one, by weight."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from .example import Objective

# Folded into an update's key where rows fold in their numbers, and the whole batch how many they are: all below it.
_DRAW = 2**31 - 1


class Mixture(NamedTuple):
    """Objectives by name, each with its share of the updates; the shares sum to 1."""

    names: tuple[str, ...]
    shares: tuple[float, ...]
    objectives: tuple[Objective, ...]

    def drawn(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Int[Array, ""]:
        """The number of the objective that update `step` trains: a function of (key, step) alone, so the same on all
        hosts, for all micro-batches and after any resume."""
        u = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, step), _DRAW))
        return (u >= jnp.asarray(np.cumsum(self.shares[:-1]), u.dtype)).sum()
