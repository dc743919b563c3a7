"""Who may attend to whom, against the definition read position by position."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rule
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.coordinates import Coordinates, block_of, seen_from, sees
from qwen3llada_jax.model.masks import Mask, coordinates_of, dense, describe

L = 12
CONFIG = q.ModelConfig(97, 32, 48, 2, 4, 2, 12, rope_theta=1e4, rms_norm_eps=1e-5)


@pytest.fixture(scope="module")
def model():
    return q.Qwen3LLaDA(CONFIG, rngs=nnx.Rngs(3))


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
                expected = rule(kind, i, j, prompts[row], block) and segments[i] == segments[j]
                if not is_real[row, i]:  # meaningless, but never without a key, so always finite
                    expected = not is_real[row, j] and rule(kind, i, j, prompts[row], block)
                elif not is_real[row, j]:
                    expected = False
                assert got[row, i, j] == expected, (row, i, j)


def written_out(tokens: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """The formula, token by token, of arrays that may be left out."""
    allowed = np.zeros((rows, L, L), bool)
    for row, i, j in itertools.product(range(rows), range(L), range(L)):
        of = {name: array[min(row, len(array) - 1)] for name, array in tokens.items()}
        block, clean = of.get("block", np.zeros(L, int)), of.get("clean", np.ones(L, bool))
        until, segment = of.get("until", block), of.get("segment", np.zeros(L, int))
        is_own = block[i] == block[j] and clean[i] == clean[j]
        is_before = clean[j] and block[j] < until[i]
        allowed[row, i, j] = (is_own or is_before) and segment[i] == segment[j]
    return allowed


@st.composite
def any_coordinates(draw, rows=2):
    def array(low, high):
        many = draw(st.sampled_from([1, rows]))
        numbers = st.lists(st.integers(low, high), min_size=L, max_size=L)
        return np.array(draw(st.lists(numbers, min_size=many, max_size=many)))

    tokens = {"segment": array(-1, 1)} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        tokens["block"] = array(-1, 3)
        tokens |= {"clean": array(0, 1) == 1} if draw(st.booleans()) else {}
        tokens |= {"until": array(-1, 4)} if draw(st.booleans()) else {}
    return tokens


@pytest.mark.slow
@given(tokens=any_coordinates(), is_numpy=st.booleans(), where=st.lists(st.integers(0, L - 1), min_size=6, max_size=6))
@settings(max_examples=80, deadline=None)
def test_any_coordinates_follow_the_formula(tokens, is_numpy, where):
    """All of a row, and the rows of some positions; numpy stays numpy, so that splash can look into it."""
    expected = written_out(tokens, 2)
    given = Coordinates(**(tokens if is_numpy else {name: jnp.asarray(x) for name, x in tokens.items()}))
    found = sees(given, given)
    if found is None:
        assert given.sees_everything
    else:
        assert isinstance(found, np.ndarray) == is_numpy
    np.testing.assert_array_equal(np.broadcast_to(dense(given, L), expected.shape), expected)
    where = np.array(where).reshape(2, 3)
    some = seen_from(given, jnp.asarray(where))
    some = np.ones((1, 3, L), bool) if some is None else some
    np.testing.assert_array_equal(
        np.broadcast_to(some, (2, 3, L)), np.take_along_axis(expected, where[..., None], axis=1)
    )


@given(
    kind=st.sampled_from(["block_bias", "block_causal"]),
    lengths=st.lists(st.integers(1, 14), min_size=2, max_size=2),
    prompts=st.lists(st.integers(0, L), min_size=2, max_size=2),
    sees_answer=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_block_lengths_and_prompts_are_data(kind, lengths, prompts, sees_answer):
    """A block length of its own for every row, by one program."""
    sees_answer &= kind == "block_bias"
    mask = Mask(kind, jnp.asarray(lengths), sees_answer, prompt_length=jnp.asarray(prompts))
    found = np.asarray(_dense_of(mask))
    for row, i, j in itertools.product(range(2), range(L), range(L)):
        expected = rule(kind, i, j, prompts[row], lengths[row]) or (sees_answer and i < prompts[row])
        assert found[row, i, j] == expected, (row, i, j)


_dense_of = jax.jit(lambda mask: dense(mask, L))


@pytest.mark.slow
def test_every_block_length_of_a_schedule_is_one_program(model):
    """Loss and gradient under 1, 2, 4, 8, 16: compiled once, and those of a program that knows the number."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 97, (2, L)))
    prompts = jnp.array([0, 3])

    def loss(model, block_length):
        mask = Mask("block_causal", block_length, prompt_length=prompts)
        return -jax.nn.log_softmax(model(tokens, mask))[:, jnp.arange(L), 5].mean()

    program = jax.jit(jax.value_and_grad(loss))
    found = {length: program(model, jnp.int32(length)) for length in (1, 2, 4, 8, 16)}
    assert program._cache_size() == 1
    assert len({float(value) for value, _ in found.values()}) == 5
    value, gradient = jax.jit(jax.value_and_grad(lambda model: loss(model, 4)))(model)
    assert found[4][0] == value
    jax.tree.map(np.testing.assert_array_equal, found[4][1], gradient)


