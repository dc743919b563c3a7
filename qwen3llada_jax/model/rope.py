"""Rotary position embedding (RoFormer, arXiv 2104.09864), in float32, with transformers' scaling kinds.

cos and sin of position · frequency, rotate-half convention: the first half of a head pairs with the second.
Positions stay float32 throughout: bfloat16 rounds 257 to 256, and sin(257) is nowhere near sin(256).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qwen3llada_jax import sharding
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.rope_scaling import RopeScaling


def rope_tables(
    config: ModelConfig, positions: Int[Array, "B L"]
) -> tuple[Float[Array, "B L H/2"], Float[Array, "B L H/2"]]:
    """cos and sin for every position and frequency, scaled by the attention factor of yarn."""
    frequencies, attention_factor = _frequencies(config, positions)
    angles = positions[..., None].astype(jnp.float32) * frequencies  # B L H/2
    return _made_once(lambda angles: (jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor), angles)


def _made_once(of: Callable[[Array], tuple[Array, Array]], angles: Float[Array, "B L F"]) -> tuple[Array, Array]:
    """`of` the angles, element by element.

    Of layers that are compiled apart XLA makes every sine anew for each head of each of them on a CPU, a twentieth of a
    training step; what a loop has made, two halves that is, it takes as it is.
    """
    B, L, F = angles.shape
    if not sharding.is_one_cpu() or L < 2:
        return of(angles)
    halves = jnp.pad(angles, ((0, 0), (0, L % 2), (0, 0))).reshape(B, 2, -1, F).swapaxes(0, 1)
    made = jax.lax.map(of, halves)
    cos, sin = (x.swapaxes(0, 1).reshape(B, -1, F)[:, :L] for x in made)
    return cos, sin


def apply_rope(
    x: Float[Array, "B L N H"], cos: Float[Array, "B L H/2"], sin: Float[Array, "B L H/2"]
) -> Float[Array, "B L N H"]:
    """Rotate each (first half, second half) pair of a head by its position's angle; float32 inside."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _frequencies(config: ModelConfig, positions: Int[Array, "B L"]) -> tuple[Float[Array, " H/2"] | np.ndarray, float]:
    scaling, dim, theta = config.rope_scaling, config.head_dim, config.rope_theta
    plain = _inverse_frequencies(theta, dim)
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / np.float32(scaling.factor), 1.0
    if scaling.kind == "dynamic":
        longest = config.max_position_embeddings
        length = jnp.maximum(positions.max() + 1, longest).astype(jnp.float32)
        grown = theta * (scaling.factor * length / longest - (scaling.factor - 1)) ** (dim / (dim - 2))
        exponent = np.arange(0, dim, 2, dtype=np.float32) / dim
        # Below the trained length the base must be theta to the last bit.
        return jnp.where(length > longest, 1.0 / grown**exponent, plain), 1.0
    if scaling.kind == "llama3":
        return _llama3(scaling, plain), 1.0
    return _yarn(scaling, theta, dim)


def _inverse_frequencies(theta: float, dim: int) -> np.ndarray:
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1.0) / np.power(np.float32(theta), exponent)


def _llama3(scaling: RopeScaling, plain: np.ndarray) -> np.ndarray:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None
    assert high is not None
    assert original is not None
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * plain / scaling.factor + smooth * plain
    scaled = np.where(wavelength > original / low, plain / scaling.factor, plain)
    is_between = (wavelength >= original / high) & (wavelength <= original / low)
    return np.where(is_between, between, scaled).astype(np.float32)


def _yarn(scaling: RopeScaling, theta: float, dim: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): interpolate slow frequencies, keep fast ones, sharpen the attention."""
    original = scaling.original_max_position_embeddings
    assert original is not None

    def mscale(weight: float = 1.0) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    attention_factor = scaling.attention_factor
    if attention_factor is None:
        if scaling.mscale and scaling.mscale_all_dim:
            attention_factor = mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
        else:
            attention_factor = mscale()

    def dimension_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast or 32), dimension_of(scaling.beta_slow or 1)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    kept = 1 - np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    plain = _inverse_frequencies(theta, dim)
    return (plain / scaling.factor * (1 - kept) + plain * kept).astype(np.float32), attention_factor
