"""Likelihoods beside enumeration: every pattern of noise, each block by a pass of its own, in plain numpy."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refuses
from flax import nnx

import qwen3llada_jax as q
from qwen3llada_jax.likelihood.api import rows_of
from qwen3llada_jax.likelihood.noise import METHODS, draw, noised_tokens
from qwen3llada_jax.likelihood.reading import cross_entropies, reading_of

V, MASK, L = 5, 4, 6
CONFIG = q.ModelConfig(V, 16, 24, 2, 2, 1, 8, rope_theta=1e4, initializer_range=0.5, mask_token_id=MASK)
BLOCKS = {"visibility": "block_causal", "block_length": 3}
SHIFT = {"shift": True}


@pytest.fixture(scope="module")
def model():
    return q.Qwen3LLaDA(CONFIG, rngs=nnx.Rngs(3))


@jax.jit
def _log_p(model, ids, allowed):
    return jax.nn.log_softmax(model(ids, allowed), axis=-1)


def log_p(model, ids: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """[n, L, V] of n rows of up to L tokens under one mask [l, l]; one program for all."""
    n, length = ids.shape
    filled, sees = np.zeros((64, L), int), np.eye(L, dtype=bool)
    filled[:n, :length], sees[:length, :length] = ids, allowed
    return np.asarray(_log_p(model, filled, sees[None]), np.float64)[:n, :length]


class Case(NamedTuple):
    """What a model was trained with, and how much of the row is given."""

    facts: dict
    prompt: int = 0


CASES = {
    "full": Case({}),
    "full, shift, prompt": Case(SHIFT, 2),
    "blocks": Case(BLOCKS),
    "blocks, shift, prompt": Case(BLOCKS | SHIFT | {"block_length": 2}, 1),
    "blocks, shift, causal": Case(BLOCKS | SHIFT | {"causal_context": True}, 1),
    "blocks from 0, prompt": Case(BLOCKS | {"block_origin": "start"}, 1),
    "blocks aligned, shift": Case(BLOCKS | SHIFT | {"block_origin": "aligned"}, 2),
    "bias, prompt": Case(BLOCKS | {"visibility": "block_bias", "block_length": 2}, 1),
    "bias, shift": Case(BLOCKS | SHIFT | {"visibility": "block_bias"}, 1),
    "bias, prompt sees": Case(BLOCKS | {"visibility": "block_bias", "prompt_sees_answer": True}, 2),
    "one, no shift": Case(BLOCKS | {"block_length": 1}, 1),
}
OFTEN = {"full, shift, prompt": (), "blocks, shift, prompt": pytest.mark.slow}


def in_order(facts: dict, prompt: int, length: int) -> list[tuple[int, int]]:
    """(begin, end) of each group of tokens that are asked for in any order, read off the definition."""
    begin = max(prompt, int(facts.get("shift", False)))
    if facts.get("visibility", "full") == "full" or facts.get("prompt_sees_answer"):
        return [(begin, length)] if begin < length else []
    S = facts["block_length"]
    origin = {"prompt": prompt, "start": 0, "aligned": prompt % S}[facts.get("block_origin", "prompt")]
    name = [(i - origin) // S for i in range(length)]
    groups = [list(g) for _, g in itertools.groupby(range(begin, length), key=name.__getitem__)]
    return [(group[0], group[-1] + 1) for group in groups]


def sees_of(facts: dict, prompt: int, end: int, begin: int) -> np.ndarray:
    """[end, end] who sees whom where the last block begins at `begin` and what stands before it is context."""
    kind, S = facts.get("visibility", "full"), facts.get("block_length")
    origin = {"prompt": prompt, "start": 0, "aligned": prompt % S if S else 0}[facts.get("block_origin", "prompt")]
    allowed = np.zeros((end, end), bool)
    for i, j in itertools.product(range(end), range(end)):
        bi, bj = (-1 if k < origin else (k - origin) // S for k in (i, j)) if S else (0, 0)
        if kind == "full":
            allowed[i, j] = True
        elif kind == "block_bias":
            given = bj == -1 or (facts.get("prompt_sees_answer", False) and bi == -1)
            allowed[i, j] = given or bi == bj
        elif facts.get("causal_context") and i < begin:
            allowed[i, j] = j <= i
        else:
            allowed[i, j] = bj <= bi
    return allowed


def ce_of(model, facts: dict, prompt: int, row: np.ndarray, group: tuple[int, int], noised: np.ndarray) -> np.ndarray:
    """[n, size] −log p of every token of a group, each of n patterns [n, size] by a pass with clean text before it."""
    begin, end = group
    whole = facts.get("visibility", "full") == "full" or facts.get("prompt_sees_answer")
    ids = np.tile(row[: len(row) if whole else end], (len(noised), 1))
    ids[:, begin:end] = np.where(noised, MASK, ids[:, begin:end])
    S = facts.get("block_length", 1)
    origin = {"prompt": prompt, "start": 0, "aligned": prompt % S}[facts.get("block_origin", "prompt")]
    first = max(origin + (begin - origin) // S * S, 0) if not whole else 0  # where the block begins, given tokens too
    found = log_p(model, ids, sees_of(facts, prompt, ids.shape[1], first))
    shift = int(facts.get("shift", False))
    p = np.stack([found[:, i - shift, row[i]] for i in range(begin, end)], axis=1)
    if shift and not whole and first == begin:  # asked at the last token before the block, which is context
        before = log_p(model, row[None, :begin], sees_of(facts, prompt, begin, begin))[0]
        p[:, 0] = before[-1, row[begin]]
    return -p


def patterns(n: int) -> np.ndarray:
    return np.array([p for p in itertools.product([False, True], repeat=n) if any(p)])


def weight_of(noised: np.ndarray) -> np.ndarray:
    """Of each pattern: its probability, times what its cross-entropies weigh, with exactly l tokens noised."""
    n, count = noised.shape[1], noised.sum(axis=1)
    chance = np.array([1 / (n * math.comb(n, k)) for k in count])
    return chance * n / count


def exact(model, facts: dict, prompt: int, row: np.ndarray) -> float:
    total = 0.0
    for group in in_order(facts, prompt, len(row)):
        noised = patterns(group[1] - group[0])
        ce = ce_of(model, facts, prompt, row, group, noised)
        total += (weight_of(noised) * np.where(noised, ce, 0.0).sum(axis=1)).sum()
        beta = np.array([math.gamma(k) * math.gamma(noised.shape[1] - k + 1) / math.gamma(noised.shape[1] + 1)
                         for k in noised.sum(axis=1)])  # fmt: skip
        np.testing.assert_allclose(weight_of(noised), beta, rtol=1e-12)  # ∫ t^(k−1) (1 − t)^(n−k) dt
    return total


def row_of(seed: int, length: int = L) -> np.ndarray:
    """A row in which the mask id is a token of the text, too."""
    row = np.random.default_rng(seed).integers(0, V, length)
    row[length // 2 : length // 2 + 1] = MASK
    return row


# ---- expectations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=OFTEN.get(n, pytest.mark.soak)) for n in CASES])
def test_both_estimators_have_the_mean_of_all_patterns(model, name):
    facts, prompt = CASES[name]
    length = L if facts.get("visibility", "full") != "full" else 5  # padded in ours, and not in the reference
    row = row_of(len(name), length)
    trained = with_facts(model, facts)
    expected = exact(model, facts, prompt, row)

    how, groups = reading_of(trained.config), in_order(facts, prompt, length)
    # Every group's patterns at once, side by side, by our own reading.
    most = max(len(patterns(end - begin)) for begin, end in groups)
    noised, weight = np.zeros((most, 8), bool), np.zeros((most, 8))
    for begin, end in groups:
        those = patterns(end - begin)
        noised[:, begin:end] = np.resize(those, (most, end - begin))
        weight[: len(those), begin:end] = weight_of(those)[:, None]
    tokens = np.zeros((most, 8), np.int32)
    tokens[:, :length] = row
    origin = np.full(most, how.counted_from(prompt), np.int32)
    ce = jax.jit(cross_entropies, static_argnums=5)(
        trained, tokens, noised, np.full(most, length), origin if origin.any() else None, how
    )
    summed = float((np.asarray(ce, np.float64) * weight).sum())
    assert summed == pytest.approx(expected, rel=1e-6)

    for method in METHODS if name in ("full", "full, shift, prompt", "blocks") else METHODS[:1]:
        found = q.nelbo(trained, [row], prompt_length=prompt, samples=512, method=method, key=5, batch_size=512)
        assert found.tokens[0] == sum(end - begin for begin, end in groups)
        assert abs(found.mean[0] - expected) <= 3 * found.standard_error[0] + 1e-6 * expected
        is_exact = all(end - begin == 1 for begin, end in groups)
        assert (found.standard_error[0] == 0) == is_exact
        assert found.standard_error[0] < 0.1 * expected


def with_facts(model, facts: dict):
    """The same weights of a model that was trained so."""
    other = nnx.merge(*nnx.split(model))
    other.config = dataclasses.replace(model.config, **facts)
    return other


@pytest.mark.parametrize(("causal", "prompt"), [(False, 3), pytest.param(True, 0, marks=pytest.mark.slow)])
def test_blocks_of_one_token_with_shift_are_the_chain_rule(model, causal, prompt):
    """A causal pass of numpy's own mask; of a prompt that sees itself whole, its mask."""
    facts = {"visibility": "block_causal", "block_length": 1, "shift": True, "causal_context": causal}
    row, place = row_of(1), np.arange(L)
    allowed = place[None] <= place[:, None]
    if prompt and not causal:
        allowed |= (place[None] < prompt) & (place[:, None] < prompt)
    logs = log_p(model, row[None], allowed)[0]
    expected = -sum(logs[i - 1, row[i]] for i in range(max(prompt, 1), L))
    trained = with_facts(model, facts | {"mask_token_id": None})  # none is needed
    found = q.nelbo(trained, [row], prompt_length=prompt, key=9)
    assert found.mean[0] == pytest.approx(expected, rel=1e-6)
    assert (found.standard_error[0], found.tokens[0]) == (0.0, L - max(prompt, 1))
    by_blocks = q.nelbo(trained, [row, row], prompt_length=[prompt, 0], method="antithetic", samples=4)
    assert by_blocks.mean[0] == pytest.approx(expected, rel=1e-6)


