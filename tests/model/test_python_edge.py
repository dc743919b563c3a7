"""What callers of the library pass: taken where it is plain what is meant, else one line at the call (K9, K13)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refuses, rule
from torch_twins import logits_of, save_torch, torch_model

import qwen3llada_jax as q
from qwen3llada_jax import arguments, diffusion
from qwen3llada_jax.model import attention
from qwen3llada_jax.sampling.layout import continuation

TOKENS = np.random.default_rng(0).integers(0, 200, (2, 12))
SMALL = q.SamplerConfig(gen_length=4, steps=2, block_length=4)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    reference = torch_model(7, hidden_size=32, num_hidden_layers=2, intermediate_size=40)
    model = q.load(save_torch(reference, tmp_path_factory.mktemp("twin")))
    model.config = dataclasses.replace(model.config, mask_token_id=210)
    return reference, model


def in_blocks(model, **changes):
    """The same weights, trained (as its config says) under another rule."""
    other = jax.tree.map(lambda x: x, model)
    other.config = dataclasses.replace(model.config, **changes)
    return other


# ---- K9: numbers that are what their name says ---------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sees"), [("block_causal", False), ("block_bias", False), ("block_bias", True)])
def test_k9_without_a_mask_a_model_sees_what_it_was_trained_to_see(twin, kind, sees):
    reference, model = twin
    blocks = in_blocks(model, visibility=kind, block_length=4, prompt_sees_answer=sees)
    allowed = np.array([[[rule(kind, i, j, 0, 4) for j in range(12)] for i in range(12)]] * 2)
    expected = logits_of(reference, TOKENS, allowed)
    np.testing.assert_allclose(blocks(TOKENS), expected, atol=2e-5 * np.abs(expected).max())
    everything = logits_of(reference, TOKENS)
    asked = np.asarray(blocks(TOKENS, mask=q.Mask("full")))
    np.testing.assert_allclose(asked, everything, atol=2e-5 * np.abs(everything).max())
    assert np.abs(expected - everything).max() > 1e-3
    np.testing.assert_array_equal(blocks(TOKENS), blocks.logits(blocks.hidden(TOKENS)))
    where = np.array([[3, 11], [0, 7]])
    some = np.take_along_axis(np.asarray(blocks.hidden(TOKENS)), where[..., None], 1)
    np.testing.assert_allclose(blocks.hidden(TOKENS, where=where), some, rtol=1e-5, atol=1e-5)


def test_k9_padding_told_alone_leaves_the_models_own_rule_in_force(twin):
    """A relative: `q.Mask(is_real=…)` said `full` by the way."""
    _, model = twin
    blocks = in_blocks(model, visibility="block_causal", block_length=4)
    real = np.arange(12) < np.array([[12], [9]])
    spelled_out = q.Mask("block_causal", 4, is_real=jnp.asarray(real))
    np.testing.assert_array_equal(blocks(TOKENS, q.Mask(is_real=real)), blocks(TOKENS, spelled_out))
    wider = blocks(TOKENS, q.Mask(block_length=6, prompt_length=[1, 3]))
    np.testing.assert_array_equal(
        wider, blocks(TOKENS, q.Mask("block_causal", 6, prompt_length=jnp.asarray([1, 3]), is_real=None))
    )


@pytest.mark.slow
def test_k9_block_diffusion_counts_rotary_positions_as_the_mask_does(twin):
    """Torch, told mask and positions; the mask's own positions reach the rotary tables too."""
    _, model = twin
    twice = jnp.tile(jnp.arange(6), 2)[None]
    mask = q.Mask("block_diffusion", 2)
    np.testing.assert_array_equal(model(TOKENS, mask), model(TOKENS, mask, twice))
    assert np.abs(np.asarray(model(TOKENS, mask) - model(TOKENS, mask, jnp.arange(12)[None]))).max() > 1e-3
    documents = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    packed = q.Mask("block_bias", 3, positions=documents, segment_ids=np.array([[0] * 5 + [1] * 7]))
    np.testing.assert_array_equal(model(TOKENS, packed), model(TOKENS, packed, documents))
    alone = model(TOKENS[:, 5:], q.Mask("block_bias", 3))
    np.testing.assert_allclose(np.asarray(model(TOKENS, packed))[:, 5:], alone, rtol=1e-4, atol=1e-4)
    refuses(lambda: model(TOKENS[:, :11], mask), "even number of tokens, not 11")