def test_a_number_is_structure_and_an_array_is_data():
    number = Mask("block_causal", np.int64(4), prompt_length=jnp.array([1]))
    assert len(jax.tree.leaves(number)) == 1
    assert len(jax.tree.leaves(dataclasses.replace(number, block_length=jnp.int32(4)))) == 2
    axes = jax.tree.map(lambda x: ("batch",) * x.ndim, dataclasses.replace(number, block_length=jnp.array([4, 5])))
    assert axes.block_length == ("batch",)
    assert axes.kind == "block_causal"
    for mask in (number, Mask("full"), Mask("block_bias", jnp.int32(3), prompt_sees_answer=True)):
        leaves, structure = jax.tree.flatten(mask)
        assert jax.tree.unflatten(structure, leaves) == mask


def test_causal_attention_is_one_token_per_block():
    np.testing.assert_array_equal(dense(Mask("block_causal", 1), L)[0], np.tri(L, dtype=bool))
    given = Coordinates(block=np.arange(L)[None])
    np.testing.assert_array_equal(dense(given, L)[0], np.tri(L, dtype=bool))


@pytest.mark.slow
def test_the_model_takes_coordinates_as_the_array_they_mean(model):
    """A conversation (each question one block), rows of other block lengths, two noisy copies of one clean text."""
    tokens = np.random.default_rng(1).integers(0, 97, (2, L))
    turns = np.array([[-1, -1, -1, 0, 0, 1, 1, 2, 2, 2, 3, 3], [-1, 0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3]])
    copies = {
        "block": np.array([[0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1]]),  # noisy, noisy with blocks of its own, clean
        "until": np.array([[0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]]),
        "clean": np.array([[False] * 8 + [True] * 4]),
        "position": np.tile(np.arange(4), 3)[None],
    }
    program = jax.jit(lambda model, mask: model(tokens, mask))
    for case in ({"block": turns}, {"block": turns.tolist()}, copies):
        allowed = written_out({name: np.asarray(x) for name, x in case.items() if name != "position"}, 2)
        expected = model(tokens, allowed, case.get("position"))
        found = model(tokens, Coordinates(**case))
        np.testing.assert_array_equal(found, expected)
        data = Coordinates(**{name: jnp.asarray(x) for name, x in case.items()})
        np.testing.assert_allclose(program(model, data), found, rtol=1e-5, atol=1e-5)
    of_copies = written_out({name: x for name, x in copies.items() if name != "position"}, 1)[0]
    assert not of_copies[:4, 4:8].any()  # neither copy sees the other
    assert not of_copies[4:8, :4].any()
    assert of_copies[6, 8:10].all()  # but the clean text before it
    assert not of_copies[6, 10:].any()


def test_blocks_may_be_counted_from_position_0_past_a_prompt():
    counted = block_of(np.arange(8)[None], np.array([0]), 3)
    assert counted.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]
    assert block_of(np.arange(8)[None], np.array([0, 2]), np.array([3, 4])).tolist() == [
        [0, 0, 0, 1, 1, 1, 2, 2],
        [-1, -1, 0, 0, 0, 0, 1, 1],
    ]


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
    picture = "#····\n###··\n###··\n#####\n#####"
    mask = Mask("block_causal", 2, prompt_length=jnp.array([1]))
    assert describe(mask, 5) == picture
    assert describe(coordinates_of(mask, 5), 5) == picture


def test_impossible_masks_are_refused(model):
    with pytest.raises(InputError, match="unknown"):
        Mask("causal")
    with pytest.raises(InputError, match="block_length"):
        Mask("block_bias")
    for length in (jnp.int32(0), jnp.array([2, 0]), [3, -1]):
        with pytest.raises(InputError, match=r"block_length must be at least 1, not (0|-1)"):
            Mask("block_bias", length)
    with pytest.raises(InputError, match="block_length must be whole numbers"):
        Mask("block_bias", jnp.array([2.0, 3.0]))
    tokens = np.zeros((2, L), int)
    for wrong, part in (
        (Mask("block_bias", [2, 3, 4]), r"block_length must be of shape \[2\]"),
        (Coordinates(block=np.zeros((2, L - 1), int)), r"block must be of shape \[2, 12\]"),
        (Coordinates(block=np.zeros((1, L))), "block must be whole numbers"),
        (Coordinates(block=np.zeros((1, L), int), clean=np.zeros((1, L))), "clean must be bool"),
        (Coordinates(until=np.zeros((1, L), int)), "until has no effect without block"),
        (Coordinates(segment=np.zeros(L, int)), r"segment must be \[B, L\]"),
    ):
        with pytest.raises(InputError, match=part):
            model(tokens, wrong)