# ---- standard errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "samples"),
    [
        pytest.param("full", "stratified", 32, marks=pytest.mark.slow),
        pytest.param("blocks", "stratified", 16, marks=pytest.mark.slow),
        pytest.param("full, shift, prompt", "antithetic", 64, marks=pytest.mark.soak),
    ],
)
def test_standard_errors_cover_the_truth_as_often_as_they_say(model, name, method, samples):
    facts, prompt = CASES[name]
    row = row_of(len(name))
    expected = exact(model, facts, prompt, row)
    found = q.nelbo(
        with_facts(model, facts), [row] * 400, prompt_length=prompt, samples=samples, method=method, key=1,
        batch_size=1600,
    )  # fmt: skip
    assert 0.60 <= (np.abs(found.mean - expected) <= found.standard_error).mean() <= 0.76
    if method == "stratified":  # the variance of the other is infinite, if barely
        assert found.standard_error.mean() == pytest.approx(found.mean.std(), rel=0.15)
    assert abs(found.mean.mean() - expected) <= 3 * found.mean.std() / 20


# ---- what is drawn -------------------------------------------------------------------------------------------


def published(size: int, samples: int, k: int) -> np.ndarray:
    """How many tokens the draws of LLaDA's published evaluation noise (its get_log_likelihood; dllm has the same)."""
    counts = np.round(k + np.arange(samples) * size / samples).astype(int)  # halves to even, as torch.round
    return (counts - 1) % size + 1