def test_k9_md4s_cosine_has_a_name_and_a_weight_of_its_own():
    """−α′/(1 − α) of α = 1 − sin(πt/2) is (π/2) cot(πt/2) (MD4, table 1); the other cosine is sin²(πt/2)."""
    t = np.linspace(0.02, 0.98, 40)
    noise = q.NoiseConfig(schedule="md4_cosine", weight="elbo", eps=1e-9)
    np.testing.assert_allclose(diffusion.noise_probability(jnp.asarray(t), noise), np.sin(np.pi * t / 2), rtol=1e-5)
    cot = np.pi / 2 / np.tan(np.pi * t / 2)
    np.testing.assert_allclose(diffusion.loss_weight(jnp.asarray(t), noise), cot, rtol=1e-4, atol=1e-5)
    other = diffusion.noise_probability(jnp.asarray(t), q.NoiseConfig(schedule="cosine", eps=1e-9))
    np.testing.assert_allclose(other, np.sin(np.pi * t / 2) ** 2, rtol=1e-5)


@pytest.mark.parametrize("schedule", diffusion.SCHEDULES)
def test_k9_under_elbo_every_schedule_counts_a_token_once(schedule):
    """∫ p · weight dt = p(1) − p(0): what makes the loss of any schedule the same bound."""
    noise = q.NoiseConfig(schedule=schedule, weight="elbo")
    t = (np.arange(20_000) + 0.5) / 20_000
    p, weight = (np.asarray(f(jnp.asarray(t), noise)) for f in (diffusion.noise_probability, diffusion.loss_weight))
    ends = np.asarray(diffusion.noise_probability(jnp.asarray([0.0, 1.0]), noise))
    assert abs((p * weight).mean() - (ends[1] - ends[0])) < 1e-3


# ---- K13: masks ----------------------------------------------------------------------------------------------


def test_k13_an_additive_mask_is_refused_and_bools_and_ones_are_taken(twin):
    reference, model = twin
    allowed = np.random.default_rng(1).random((2, 12, 12)) < 0.6
    allowed |= np.eye(12, dtype=bool)
    expected = logits_of(reference, TOKENS, allowed)
    for mask in (allowed, allowed.astype(np.int64), jnp.asarray(allowed), allowed[:, None], allowed.tolist()):
        np.testing.assert_allclose(model(TOKENS, mask=mask), expected, atol=2e-5 * np.abs(expected).max())
    additive = np.where(allowed, 0.0, -np.inf)
    for wrong in (additive, additive.astype(np.float32), additive[:, None], allowed.astype(np.float32)):
        refuses(lambda wrong=wrong: model(TOKENS, mask=wrong), "mask must be bool", "pass `mask == 0`")
    refuses(lambda: model(TOKENS, mask=allowed * 2), "mask must be bool, or 0 and 1")
    refuses(lambda: jax.jit(lambda m, a: m(TOKENS, mask=a))(model, additive), "mask must be bool")
    q8 = jnp.zeros((1, 12, 2, 16))
    refuses(lambda: attention.attention(q8, q8, q8, jnp.asarray(additive), "xla"), "a mask must be bool")
    for shape in ((12, 12), (3, 12, 12), (2, 12, 11)):
        refuses(lambda shape=shape: model(TOKENS, mask=np.ones(shape, bool)), "mask must be [2 or 1, 12, 12]")
    refuses(lambda: model(TOKENS, mask=np.ones((2, 12), bool)), "padding is told by q.Mask(is_real=…)")


def test_k13_a_masks_parts_may_be_lists_and_must_fit(twin):
    _, model = twin
    whole = q.Mask("block_causal", 4, prompt_length=jnp.asarray([3, 3]))
    for prompt in (3, np.int64(3), [3, 3], np.array([3, 3])):
        np.testing.assert_array_equal(model(TOKENS, q.Mask("block_causal", 4.0, prompt_length=prompt)),
                                      model(TOKENS, whole))  # fmt: skip
    real = [[1] * 12, [1] * 9 + [0] * 3]
    np.testing.assert_array_equal(
        model(TOKENS, q.Mask(is_real=real)), model(TOKENS, q.Mask(is_real=np.array(real) > 0))
    )
    for wrong, part in (
        ({"is_real": np.array(real) * 1.0}, "is_real must be bool"),
        ({"is_real": [[1] * 11] * 2}, "is_real must be of shape [2, 12]"),
        ({"segment_ids": [[0.5] * 12] * 2}, "segment_ids must be whole numbers"),
        ({"kind": "block_bias", "block_length": 2, "prompt_length": [1, 2, 3]}, "prompt_length must be of shape [2]"),
        ({"positions": [[0, 1], [2]]}, "its rows differ in length"),
    ):
        refuses(lambda wrong=wrong: model(TOKENS, q.Mask(**wrong)), part)
    for wrong, part in (("2", "whole number, not '2'"), (-1, "at least 1"), (True, "whole number"), (2.5, "not 2.5")):
        refuses(lambda wrong=wrong: q.Mask("block_bias", wrong), "block_length", part)


# ---- K13: tokens, keys, settings -----------------------------------------------------------------------------


