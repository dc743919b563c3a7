"""Every attention implementation against the softmax written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3llada_jax import sharding
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.attention import attention, choose
from qwen3llada_jax.model.coordinates import Coordinates
from qwen3llada_jax.model.masks import Mask, dense

B, L, N, K, H = 2, 128, 4, 2, 128
SEGMENTS = jnp.array([[0] * 50 + [1] * 78, [0] * 100 + [1] * 28])
REAL = jnp.arange(L)[None] < jnp.array([[128], [90]])
PROMPTS = jnp.array([5, 40])
MASKS = {
    "none": None,
    "padding": Mask(is_real=REAL),
    "documents": Mask(segment_ids=SEGMENTS, is_real=REAL),
    "block_bias": Mask("block_bias", 32),
    "block_causal": Mask("block_causal", 16, prompt_length=PROMPTS, is_real=REAL),
    "block_diffusion": Mask("block_diffusion", 16),
    "coordinates": Coordinates(segment=SEGMENTS, block=jnp.arange(L)[None] // jnp.array([[16], [40]])),
    "coordinates of numpy": Coordinates(block=np.sort(np.arange(L) % 7)[None], segment=SEGMENTS[:1]),
}


@pytest.fixture(scope="module")
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, (B, L, heads, H)) for k, heads in zip(keys, (N, K, K), strict=True))


def written_out(q, k, v, allowed):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    logits = np.einsum("blnh,bsnh->bnls", q, k) / np.sqrt(H)
    if allowed is not None:
        logits = np.where(np.asarray(allowed)[:, None], logits, -1e30)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnls,bsnh->blnh", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("implementation", ["xla", "splash_interpret"])
def test_attention_equals_softmax_written_out(qkv, implementation, name):
    mask = MASKS[name]
    has_padding = isinstance(mask, Mask) and mask.is_real is not None
    counted = np.asarray(mask.is_real) if has_padding else np.ones((B, L), bool)
    expected = written_out(*qkv, None if mask is None else dense(mask, L))
    got = attention(*qkv, mask, implementation)
    np.testing.assert_allclose(np.asarray(got)[counted], expected[counted], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["documents", "block_causal"])
def test_splash_gradients_equal_xlas(qkv, name):
    mask = MASKS[name]
    counted = jnp.asarray(mask.is_real)[..., None, None]

    def gradient(implementation):
        return jax.grad(lambda x: (attention(*x, mask, implementation) ** 2 * counted).sum())(qkv)

    for ours, theirs in zip(gradient("splash_interpret"), gradient("xla"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)


def test_splash_knows_one_rule_of_numpy_while_compiling(qkv):
    """And skips what it hides; a rule of arrays, or one for each row, is a mask [L, L] of every row at run time."""
    rule = np.arange(L)[None] // 48
    for block, is_known in ((rule, True), (jnp.asarray(rule), False), (np.repeat(rule, B, axis=0), False)):
        mask = Coordinates(block=block)
        program = jax.make_jaxpr(lambda *qkv, mask=mask: attention(*qkv, mask, "splash_interpret"))(*qkv)
        assert (f"bool[{B},{L},{L}]" not in str(program)) == is_known


def test_dense_masks_of_numpy_keep_their_rows_apart(qkv):
    allowed = np.asarray(dense(MASKS["block_causal"], L))
    got = attention(*qkv, allowed, "splash_interpret")
    np.testing.assert_allclose(got[:, :90], written_out(*qkv, allowed)[:, :90], atol=2e-5)


def test_a_row_that_sees_nothing_stays_finite(qkv):
    nothing = jnp.zeros((1, L, L), bool)
    assert np.isfinite(attention(*qkv, nothing, "xla")).all()


def test_choice_of_implementation():
    assert choose("auto", jnp.float32, 128, 128) == "xla"
    with pytest.raises(InputError, match="unknown"):
        choose("flash", jnp.float32, 128, 128)


def test_splash_refuses_other_lengths(qkv):
    with pytest.raises(InputError, match="multiple of 128"):
        attention(*(x[:, :100] for x in qkv), None, "splash_interpret")


def test_splash_runs_on_each_devices_rows_and_heads():
    draw = np.random.default_rng(1)
    q, k, v = (draw.normal(size=(4, 128, heads, 16)).astype(np.float32) for heads in (4, 2, 2))
    real = jnp.arange(128)[None] < jnp.asarray([128, 100, 64, 90])[:, None]
    mask = Mask("block_causal", 16, prompt_length=jnp.asarray([3, 0, 9, 30]), is_real=real)
    expected = attention(q, k, v, mask, "xla")
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        got = jax.jit(lambda *qkv: attention(*qkv, mask, "splash_interpret"))(q, k, v)
    assert got.sharding.spec[0] == ("data", "fsdp")
    assert got.sharding.spec[2] == "tensor"
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(expected)[real], atol=2e-5)
