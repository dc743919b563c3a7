"""Random numbers that are made faster are JAX's, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refuses

import qwen3llada_jax as q
from qwen3llada_jax import sharding, threefry

SHAPES = [(), (1,), (255,), (256,), (3, 100), (0, 400), (7, 1, 64), (2, 3, 5, 11)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_bits(shape, dtype):
    for seed in (0, 7, 2**32 - 1):
        key = jax.random.key(seed)
        ours, theirs = (jax.random.bits(k, shape, dtype) for k in (threefry.quick(key), key))
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_all_that_is_drawn():
    draws = {
        "uniform": lambda key: jax.random.uniform(key, (300,)),
        "normal": lambda key: jax.random.normal(key, (17, 40)),
        "gumbel": lambda key: jax.random.gumbel(key, (1000,)),
        "bernoulli": lambda key: jax.random.bernoulli(key, 0.3, (20, 20)),
        "randint": lambda key: jax.random.randint(key, (300,), -5, 1000),
        "categorical": lambda key: jax.random.categorical(key, jnp.arange(400.0) / 100),
        "permutation": lambda key: jax.random.permutation(key, 300),
        "split": lambda key: jax.random.key_data(jax.random.split(key, (3, 200))),
        "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 2**31 + 5)),
        "after a split": lambda key: jax.vmap(lambda k: jax.random.uniform(k, (256,)))(jax.random.split(key, 9)),
    }
    for name, draw in draws.items():
        compiled = jax.jit(draw)
        for key in (jax.random.key(1), jax.random.key(2**31)):
            expected, quick = draw(key), threefry.quick(key)
            np.testing.assert_array_equal(draw(quick), expected, name)
            np.testing.assert_array_equal(compiled(quick), expected, name)


def test_a_device_mesh_draws_the_same():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    parts = jax.sharding.NamedSharding(mesh, jax.P("data"))
    draw = jax.jit(lambda key: jax.random.bits(threefry.quick(key), (8, 512)), out_shardings=parts)
    np.testing.assert_array_equal(draw(jax.random.key(3)), jax.random.bits(jax.random.key(3), (8, 512)))


def test_keys_that_stay_as_they_are(monkeypatch):
    plain, quick = jax.random.key(0), threefry.quick(jax.random.key(0))
    assert jax.random.key_impl(quick) != jax.random.key_impl(plain)
    np.testing.assert_array_equal(jax.random.key_data(quick), jax.random.key_data(plain))
    assert threefry.quick(quick) is quick
    other = jax.random.key(0, impl="rbg")
    assert threefry.quick(other) is other
    with jax.threefry_partitionable(False):  # its numbers are others
        assert threefry.quick(plain) is plain
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    assert threefry.quick(plain) is plain


def test_the_library_takes_both():
    row = jnp.arange(300)[None]
    noised = [q.forward_process(key, row, 999) for key in (5, jax.random.key(5), threefry.quick(jax.random.key(5)))]
    for one in noised[1:]:
        np.testing.assert_array_equal(one.tokens, noised[0].tokens)
    refuses(lambda: q.forward_process(jax.random.key(5, impl="rbg"), row, 999), "threefry2x32")