def ours(size: int, samples: int) -> np.ndarray:
    """Shares of 1 … size over all draws, u along a fine grid."""
    share = jnp.asarray((np.arange(2000) + 0.5) / 2000, jnp.float32)
    strata = samples // 2
    found = [noised_tokens(share, jnp.int32(size), jnp.int32(k), strata) for k in range(strata)]
    return np.bincount(np.concatenate(found), minlength=size + 1)[1:] / (2000 * strata)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 48])
@pytest.mark.parametrize("samples", [2, 6, 16, 32])
def test_every_number_of_noised_tokens_is_as_likely(size, samples):
    np.testing.assert_allclose(ours(size, samples), 1 / size, atol=0.002)


def test_the_published_rounding_is_biased_and_ours_is_not():
    """Cross-entropy rises from 0.5 to 4 nats with the noise; 8 tokens, 16 draws: 18 nats, and 19 as published."""
    size, samples = 8, 16
    ce = np.linspace(0.5, 4.0, size)  # of a token, where l = 1 … 8 of them are noised
    truth = size * ce.mean()
    counts = np.concatenate([published(size, samples, k) for k in range(1, size + 1)])
    shares = np.bincount(counts, minlength=size + 1)[1:] / counts.size
    np.testing.assert_allclose(shares * size, [0.5, 1.5] * 4)
    assert truth == pytest.approx(18.0)
    assert size * (shares @ ce) == pytest.approx(19.0)
    assert size * (ours(size, samples) @ ce) == pytest.approx(18.0, abs=0.01)


