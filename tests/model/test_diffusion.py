"""The forward process and the losses: statistics, options, and the formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3llada_jax import diffusion
from qwen3llada_jax.diffusion import NoiseConfig, forward_process, pretrain_loss, sft_loss
from qwen3llada_jax.errors import InputError

MASK = 99
SCHEDULES = {
    "uniform": lambda t: t,
    "cosine": lambda t: (1 - np.cos(np.pi * t)) / 2,
    "md4_cosine": lambda t: np.sin(np.pi * t / 2),
    "power": lambda t: t**2,
    "sigmoid": lambda t: 1 / (1 + np.exp(-12 * (t - 0.5))),
}


def noised(rows: int, length: int, seed: int = 0, **options):
    can_noise = options.pop("can_noise", None)
    tokens = jnp.asarray(np.random.default_rng(seed).integers(0, 90, (rows, length)))
    keys = diffusion.row_keys(jax.random.key(seed), 0, jnp.arange(rows))
    return tokens, forward_process(keys, tokens, MASK, NoiseConfig(**options), can_noise=can_noise, vocab_size=90)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noised_share_follows_the_schedule_in_every_band(schedule):
    _, n = noised(8000, 64, schedule=schedule)
    t, share = np.asarray(n.t, np.float64), np.asarray(n.is_noised).mean(axis=1)
    assert 0.49 < t.mean() < 0.51
    expected = (1 - 1e-3) * SCHEDULES[schedule](t) + 1e-3
    np.testing.assert_allclose(n.p[:, 0], expected, rtol=1e-5)
    for low in np.arange(0, 1, 0.1):
        band = (t >= low) & (t < low + 0.1)
        # `at_least_one` lifts the share of a row with expected p·L noised tokens by P(none) / L
        lift = ((1 - expected[band]) ** 64 / 64).mean()
        assert abs(share[band].mean() - expected[band].mean() - lift) < 4 * 0.5 / np.sqrt(64 * band.sum())


def test_every_row_has_a_noised_token_unless_told_otherwise():
    _, n = noised(3000, 4)
    assert n.is_noised.any(axis=1).all()
    _, n = noised(3000, 4, at_least_one=False)
    assert not n.is_noised.any(axis=1).all()


def test_noised_positions_hold_the_mask_and_others_their_token():
    tokens, n = noised(2000, 30)
    np.testing.assert_array_equal(n.tokens, np.where(n.is_noised, MASK, tokens))


def test_clean_text_holding_the_mask_token_is_not_noise():
    """Defect of the PyTorch system: `noisy == mask_id` took live text for noise."""
    tokens = jnp.full((400, 20), MASK)
    keys = diffusion.row_keys(jax.random.key(1), 0, jnp.arange(400))
    n = forward_process(keys, tokens, MASK)
    assert 0.4 < n.is_noised.mean() < 0.6
    ce = jnp.ones(tokens.shape)
    share = float((n.is_noised / n.p).sum() / tokens.size)
    assert abs(float(pretrain_loss(ce, n.is_noised, n.p)) - share) < 1e-5


def test_prompts_and_padding_are_never_noised():
    can = jnp.arange(30)[None] >= jnp.arange(20)[:, None]
    for region in (0.0, 1.0):
        tokens, n = noised(20, 30, can_noise=can, mask_contiguous_region_prob=region)
        assert not (n.is_noised & ~can).any()
        np.testing.assert_array_equal(np.where(can, 0, n.tokens), np.where(can, 0, tokens))


@pytest.mark.slow
def test_noise_depends_on_seed_step_and_row_alone():
    tokens = jnp.zeros((8, 16), jnp.int32)

    def noise(rows, step=3):
        rows = jnp.asarray(rows)
        return forward_process(diffusion.row_keys(jax.random.key(5), step, rows), tokens[rows], MASK).is_noised

    whole = noise(range(8))
    np.testing.assert_array_equal(whole[2:4], noise([2, 3]))
    np.testing.assert_array_equal(whole[::-1], noise(range(7, -1, -1)))
    assert (whole != noise(range(8), step=4)).any()


# ---- options, each shown to act ------------------------------------------------------------------------------


def test_min_masking_rate():
    _, n = noised(2000, 30, min_masking_rate=0.4)
    assert float(n.p.min()) == pytest.approx(0.4)
    assert float(n.weight.max()) == pytest.approx(2.5)


def test_reweight_cap_bounds_the_weight_and_not_the_noise():
    _, plain = noised(2000, 30)
    _, capped = noised(2000, 30, reweight_cap=3.0)
    np.testing.assert_array_equal(plain.is_noised, capped.is_noised)
    np.testing.assert_array_equal(plain.p, capped.p)
    np.testing.assert_allclose(capped.weight, np.minimum(1 / np.asarray(plain.p), 3.0), rtol=1e-6)


def test_contiguous_region_is_one_span_of_the_expected_size():
    _, n = noised(2000, 30, mask_contiguous_region_prob=1.0)
    for row, p in zip(np.asarray(n.is_noised), np.asarray(n.p[:, 0]), strict=True):
        where = np.flatnonzero(row)
        assert where[-1] - where[0] + 1 == len(where)
        assert len(where) == max(1, round(float(p) * 30))


def test_contiguous_region_prob_is_a_share_of_rows():
    _, n = noised(2000, 30, mask_contiguous_region_prob=0.3)
    spans = [
        np.ptp(np.flatnonzero(r)) + 1 == r.sum()
        for r, t in zip(np.asarray(n.is_noised), n.t, strict=True)
        if 0.2 < t < 0.8
    ]
    assert 0.25 < np.mean(spans) < 0.35


def test_random_replace_puts_live_tokens():
    tokens, n = noised(2000, 30, noise_type="random_replace")
    replaced = np.asarray(n.tokens)[np.asarray(n.is_noised)]
    assert replaced.max() < 90
    assert len(np.unique(replaced)) > 80
    np.testing.assert_array_equal(np.where(n.is_noised, 0, n.tokens), np.where(n.is_noised, 0, tokens))


def test_random_length_cuts_the_asked_share():
    keys = jax.random.split(jax.random.key(0), 20_000)
    lengths = np.asarray(diffusion.random_lengths(keys, 50, NoiseConfig(random_length_prob=0.2)))
    assert lengths.min() == 1
    assert 0.18 < (lengths < 50).mean() < 0.21
    cut = lengths[lengths < 50]
    assert 24 < cut.mean() < 26


def test_antithetic_levels_are_evenly_spread():
    keys = jax.random.split(jax.random.key(0), 16)
    t = diffusion.sample_t(jax.random.key(1), keys, jnp.arange(16), 16, NoiseConfig(antithetic=True))
    np.testing.assert_allclose(np.diff(np.sort(t)), 1 / 16, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_elbo_weight_is_the_schedules_slope_over_p(schedule):
    t = np.linspace(0.01, 0.99, 50)
    config = NoiseConfig(schedule=schedule, weight="elbo")
    s = SCHEDULES[schedule]
    slope = (1 - 1e-3) * (s(t + 1e-5) - s(t - 1e-5)) / 2e-5
    expected = slope / ((1 - 1e-3) * s(t) + 1e-3)
    np.testing.assert_allclose(diffusion.loss_weight(jnp.asarray(t), config), expected, rtol=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "linear"}, {"noise_type": "swap"}, {"weight": "w"}, {"eps": 0.0}, {"min_masking_rate": 1.5},
        {"reweight_cap": 0.0}, {"weight": "elbo", "reweight_cap": 2.0},
    ],
)  # fmt: skip
def test_impossible_noise_is_refused(options):
    with pytest.raises(InputError):
        NoiseConfig(**options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int64"])
@pytest.mark.parametrize("kind", ["mask", "random_replace"])
def test_k13_narrow_tokens_are_no_narrow_noise(dtype, kind):
    """Data sets come as uint16 files; a mask token 151669 is 20597 in 16 bits."""
    tokens = np.arange(64).reshape(4, 16)
    given = (0, tokens.astype(dtype), 151_669, NoiseConfig(noise_type=kind))
    n = forward_process(*given, t=[1.0] * 4, vocab_size=151_669)
    assert n.tokens.dtype == jnp.int32
    same = forward_process(0, jnp.asarray(tokens, jnp.int32), *given[2:], t=jnp.ones(4), vocab_size=151_669)
    np.testing.assert_array_equal(n.tokens, same.tokens)
    put = np.asarray(n.tokens)[np.asarray(n.is_noised)]
    assert (put == 151_669).all() if kind == "mask" else put.max() > 65_535
    jitted = jax.jit(lambda tokens, t: forward_process(0, tokens, 151_669, t=t).tokens)(tokens.astype(dtype), n.t)
    assert jitted.dtype == jnp.int32
    assert kind != "mask" or (jitted == n.tokens).all()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"mask_token_id": -1}, "mask_token_id must be an id"), ({"mask_token_id": 2**31}, "mask_token_id"),
        ({"t": [0.5, 1.5]}, r"t must lie in \[0, 1\], not 1.5"), ({"t": [-0.1, 0]}, "not -0.1"),
        ({"t": [0.5, float("nan")]}, "not nan"), ({"t": ["a", "b"]}, "t must be noise levels"),
        ({"config": NoiseConfig(noise_type="random_replace"), "vocab_size": 0}, "vocab_size must be 1"),
        ({"config": NoiseConfig(noise_type="random_replace"), "vocab_size": -5}, "vocab_size must be 1"),
        ({"config": NoiseConfig(noise_type="random_replace"), "vocab_size": "many"}, "vocab_size must be a whole"),
    ],
)  # fmt: skip
def test_k13_noise_that_is_none_is_refused(options, part):
    with pytest.raises(InputError, match=part):
        forward_process(0, [[1, 2, 3], [4, 5, 6]], **{"mask_token_id": 9, **options})


# ---- a level of each token -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("noise_type", ["mask", "random_replace"])
def test_levels_of_tokens_that_agree_in_a_row_are_the_rows_level(noise_type):
    """Bit for bit: the same draws meet the same probabilities."""
    tokens = np.random.default_rng(0).integers(0, 90, (300, 12))
    config = NoiseConfig(noise_type=noise_type, schedule="sigmoid", weight="elbo")
    of_rows = forward_process(3, tokens, MASK, config, vocab_size=90)
    of_tokens = forward_process(3, tokens, MASK, config, t=np.repeat(of_rows.t[:, None], 12, axis=1), vocab_size=90)
    assert of_rows.t.shape == (300,)
    assert of_tokens.t.shape == (300, 12)
    for name in ("tokens", "is_noised", "p", "weight"):
        np.testing.assert_array_equal(getattr(of_tokens, name), getattr(of_rows, name), err_msg=name)


@pytest.mark.parametrize("weight", ["reference", "elbo"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_token_is_noised_and_weighed_by_its_own_level(schedule, weight):
    """p and weight from the formula in numpy; shares over many rows within four standard errors."""
    rows, length = 20_000, 8
    t = np.linspace(0.02, 0.98, length)
    options = {} if weight == "elbo" else {"min_masking_rate": 0.1, "reweight_cap": 5.0}
    config = NoiseConfig(schedule=schedule, weight=weight, at_least_one=False, **options)
    n = forward_process(1, np.zeros((rows, length), int), MASK, config, t=np.tile(t, (rows, 1)))
    s = SCHEDULES[schedule]
    p = np.maximum((1 - 1e-3) * s(t) + 1e-3, options.get("min_masking_rate", 0.0))
    slope = (1 - 1e-3) * (s(t + 1e-5) - s(t - 1e-5)) / 2e-5
    np.testing.assert_allclose(n.p, np.tile(p, (rows, 1)), rtol=1e-4)
    expected = np.minimum(1 / p, 5.0) if weight == "reference" else slope / p
    np.testing.assert_allclose(n.weight, np.tile(expected, (rows, 1)), rtol=2e-3)
    share = np.asarray(n.is_noised).mean(axis=0)
    assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / rows)).all()
    both = np.asarray(n.is_noised[:, 2] & n.is_noised[:, 5]).mean()  # and each on its own
    assert abs(both - p[2] * p[5]) <= 4 * np.sqrt(p[2] * p[5] / rows)


def test_levels_of_tokens_leave_alone_what_may_not_be_noised():
    can = np.arange(6)[None] >= np.array([[2], [5]])
    t = np.where(can, 0.0, 1.0)  # all noise where none may be, and hardly any elsewhere
    for seed in range(20):
        is_noised = np.asarray(forward_process(seed, np.ones((2, 6), int), MASK, can_noise=can, t=t).is_noised)
        assert not (is_noised & ~can).any()
        assert is_noised.any(axis=1).all()  # `at_least_one`


def test_levels_of_other_shapes_and_spans_of_tokens_are_refused():
    for shape in ((2,), (3, 5), (4, 1), (4, 5, 1)):
        with pytest.raises(InputError, match=r"t must be of shape \[4\] or \[4, 5\] for these tokens, not "):
            forward_process(0, np.ones((4, 5), int), MASK, t=np.full(shape, 0.5))
    with pytest.raises(InputError, match=r"mask_contiguous_region_prob noises spans, .* not \[4, 5\]"):
        forward_process(
            0, np.ones((4, 5), int), MASK, NoiseConfig(mask_contiguous_region_prob=0.1), t=np.full((4, 5), 0.5)
        )
    with pytest.raises(InputError, match=r"not 1\.5"):
        forward_process(0, [[1, 2]], MASK, t=[[0.5, 1.5]])


# ---- losses --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), length=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_losses_equal_the_formulas(seed, rows, length):
    draw = np.random.default_rng(seed)
    ce = draw.exponential(2.0, (rows, length)).astype(np.float32)
    m = draw.random((rows, length)) < 0.5
    p = np.repeat(draw.uniform(0.05, 1, (rows, 1)), length, axis=1).astype(np.float32)
    answer = draw.integers(1, length + 1, rows)
    real = np.arange(length)[None] < draw.integers(1, length + 1, rows)[:, None]
    pretrain = sum(ce[b, i] / p[b, i] for b in range(rows) for i in range(length) if m[b, i]) / (rows * length)
    sft = sum(sum(ce[b, i] / p[b, i] for i in range(length) if m[b, i]) / answer[b] for b in range(rows)) / rows
    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(pretrain_loss(ce, m, p), pretrain, **close)
    np.testing.assert_allclose(pretrain_loss(ce, m & real, p, is_real=real),
                               sum((ce / p)[m & real]) / real.sum(), **close)  # fmt: skip
    np.testing.assert_allclose(sft_loss(ce, m, p, answer), sft, **close)