@pytest.mark.slow
def test_k13_lists_of_tokens_are_taken_and_other_things_refused(twin):
    _, model = twin
    np.testing.assert_array_equal(model([[1, 2, 3]]), model(np.array([[1, 2, 3]])))
    np.testing.assert_allclose(model.hidden([[1, 2, 3]], where=[[1]]), model.hidden([[1, 2, 3]])[:, 1:2], rtol=1e-4)
    for wrong, part in (
        ([1, 2, 3], "put one row into a list"),
        ([[1, 2], [3]], "differ in length"),
        ([[1.5, 2]], "whole numbers, not float64"),
        ([["a"]], "tokens must be whole numbers [B, L], not [['a']]"),
        (None, "not None"),
        ([[True]], "whole numbers, not bool"),
        ([[1, 211]], "token id 211 is outside"),
    ):
        refuses(lambda wrong=wrong: model(wrong), part)
    refuses(lambda: model([[1, 2]], positions=[[0.5, 1]]), "positions must be whole numbers")
    refuses(lambda: model([[1, 2]], positions=[[0, 1, 2]]), "positions must be of shape [1, 2]")


def test_k13_seeds_and_keys_of_either_kind_say_the_same(twin):
    def draws(key):
        return np.asarray(jax.random.key_data(continuation(twin[1].config, [[1], [2]], settled, key)[1].keys))

    settled = SMALL.for_model(twin[1].config)
    expected = draws(jax.random.key(3))
    for key in (
        3,
        np.int32(3),
        np.uint32(3),
        3.0,
        jnp.asarray(3),
        jax.random.PRNGKey(3),
        np.asarray([0, 3], np.uint32),
    ):
        np.testing.assert_array_equal(draws(key), expected)
    several = jax.random.split(jax.random.key(3), 2)
    np.testing.assert_array_equal(draws(several), draws(jax.random.key_data(several)))
    np.testing.assert_array_equal(draws(None), draws(0))
    for wrong in ("0", True, -1, 2**32, [1, 2], 0.5):
        refuses(lambda wrong=wrong: q.generate(twin[1], [[1]], SMALL, key=wrong), "key")
    noise = q.forward_process(4, [[1, 2, 3, 4]], 99)
    np.testing.assert_array_equal(
        noise.tokens, q.forward_process(jax.random.key(4), jnp.asarray([[1, 2, 3, 4]]), 99)[0]
    )


