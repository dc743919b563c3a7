"""Moments of an optimizer in 8 bits: one byte a value, and a float32 scale for each block of up to 32.

Block-wise quantization after Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861,
section 2.1): a block is stored as its largest magnitude s and, for each value x, an 8-bit code of x / s. Where
the paper looks codes up in a table, here code c stands for

    x = s · sign(c) · (c / 127)⁴  (signed)        x = s · (c / 255)⁴  (unsigned)

which spends about as many codes on each power of ten as the paper's dynamic tree (113, 63, 35, 20, … against
128, 64, 32, 16, …), needs no table, and is two square roots to encode. An unsigned value above 0 never becomes 0:
a second moment of 0 beneath a first moment that is not would make an update of m / eps.

Blocks run along a parameter's last axis, so codes have the parameter's shape and lie where it lies, and a block
lies on one device wherever the last axis is split into parts of whole blocks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int8, UInt8

BLOCK = 32  # divides every width of the Qwen3 family, also split over many devices; 12.5% on top of the codes

KINDS = {"mu": jnp.int8, "nu": jnp.uint8}


class Moment(NamedTuple):
    """A tree of moments: int8 (signed) or uint8 codes, and [..., blocks] scales.

    What stays float32 has its values for codes and `optax.MaskedNode()` for scales.
    """

    codes: Any
    scales: Any


def in_8_bits(inner: optax.GradientTransformation, mask: Callable[[Any], Any]) -> optax.GradientTransformation:
    """`inner` with its moments (fields `mu`, signed, and `nu`, unsigned) kept in 8 bits between updates.

    Args:
        mask: of a parameter tree, the tree of which to quantize; an array whose last axis does not come in blocks of
            at least 8 stays float32 all the same.
    """

    def pack(state: Any) -> Any:
        return state._replace(**{k: _pack(getattr(state, k), mask, d) for k, d in KINDS.items() if k in state._fields})

    def unpack(state: Any) -> Any:
        moments = {k: v for k, v in state._asdict().items() if isinstance(v, Moment)}
        return state._replace(**{k: jax.tree.map(_decode, m.codes, m.scales) for k, m in moments.items()})

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, new = inner.update(gradient, unpack(state), params)
        return updates, pack(new)

    def init(params: Any) -> Any:
        # All of it starts at 0. Encoding zeros would have the compiler fold reductions over every one of them.
        shapes = jax.eval_shape(lambda params: pack(inner.init(params)), params)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return optax.GradientTransformation(init, update)


def block_length(shape: tuple[int, ...]) -> int | None:
    """Values that share a scale; None: this array stays float32."""
    length = math.gcd(shape[-1], BLOCK)
    return length if length >= 8 else None


def encode(x: Float[Array, "... n"], dtype: Any) -> tuple[UInt8[Array, "... n"] | Int8[Array, "... n"], Array]:
    """(codes, scales [..., n / block]); `dtype` int8 or uint8, the latter for values of 0 and more."""
    blocks = x.reshape(*x.shape[:-1], -1, block_length(x.shape) or x.shape[-1])
    scales = jnp.abs(blocks).max(axis=-1)
    share = jnp.abs(blocks) / jnp.where(scales == 0, 1.0, scales)[..., None]
    codes = jnp.round(jnp.sqrt(jnp.sqrt(share)) * jnp.iinfo(dtype).max)
    codes = jnp.where(share > 0, jnp.maximum(codes, 1), 0) if dtype == jnp.uint8 else codes * jnp.sign(blocks)
    return codes.reshape(x.shape).astype(dtype), scales


def decode(codes: Array, scales: Float[Array, "... blocks"]) -> Float[Array, "... n"]:
    """The values that `encode` stored."""
    blocks = codes.reshape(*scales.shape, -1).astype(jnp.float32) / jnp.iinfo(codes.dtype).max
    powers = blocks * blocks * blocks * (jnp.abs(blocks) if codes.dtype == jnp.int8 else blocks)
    return (powers * scales[..., None]).reshape(codes.shape)


def _pack(moments: Any, mask: Callable[[Any], Any], dtype: Any) -> Moment:
    def one(wanted: bool, x: Array) -> tuple[Array, Any]:
        return encode(x, dtype) if wanted and block_length(x.shape) else (x, optax.MaskedNode())

    pairs = jax.tree.map(one, mask(moments), moments)
    # Of `one`'s pairs alone: optax's nodes are named tuples.
    codes = jax.tree.map(lambda pair: pair[0], pairs, is_leaf=lambda x: type(x) is tuple)
    scales = jax.tree.map(lambda pair: pair[1], pairs, is_leaf=lambda x: type(x) is tuple)
    return Moment(codes, scales)


def _decode(codes: Array, scales: Any) -> Array:
    return codes if isinstance(scales, optax.MaskedNode) else decode(codes, scales)
