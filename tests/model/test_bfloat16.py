"""Products of bfloat16 on a CPU: what they compute, what XLA makes of them, and that it can compute all of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from qwen3llada_jax import bfloat16, fsdp

AXES = ("heads", "embed")


def drawn(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.bfloat16)


def exact(axes: str, *factors: jax.Array) -> np.ndarray:
    return np.einsum(axes, *(np.asarray(x, np.float64) for x in factors))


def rounded_once(found: jax.Array, wanted: np.ndarray, summed: int) -> None:
    """Half a unit of bfloat16's last place off, and float32's error of the sum."""
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=2**-8, atol=summed * 2**-21)


def small(remat: str = "none"):
    config = q.ModelConfig(97, 64, 128, 2, 4, 2, 16, mask_token_id=96)
    network = q.Qwen3LLaDA(config, rngs=nnx.Rngs(0), runtime=q.Runtime(dtype="bfloat16", remat=remat))
    graphdef, params = nnx.split(network)
    return lambda params: nnx.merge(graphdef, params).hidden(jnp.arange(32)[None]), params


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from(["", "x", "weight", "result", "all"]))
def test_products_and_their_gradients_are_rounded_once(shape, transposed):
    """Whatever lies transposed before and behind them, and of every size: one row, one column, fewer than eight."""
    rows, outputs, inputs = shape
    x, weight, pull = drawn(0, rows, inputs), drawn(1, outputs, inputs), drawn(2, rows, outputs)
    turned = {name for name in ("x", "weight", "result") if transposed in (name, "all")}

    def given_as(name: str, value: jax.Array) -> jax.Array:
        return value.T if name in turned else value

    @jax.jit
    def run(x, weight, pull):
        def f(x, weight):
            return given_as("result", fsdp.product(given_as("x", x), given_as("weight", weight), AXES))

        out, pullback = jax.vjp(f, x, weight)
        return out, *pullback(pull)

    args = (given_as(name, v) for name, v in (("x", x), ("weight", weight), ("result", pull)))
    out, of_x, of_weight = run(*args)
    rounded_once(given_as("result", out), exact("ri,oi->ro", x, weight), inputs)
    rounded_once(given_as("x", of_x), exact("ro,oi->ri", pull, weight), outputs)
    rounded_once(given_as("weight", of_weight), exact("ro,ri->oi", pull, x), rows)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [3, 8, 13])
def test_sums_over_rows_are_float32(dtype, rows):
    a, b = drawn(0, rows, 24).astype(dtype), drawn(1, rows, 16).astype(dtype)
    found = jax.jit(lambda a, b: bfloat16.summed_over_rows(a, b).T)(a, b).T
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact("ro,ri->oi", a, b), rtol=1e-5, atol=1e-5)


def factors_of(text: str) -> set[str]:
    """dtypes that the matrix products of a compiled program multiply."""
    dtype_of = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", text)) | dict(re.findall(r"[(\s]([\w.\-]+): (\w+)\[", text))
    return {dtype_of[name] for pair in re.findall(r" dot\(%([\w.\-]+), %([\w.\-]+)\)", text) for name in pair}


def test_no_float32_copies_are_multiplied_in_a_layer():
    hidden, params = small()
    loss = jax.value_and_grad(lambda params: hidden(params).astype(jnp.float32).sum())
    text = jax.jit(loss).lower(params).compile().as_text()
    if "__ynn_fusion" not in text:
        pytest.skip("this XLA leaves no product to a library")
    assert factors_of(text) == {"bf16"}


def test_remat_of_products_keeps_them():
    """A product is known by name there, for it is no plain `dot_general`."""

    def kept(remat: str) -> int:
        _, pullback = jax.vjp(*small(remat))
        return sum(x.nbytes for x in jax.tree.leaves(pullback))

    outputs = 64 + 32 + 32 + 64 + 128 + 128  # queries, keys, values, output, gate and up; nothing is made of down's
    assert kept("dots") == kept("full") + 2 * 32 * outputs * 2