SAME = {
    "gen_length": (8.0, 8), "steps": (np.int64(4), 4), "temperature": (np.float32(0.5), 0.5), "top_k": (3.0, 3),
    "eos_token_ids": ([7, np.int32(8)], (7, 8)), "forbid": (np.array([5, 6]), (5, 6)), "mask_token_id": (np.int8(9), 9),
    "stop_at_eos": (np.bool_(False), False), "threshold": (jnp.float32(0.5), 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_k13_settings_are_taken_as_what_is_plainly_meant(name):
    given, meant = SAME[name]
    more = {"temperature": 1.0} if name == "top_k" else {}
    config = q.SamplerConfig(**{name: given}, **more)
    assert config == q.SamplerConfig(**{name: meant}, **more)
    assert hash(config) == hash(q.SamplerConfig(**{name: meant}, **more))
    assert type(getattr(config, name)) is type(meant)


def test_k13_one_id_is_a_list_of_one():
    assert q.SamplerConfig(eos_token_ids=7).eos_token_ids == (7,)
    assert q.SamplerConfig(forbid={9, 3}).forbid == (3, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.5"), ("gen_length", "8"), ("gen_length", 8.5), ("gen_length", True), ("gen_length", None),
        ("steps", float("nan")), ("temperature", float("nan")), ("temperature", None), ("top_p", [0.5]),
        ("eos_token_ids", "7"), ("eos_token_ids", [7.5]), ("eos_token_ids", [[7]]), ("forbid", None),
        ("stop_at_eos", 1), ("parallel_blocks", "no"), ("remasking", ["random"]), ("cache", 3), ("eos", ["free"]),
        ("mask_token_id", "auto"), ("visibility", 1),
    ],
)  # fmt: skip
def test_k13_settings_that_mean_nothing_are_refused_where_they_are_made(name, value):
    refuses(lambda: q.SamplerConfig(**{name: value}), name)


def test_k13_forbidding_every_id_is_refused(twin):
    """It drew id 0. Relatives: what min_length, eos never and the rows without token leave."""
    _, model = twin
    every = range(211)
    refuses(lambda: q.generate(model, [[1]], dataclasses.replace(SMALL, forbid=every)), "no id is left to write")
    few = in_blocks(model, live_vocab_size=5, mask_token_id=4, eos_token_id=3)
    most = dataclasses.replace(SMALL, forbid=(0, 1, 2))
    for more in ({"eos": "never"}, {"min_length": 1}):
        settings = dataclasses.replace(most, **more)
        refuses(lambda settings=settings: settings.for_model(few.config), "no id is left to write")
    assert most.for_model(few.config).forbid == (0, 1, 2)


def test_k13_prompts_that_are_none(twin):
    for wrong in (None, 5, "abc", [5], ["abc"], [[1], None], [[True]], [["1"]], {"a": 1}, np.zeros(3, int)):
        refuses(lambda wrong=wrong: q.generate(twin[1], wrong, SMALL), "prompts must be rows of token ids")
    refuses(lambda: q.infill(twin[1], [1, None], SMALL), "texts must be rows of token ids", "None for a hole")
    refuses(lambda: q.infill(twin[1], [[1.0, None]], SMALL), "whole numbers")
    assert q.generate(twin[1], (np.array([1, 2]), [3]), SMALL, key=1).tokens.shape == (2, 6)


def test_k13_other_arguments_of_the_public_face():
    refuses(lambda: q.NoiseConfig(eps="1e-3"), "noise eps must be a number, not '1e-3'")
    refuses(lambda: q.NoiseConfig(antithetic="no"), "noise antithetic must be True or False")
    refuses(lambda: q.make_mesh(data="2"), "mesh size data must be a whole number")
    refuses(lambda: q.Runtime(remat="some"), "remat 'some' is unknown; choose one of none")
    refuses(lambda: q.Runtime(dtype="float8"), "runtime dtype 'float8' is unknown")
    assert q.Runtime(dtype=jnp.bfloat16).dtype == "bfloat16"
    refuses(lambda: q.forward_process(0, [[1, 2]], 9, q.NoiseConfig(noise_type="random_replace")), "needs vocab_size")
    refuses(lambda: q.forward_process(0, [[1, 2]], 9, can_noise=[[1, 1, 0]]), "can_noise must be of shape [1, 2]")
    ce, p = np.ones((1, 2)), np.full((1, 2), 0.5)
    assert float(q.pretrain_loss(ce, [[1, 0]], p)) == 1.0
    refuses(lambda: q.pretrain_loss(ce, np.array([[0.0, -np.inf]]), p), "is_noised must be bool")
    refuses(lambda: q.sft_loss(ce, ce, p, [2]), "is_noised must be bool")


def test_k13_whole_numbers_and_numbers():
    assert [arguments.whole("n", x) for x in (3, 3.0, np.int8(3), np.float32(3), jnp.asarray(3))] == [3] * 5
    assert arguments.number("x", 1e-4) == 1e-4
    for wrong in ("3", True, None, 3.5, float("inf"), [3], "x"):
        refuses(lambda wrong=wrong: arguments.whole("n", wrong), "n must be a whole number")
    assert arguments.whole("n", 10**400) == 10**400


def test_k10_rows_that_the_mesh_does_not_divide_are_one_line(twin):
    with jax.set_mesh(q.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])):
        refuses(
            lambda: q.generate(twin[1], [[1], [2], [3]], SMALL), "3 rows do not divide", "data × fsdp = 4", "give 4"
        )
        refuses(lambda: q.infill(twin[1], [[1, None]], SMALL), "1 rows do not divide")
        refuses(lambda: next(q.watch(twin[1], [[1]], SMALL)), "1 rows do not divide")


def test_k13_places_and_lengths_outside_the_row_are_refused(twin):
    """They were clamped to its end in silence."""
    model = twin[1]
    for where, part in (([[7], [12]], "where must lie in 0 … 11, not 12"), ([[-1], [0]], "not -1"), ([[1]], "[2, W]")):
        refuses(lambda where=where: model.hidden(TOKENS, where=where), part)
    for length in (-1, [0, 99]):
        refuses(
            lambda length=length: model(TOKENS, q.Mask("block_causal", 4, prompt_length=length)),
            "prompt_length must lie",
        )
    refuses(lambda: q.Mask("block_causal", 4, prompt_sees_answer=True), "prompt_sees_answer has no effect")
    refuses(lambda: q.Mask("block_bias", 4, prompt_sees_answer="no"), "prompt_sees_answer must be True or False")


def test_k13_settings_are_refused_at_the_call(twin):
    """None was taken for a rule, and `watch` said nothing before its first pass."""
    model, odd = twin[1], q.SamplerConfig(gen_length=7, block_length=2)
    for name in ("remasking", "revise_by", "eos"):
        refuses(lambda name=name: q.SamplerConfig(**{name: None}), f"{name} must be named, not None")
    refuses(lambda: q.watch(model, [[1]], odd), "not a multiple")
    refuses(lambda: q.watch(model, [["x"]], SMALL), "whole numbers")
    refuses(lambda: q.generate(model, [[1]], SMALL, key=jax.random.key(0, impl="rbg")), "threefry2x32")
