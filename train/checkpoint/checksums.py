"""A number for each array of a state, by which a bit that flipped on a disk is noticed: orbax keeps none of array data.

The number is the sum of the array's bit patterns modulo 2³². One flipped bit always changes it, and a sum of integers
does not depend on how the array is split over devices or hosts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from qwen3llada_jax import sharding

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(state: Any) -> dict[str, list[Any]]:
    """[dtype, sum] of every array, by its path in the tree. All processes take part, and all get all numbers."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sums = jax.device_get(_sums([leaf for _, leaf in leaves]))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): [leaf.dtype.name, int(number)]
        for (path, leaf), number in zip(leaves, sums, strict=True)
    }


def first_difference(state: Any, saved: dict[str, list[Any]]) -> str | None:
    """The first array of a state that is not what was saved under its name; None: all are.

    What cannot be compared passes: arrays saved without a number, and moments that are read as another dtype.
    """
    for name, now in checksums(state).items():
        then = saved.get(name, now)
        if then[0] == now[0] and then != now:
            return name
    return None


@jax.jit
def _sums(arrays: list[Array]) -> UInt32[Array, " n"]:
    return sharding.constrain(jnp.stack([_sum(x) for x in arrays]), "layers")  # whole on every host


def _sum(x: Array) -> UInt32[Array, ""]:
    bits = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize])
    return bits.astype(jnp.uint32).sum(dtype=jnp.uint32)
