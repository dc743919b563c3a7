"""JAX's random numbers, bit for bit, made faster on a CPU.

The hash is Threefry-2x32 of 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). On a CPU
JAX compiles it as a loop that reads and writes whole arrays for every four rounds; written out it is one loop over
their elements, eight times as fast.
"""

import math
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, UInt32

from qwen3llada_jax import sharding
from qwen3llada_jax.arguments import QUICK_THREEFRY, THREEFRY

_WORTHWHILE = 256  # numbers; written out for fewer, the hash only makes a program longer
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def quick(keys: PRNGKeyArray) -> PRNGKeyArray:
    """The same keys, whose numbers are the same; on a CPU they are made faster.

    Keys of another kind stay as they are, and so do all where JAX writes the hash out itself.
    """
    has_other_numbers = not jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]  # JAX's former ones
    if str(jax.random.key_impl(keys)) != THREEFRY or sharding.platform() != "cpu" or has_other_numbers:
        return keys
    return jax.random.wrap_key_data(jax.random.key_data(keys), impl=_IMPL)


def _bits(key: UInt32[Array, "2"], width: int, shape: tuple[int, ...]) -> Array:
    """As many random bits as `width` for every place: the hash of its number, in an array of that shape."""
    if width == 64 or not _WORTHWHILE <= math.prod(shape) <= 1 << 32:
        return jax.random.bits(_of_jax(key), shape, f"uint{width}")
    number, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        number += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return _hash(key, number).astype(f"uint{width}")


def _hash(key: UInt32[Array, "2"], number: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The two words of Threefry-2x32 for the counter (0, number), as one."""
    ks = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = jnp.broadcast_to(ks[0], number.shape), number + ks[1]
    for group in range(5):
        for r in _ROTATIONS[group % 2]:
            x += y
            y = ((y << r) | (y >> (32 - r))) ^ x
        x += ks[(group + 1) % 3]
        y += ks[(group + 2) % 3] + jnp.uint32(group + 1)
    return x ^ y


def _of_jax(key: UInt32[Array, "2"]) -> PRNGKeyArray:
    return jax.random.wrap_key_data(key, impl=THREEFRY)


_IMPL: Any = jax.extend.random.define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl=THREEFRY)),
    split=lambda key, shape: jax.random.key_data(jax.random.split(_of_jax(key), shape)),
    fold_in=lambda key, number: jax.random.key_data(jax.random.fold_in(_of_jax(key), number)),
    random_bits=_bits,
    name="quick_threefry2x32",
    tag=QUICK_THREEFRY,
)