def test_exactly_so_many_tokens_of_each_block_are_noised():
    start, size = jnp.array([9, 0, 0, 0, 3, 3, 9]), jnp.array([0, 3, 3, 3, 2, 2, 0])
    keys = jax.random.split(jax.random.key(0), 3000)
    noised, weight, level = jax.vmap(lambda key: draw(key, jnp.int32(3), start, size, "stratified", 4))(keys)
    count = np.add.reduceat(np.asarray(noised), [1, 4, 6], axis=1)
    assert not count[:, 2].any()
    assert not np.asarray(noised)[:, 0].any()
    np.testing.assert_allclose(np.asarray(level)[:, [1, 4]], count[:, :2] / [3, 2], rtol=1e-6)
    np.testing.assert_allclose(weight, np.where(noised, 1 / np.maximum(np.asarray(level), 1e-9), 0), rtol=1e-6)
    assert set(count[:, 0]) == {2, 3}  # the upper of two strata
    assert set(count[:, 1]) == {2}
    of_two = np.asarray(noised)[count[:, 0] == 2]  # which two of three: each alike
    np.testing.assert_allclose(of_two[:, 1:4].mean(axis=0), 2 / 3, atol=0.06)


def test_antithetic_draws_ask_for_each_token_once():
    start, size, key = jnp.zeros(50, int), jnp.full(50, 50), jax.random.key(2)
    both = [draw(key, jnp.int32(n), start, size, "antithetic", 8) for n in (4, 5)]
    assert (both[0][0] ^ both[1][0]).all()
    np.testing.assert_allclose(both[0][2] + both[1][2], 1.0)


# ---- batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full, shift, prompt", pytest.param("blocks, shift, prompt", marks=pytest.mark.soak)])
def test_a_row_gives_in_a_batch_what_it_gives_alone(model, name):
    """Whatever stands beside it, how long it is and on how many devices."""
    trained = with_facts(model, CASES[name].facts)
    rows, prompts = [row_of(n, n) for n in (5, 14, 3, 17, 1, 0)], [2, 7, 3, 0, 0, 0]
    keys = jax.random.split(jax.random.key(4), len(rows))
    found = q.nelbo(trained, rows, prompt_length=prompts, key=keys, samples=4, batch_size=8)
    assert found.tokens.tolist() == [3, 7, 0, 16, 0, 0]
    alone = q.nelbo(trained, rows[1:2], prompt_length=7, key=keys[1:2], samples=4, batch_size=3)
    assert alone.mean[0] == pytest.approx(found.mean[1], rel=1e-5)
    assert alone.standard_error[0] == pytest.approx(found.standard_error[1], rel=1e-4)
    with jax.set_mesh(q.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])):
        spread = q.nelbo(trained, rows[:3], prompt_length=prompts[:3], key=keys[:3], samples=4, batch_size=7)
    np.testing.assert_allclose(spread.mean, found.mean[:3], rtol=1e-5)


def test_sums_and_means_of_rows():
    found = q.Estimate(np.array([6.0, 4.0, 0.0]), np.array([0.3, 0.4, 0.0]), np.array([3, 2, 0]))
    np.testing.assert_allclose(found.per_token.mean, [2.0, 2.0, np.nan])
    np.testing.assert_allclose(found.per_token.standard_error, [0.1, 0.2, np.nan])
    total = found.total.per_token
    assert (total.mean[0], total.standard_error[0], total.tokens[0]) == pytest.approx((2.0, 0.1, 5))


def test_what_is_no_text_to_measure_is_refused(model):
    row = [[1, 2, 3]]
    refuses(lambda: q.nelbo(model, [[1, 9]]), "token id 9")
    refuses(lambda: q.nelbo(model, row, prompt_length=4), "prompt_length of row 0", "0 … 3")
    refuses(lambda: q.nelbo(model, row, prompt_length=[1, 2]), "each of the 1 rows")
    refuses(lambda: q.nelbo(model, row, samples=3), "samples must be even and at least 2")
    refuses(lambda: q.nelbo(model, row, samples=2, method="antithetic"), "at least 4 for antithetic")
    refuses(lambda: q.nelbo(model, row, method="rounded"), "stratified, antithetic")
    refuses(lambda: q.nelbo(model, row, batch_size=0), "batch_size")
    refuses(lambda: q.nelbo(model, row, block_length=4), "visibility full has no blocks")
    refuses(lambda: q.nelbo(model, row, visibility="block_causal"), "needs a block_length")
    refuses(lambda: q.nelbo(with_facts(model, {"mask_token_id": None}), row), "mask_token_id")
    refuses(lambda: q.nelbo(model, row, key=jax.random.split(jax.random.key(0), 2)), "each of the 1 rows")
    assert rows_of(model, row, None, None).prompt_length.tolist() == [0]
    in_blocks = with_facts(model, BLOCKS | {"block_origin": "start"}).config
    assert reading_of(in_blocks, visibility="full").block_length is None
