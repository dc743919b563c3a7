"""Who may attend to whom, against the definition read position by position."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rule
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.masks import Mask, dense, describe


@given(
    kind=st.sampled_from(["full", "block_bias", "block_causal"]),
    length=st.sampled_from([1, 6, 11]),  # few shapes, so that little is compiled
    block=st.integers(1, 6),
    prompts=st.lists(st.integers(0, 20), min_size=2, max_size=2),
    boundary=st.integers(0, 20),
    real=st.lists(st.integers(1, 20), min_size=2, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_dense_mask_follows_the_rules(kind, length, block, prompts, boundary, real):
    segments = (np.arange(length) >= boundary).astype(np.int32)
    is_real = np.arange(length)[None] < np.array(real)[:, None]
    mask = Mask(
        kind,
        None if kind == "full" else block,
        prompt_length=jnp.asarray(prompts),
        segment_ids=jnp.asarray(np.stack([segments, segments])),
        is_real=jnp.asarray(is_real),
    )
    got = np.asarray(dense(mask, length))
    for row in range(2):
        for i in range(length):
            for j in range(length):
                expected = rule(kind, i, j, prompts[row], block) and segments[i] == segments[j] and is_real[row, j]
                assert got[row, i, j] == expected, (row, i, j)


def test_prompt_sees_answer_opens_only_the_prompts_rows():
    closed, opened = (
        np.asarray(dense(Mask("block_bias", 2, sees, prompt_length=jnp.array([3])), 9))[0] for sees in (False, True)
    )
    assert opened[:3].all()
    assert not closed[:3, 3:].any()
    np.testing.assert_array_equal(opened[3:], closed[3:])


def test_blocks_are_counted_within_documents():
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3]])
    segments = jnp.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    got = np.asarray(dense(Mask("block_bias", 3, segment_ids=segments, positions=positions), 8))[0]
    assert got[4:7, 4:7].all()
    assert not got[7, 4:7].any()
    assert not got[4, :4].any()


def test_block_diffusion_sees_clean_blocks_before_and_itself():
    block, half = 2, 6
    got = np.asarray(dense(Mask("block_diffusion", block), 2 * half))[0]
    for i in range(2 * half):
        for j in range(2 * half):
            bi, bj = i % half // block, j % half // block
            if i < half:
                expected = (j < half and bi == bj) or (j >= half and bj < bi)
            else:
                expected = j >= half and bj <= bi
            assert got[i, j] == expected, (i, j)


def test_picture():
    assert describe(Mask("block_causal", 2, prompt_length=jnp.array([1])), 5) == "#····\n###··\n###··\n#####\n#####"


def test_impossible_masks_are_refused():
    with pytest.raises(InputError, match="unknown"):
        Mask("causal")
    with pytest.raises(InputError, match="block_length"):
        Mask("block_bias")
