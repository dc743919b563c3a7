"""`rules.likeliest` is an argmax: the first of the highest, whatever the scores are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3llada_jax import sharding
from qwen3llada_jax.sampling import rules

SIZES = [1, 2, 7, 97, 128, 300, 1088, 4099, 50257, 151936]  # 97 and 4,099 are prime


@pytest.mark.parametrize("size", SIZES)
def test_it_is_an_argmax(size):
    draw = np.random.default_rng(size)
    rows = [
        draw.normal(size=size),
        draw.integers(0, 3, size),  # many of the highest
        np.where(draw.random(size) < 0.9, -np.inf, 1.0),
        np.full(size, -np.inf),
        np.zeros(size),
        np.where(np.arange(size) == size - 1, np.inf, 0.0),
        np.where(np.arange(size) % 2 == 0, 0.0, -0.0),
    ]
    scores = jnp.asarray(rows, jnp.float32)
    expected = jnp.argmax(scores, axis=1)
    np.testing.assert_array_equal(jax.jit(jax.vmap(rules.likeliest))(scores), expected)
    np.testing.assert_array_equal([rules.likeliest(row) for row in scores], expected)
    assert rules.likeliest(scores[0]).shape == ()
    strange = jnp.asarray(np.where(draw.random(size) < 0.5, np.nan, draw.normal(size=size)), jnp.float32)
    assert 0 <= rules.likeliest(strange) < size


def test_elsewhere_it_is_left_to_the_compiler(monkeypatch):
    def operations() -> str:
        def traced_anew(scores):
            return rules.likeliest(scores)

        return str(jax.make_jaxpr(traced_anew)(jnp.zeros(256)))

    assert "reduce_max" in operations()
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert "reduce_max" not in operations()
    assert "argmax" in operations()
