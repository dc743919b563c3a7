"""Products of bfloat16 on a CPU, without float32 copies of what is multiplied.

XLA leaves a product of bfloat16 to a library, which uses a CPU's units for it (AMX tiles, AVX-512 BF16) if there are
any, only where the result is asked for in float32 and both factors lie as the library wants them; before every other
it converts both. Here each is asked for so, forward and backward. What is computed is the same: sums in float32,
rounded once.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, BFloat16, Float, Float32

from qwen3llada_jax import sharding

PRODUCT = "bfloat16_product"  # what `jax.checkpoint` may keep by this name

_TOGETHER = 8  # rows of which the transpose is made at once


def is_native(*factors: Array) -> bool:
    """Whether these had better be multiplied here: bfloat16, on one CPU."""
    return all(x.dtype == jnp.bfloat16 for x in factors) and sharding.is_one_cpu()


def product(x: BFloat16[Array, "R I"], weight: BFloat16[Array, "O I"]) -> BFloat16[Array, "R O"]:
    """x · weightᵀ. Not for forward-mode differentiation (`jax.jvp`): compute in float32 there."""
    return checkpoint_name(_product(x, weight), PRODUCT)


@jax.custom_vjp
def _product(x: Array, weight: Array) -> Array:
    return _multiplied("ri,oi->ro", x, weight).astype(x.dtype)


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, weight), (x, weight)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = kept
    of_x = _multiplied("ro,oi->ri", gradient, weight)
    return of_x.astype(x.dtype), summed_over_rows(gradient, x).astype(weight.dtype)


_product.defvjp(_forward, _backward)


def summed_over_rows(a: Float[Array, "R O"], b: Float[Array, "R I"]) -> Float32[Array, "O I"]:
    """aᵀ · b in float32, of any dtype and wherever: a weight's gradient, of that in its outputs and of its inputs."""
    rows, outputs = a.shape
    if not is_native(a, b) or rows < _TOGETHER:
        return jnp.einsum("ro,ri->oi", a, b, preferred_element_type=jnp.float32)
    a, b = (jnp.pad(x, ((0, -rows % _TOGETHER), (0, 0))) for x in (a, b))
    # Of three axes, for XLA makes a plain transpose a part of the product, and that one of float32 copies.
    rows_last = a.reshape(-1, _TOGETHER, outputs).transpose(2, 0, 1).reshape(outputs, -1)
    return _multiplied("or,ri->oi", rows_last, b)


def _multiplied(axes: str, a: Array, b: Array) -> Float32[Array, "..."]:
    # XLA leaves bfloat16 to the library early, and then may still make a transpose before or behind it a part of the
    # product, which then the library does not take and nothing else can compute. It does not look across a barrier.
    a, b = jax.lax.optimization_barrier((a, b))
    return jax.lax.optimization_barrier(jnp.einsum(axes, a, b, preferred_element_type=jnp.float32))
