"""A pass with a cache reads as far as its queries see, and gives what one over all keys gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from qwen3llada_jax.model import coordinates, kv_cache
from qwen3llada_jax.model.coordinates import Coordinates

B, W, L = 8, 4, 200  # of so many rows 64, 128 or all of 200 places are read
CONFIG = q.ModelConfig(64, 32, 48, 2, 4, 2, 8, rope_theta=1e4)


@pytest.fixture(scope="module")
def model():
    return q.Qwen3LLaDA(CONFIG, rngs=nnx.Rngs(0))


def written_at(begins: list[int | None]) -> tuple[jax.Array, jax.Array, Coordinates]:
    """Rows that write a block each, which begins there (None: the row is done); which places count; who sees whom."""
    where = jnp.array([[L] * W if begin is None else range(begin, begin + W) for begin in begins])
    block = jnp.broadcast_to(jnp.arange(L) // W, (B, L))
    return where, where < L, Coordinates(block=block, until=block)


@jax.jit
def found(model, tokens, where, wanted, mask, cache):
    return kv_cache.hidden_at(model, tokens, where, wanted, mask, cache)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(st.none() | st.integers(0, L // W - 1).map(lambda n: n * W), min_size=B, max_size=B))
def test_it_is_what_all_keys_give(model, begins):
    where, wanted, mask = written_at(begins)
    noise = [jax.random.normal(jax.random.key(n), (2, B, L, 2, 8)) for n in range(2)]
    tokens = jax.random.randint(jax.random.key(9), (B, L), 0, 64)
    hidden, cache = found(model, tokens, where, wanted, mask, kv_cache.Cache(*noise))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "is_one_cpu", lambda: False)
        expected, whole = kv_cache.hidden_at(model, tokens, where, wanted, mask, kv_cache.Cache(*noise))
    np.testing.assert_allclose(hidden[wanted], expected[wanted], atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), cache, whole)


@pytest.mark.parametrize(("furthest", "read"), [(0, 64), (60, 64), (64, 128), (124, 128), (128, 200), (196, 200)])
def test_it_reads_no_further_than_it_sees(model, furthest, read):
    """Of a row that is done nothing counts, wherever it stands."""
    where, wanted, mask = written_at([furthest, None, *[0] * (B - 2)])
    sight = kv_cache._sight(mask, jnp.minimum(where, L - 1), wanted)
    assert sight.lengths == (64, 128, 200)
    assert sight.lengths[int(sight.which)] == read
    assert not coordinates.dense(mask, L)[0, furthest, read:].any()
    behind = (jnp.arange(L) >= read)[:, None, None]
    cache = kv_cache.Cache(*(jnp.where(behind, jnp.nan, jnp.ones((2, B, L, 2, 8))) for _ in range(2)))
    hidden, _ = found(model, jnp.ones((B, L), int), where, wanted, mask, cache)
    assert np.isfinite(hidden[wanted]).all()
