"""The sampler against LLaDA's algorithm written in PyTorch, its invariants, and what bad input gets."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q
from qwen3llada_jax.model.config import VISIBILITIES
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.sampling.layout import bucket
from qwen3llada_jax.sampling.passes.choice import best_first, to_unmask
from qwen3llada_jax.sampling.passes.proposals import Proposal, propose, propose_one
from qwen3llada_jax.sampling.rules import COMMIT_RULES, CONFIDENCE_RULES

V, MASK = 62, 61


@pytest.fixture(scope="module")
def twin_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("twin")


@pytest.fixture(scope="module")
def twin(twin_folder):
    """A small model with wide weights, so that confidences are well spread."""
    reference = torch_model(
        9, vocab_size=V, hidden_size=32, num_hidden_layers=2, initializer_range=0.35, tie_word_embeddings=False
    )
    model = q.load(save_torch(reference, twin_folder))
    model.config = q.ModelConfig(**{**vars(model.config), "mask_token_id": MASK, "live_vocab_size": V - 3})
    return reference, model


def test_the_models_confidences_are_well_spread(twin):
    """Else the test above would compare the breaking of ties."""
    _, model = twin
    sure = np.asarray(
        q.generate(model, [[5, 6]], q.SamplerConfig(gen_length=24, block_length=24, steps=24)).confidence
    )[0, 2:]
    assert np.ptp(sure) > 0.2
    assert np.diff(np.sort(sure)).min() > 1e-6


SETTINGS = [
    {"block_length": 8, "steps": 3, "temperature": 0.7, "remasking": "random", "top_k": 9, "top_p": 0.8},
    {"block_length": 4, "steps": 6, "cfg_scale": 1.0, "remasking": "random_topk"},
    {"block_length": 2, "steps": 4, "temperature": 1.5, "visibility": "block_causal"},
    {"block_length": 4, "threshold": 0.3, "visibility": "block_causal", "temperature": 0.5},
    {"block_length": 4, "factor": 1.5, "visibility": "block_bias", "remasking": "margin"},
    {"block_length": 8, "entropy_bound": 1.0, "remasking": "entropy", "steps": 4, "cache": "dual"},
    {"block_length": 4, "visibility": "block_bias", "parallel_blocks": True, "steps": 4},
    {"block_length": 8, "steps": 4, "revise": 3, "repetition_penalty": 1.3},
    {"block_length": 4, "threshold": 0.9, "revise": 2, "revise_by": "random", "cache": "prefix"},
]  # fmt: skip
token_ids = st.integers(0, V - 1)


prompts_of_two = st.tuples(st.lists(token_ids, max_size=5), st.lists(token_ids, max_size=5))


@st.composite
def any_settings(draw):
    """Every option, in any combination that is not refused."""
    block, visibility = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from(VISIBILITIES))
    eos, rule = draw(st.sampled_from([(), (3,), (3, 5)])), draw(st.sampled_from([None, *COMMIT_RULES]))
    options = {
        "block_length": block,
        "visibility": visibility,
        "steps": draw(st.sampled_from([None, *range(8 // block, 9, 8 // block)])),
        "temperature": draw(st.sampled_from([0.0, 0.3, 2.0])),
        "cfg_scale": draw(st.sampled_from([0.0, 0.0, 1.5])),
        "remasking": draw(st.sampled_from([*CONFIDENCE_RULES])),
        "revise": draw(st.sampled_from([0, 0, 1, 3])),
        "revise_by": draw(st.sampled_from(["confidence", "random"])),
        "cache": draw(st.sampled_from([None, "none", "prefix", "dual"])),
        "eos_token_ids": eos,
        "eos": draw(st.sampled_from(["free", "never", "last"] if eos else ["free"])),
        "min_length": draw(st.sampled_from([0, 3, 8] if eos else [0])),
        "stop_at_eos": draw(st.booleans()),
        "forbid": draw(st.sampled_from([(), (7, 11)])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.4])),
    }
    if rule:
        options[rule] = draw(st.sampled_from([0.1, 0.5, 0.9]))
    if options["temperature"]:
        options |= {"top_k": draw(st.sampled_from([None, 5])), "top_p": draw(st.sampled_from([None, 0.7]))}
    if visibility == "block_bias" and options["repetition_penalty"] == 1:
        options["parallel_blocks"] = draw(st.booleans())
    return options


@pytest.mark.slow
@given(st.sampled_from(SETTINGS), prompts_of_two, st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_invariants(twin, options, prompts, seed):
    check_invariants(twin[1], options, prompts, seed)


@pytest.mark.soak
@given(any_settings(), prompts_of_two, st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_invariants_of_some_settings(twin, options, prompts, seed):
    check_invariants(twin[1], options, prompts, seed)


@pytest.mark.slow
@pytest.mark.soak
@given(any_settings(), prompts_of_two, st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_invariants_of_many_settings(twin, options, prompts, seed):
    check_invariants(twin[1], options, prompts, seed)


def check_invariants(model, options, prompts, seed):
    """Prompts and kept tokens stay, every pass writes what it may and nothing else, NFE is what was counted."""
    config = q.SamplerConfig(gen_length=8, **options)
    S, starts = config.block_length, np.array([len(prompt) for prompt in prompts])
    is_fixed = config.has_budget and config.dynamic is None and config.timesteps is None
    per_block = (config.steps or 8) * S // 8
    blocks_at_once = 8 // S if config.parallel_blocks else 1
    canvases = list(q.watch(model, prompts, config, key=jax.random.key(seed)))
    passes = np.zeros(2, int)
    for number, (before, after) in enumerate(itertools.pairwise(canvases)):
        was, now = np.asarray(before.is_masked), np.asarray(after.is_masked)
        kept = np.asarray(before.written_at) >= 0
        # What an EOS before it has filled, be it masked again in this very pass.
        ended = (was | (kept & bool(config.revise))) & ~now & (np.asarray(after.written_at) == -1)
        written, again = was & ~now & ~ended, now & ~was
        unchanged = ~(written | again | ended)
        np.testing.assert_array_equal(np.asarray(before.tokens)[unchanged], np.asarray(after.tokens)[unchanged])
        assert (np.asarray(after.tokens)[now] == MASK).all()
        assert (np.asarray(after.written_at)[written] == number).all()
        assert config.revise or not again.any()
        assert config.stop_at_eos or not ended.any()
        assert np.isin(np.asarray(after.tokens)[ended], config.eos_token_ids or ()).all()
        net = written.sum(axis=1) - (again | (ended & ~was)).sum(axis=1)
        is_alive = was.any(axis=1)
        if is_fixed:
            share, rest = divmod(S, per_block)
            assert (net == blocks_at_once * (share + (number % per_block < rest)))[is_alive].all()
        for row, start in enumerate(starts):
            assert int(after.nfe[row] - before.nfe[row]) == is_alive[row] * (2 if config.cfg_scale else 1)
            assert written[row].any() == is_alive[row]
            blocks = (np.flatnonzero(written[row] | again[row]) - start) // S
            current = (np.flatnonzero(was[row]) - start) // S
            assert config.parallel_blocks or (blocks == min(current, default=-1)).all()
        if config.revise:
            assert again.sum(axis=1).max() <= -(-config.revise // per_block) * blocks_at_once
        passes += is_alive
    last = canvases[-1]
    assert not last.is_masked.any()
    assert len(canvases) - 1 == passes.max() <= 8 + 8 // S * config.revise
    np.testing.assert_array_equal(last.passes, passes)
    result = q.generate(model, prompts, config, key=jax.random.key(seed))
    watched = q.finish(last)
    np.testing.assert_array_equal(result.tokens, watched.tokens)
    np.testing.assert_array_equal(result.written_at, watched.written_at)
    np.testing.assert_array_equal(result.nfe, watched.nfe)
    for prompt, answer, tokens in zip(prompts, result.answers(), result.tokens, strict=True):
        assert tokens[: len(prompt)].tolist() == prompt
        ends = [place for place, token in enumerate(answer) if token in (config.eos_token_ids or ())]
        assert not ends or (config.eos != "never" and min(ends) >= config.min_length)
        assert not set(answer) & {MASK, *config.forbid, *range(V - 3, V)}
    for row, (prompt, answer) in enumerate(zip(prompts, result.answers(), strict=True)):
        assert np.asarray(result.tokens)[row, : len(prompt)].tolist() == prompt
        assert len(answer) == 8
        assert max(answer) < V - 3


EIGHT = [[1], [2, 3, 4, 5, 6, 7], [50], [9, 8], [1, 1, 2, 3, 5, 8, 13], [40, 41, 42], [30] * 12, [17, 4, 4, 2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"visibility": "full"},
        pytest.param({"visibility": "full", "cache": "dual", "threshold": 0.5}, marks=pytest.mark.soak),
        {"visibility": "block_causal", "threshold": 0.4},
        pytest.param({"visibility": "block_causal", "cache": "none", "temperature": 0.8}, marks=pytest.mark.soak),
        pytest.param({"visibility": "block_bias", "remasking": "random"}, marks=pytest.mark.soak),
    ],
)
def test_eight_prompts_of_eight_lengths_give_what_each_gives_alone(twin, options):
    _, model = twin
    config, keys = q.SamplerConfig(gen_length=12, block_length=4, **options), jax.random.split(jax.random.key(5), 8)
    together = q.generate(model, EIGHT, config, key=keys)
    alone = [q.generate(model, [p], config, key=keys[i : i + 1]) for i, p in enumerate(EIGHT)]
    assert together.answers() == [one.answers()[0] for one in alone]
    assert together.nfe.tolist() == [int(one.nfe[0]) for one in alone]


EXACT = [
    pytest.param("block_bias", {"steps": 6, "revise": 2, "temperature": 1.0}, marks=pytest.mark.slow),
    ("block_causal", {"factor": 1.0, "cfg_scale": 1.5}),
    pytest.param("block_bias", {"factor": 1.0, "cfg_scale": 1.5}, marks=pytest.mark.soak),
    pytest.param("block_causal", {"steps": 6, "revise": 2, "temperature": 1.0}, marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("visibility", "options"), EXACT)
def test_exact_caches_change_no_token(twin, visibility, options):
    _, model = twin
    config = q.SamplerConfig(gen_length=16, block_length=8, visibility=visibility, **options)
    assert q.is_exact(dataclasses.replace(config, cache="dual"), model.config)
    cached, plain = (q.generate(model, EIGHT, dataclasses.replace(config, cache=c)) for c in ("dual", "none"))
    assert cached.answers() == plain.answers()
    np.testing.assert_array_equal(cached.written_at, plain.written_at)
    np.testing.assert_array_equal(cached.nfe, plain.nfe)
    np.testing.assert_allclose(cached.confidence, plain.confidence, atol=1e-5)


@pytest.mark.slow
def test_approximate_caches_are_exact_while_nothing_is_old(twin):
    """In a block's first pass everything is computed anew: with one pass a block the tokens are the same."""
    _, model = twin
    config = q.SamplerConfig(gen_length=16, block_length=4, steps=4, cfg_scale=0.5)
    plain = q.generate(model, EIGHT, config).answers()
    several = dataclasses.replace(config, steps=16)
    for cache in ("prefix", "dual"):
        assert not q.is_exact(dataclasses.replace(config, cache=cache), model.config)
        assert q.generate(model, EIGHT, dataclasses.replace(config, cache=cache)).answers() == plain
        old = q.generate(model, EIGHT, dataclasses.replace(several, cache=cache))
        exact = q.generate(model, EIGHT, several)
        assert old.answers() != exact.answers()
        np.testing.assert_array_equal(old.written_at[:, 0] >= 0, exact.written_at[:, 0] >= 0)


def test_a_prompt_that_sees_answers_makes_the_cache_approximate(twin):
    _, model = twin
    seeing = dataclasses.replace(model.config, prompt_sees_answer=True)
    config = q.SamplerConfig(gen_length=8, block_length=4, visibility="block_bias")
    assert config.for_model(seeing).cache == "none"
    assert config.for_model(model.config).cache == "prefix"
    assert not q.is_exact(dataclasses.replace(config, cache="prefix"), seeing)


@pytest.mark.slow
def test_parallel_blocks_give_the_same_in_fewer_passes(twin):
    _, model = twin
    config = q.SamplerConfig(gen_length=12, block_length=4, visibility="block_bias", threshold=0.5, temperature=0.7)
    one_by_one = q.generate(model, EIGHT, config)
    at_once = q.generate(model, EIGHT, dataclasses.replace(config, parallel_blocks=True))
    assert at_once.answers() == one_by_one.answers()
    assert at_once.passes < one_by_one.passes


MESHES = [
    pytest.param({"data": 8}, {"temperature": 0.7}, marks=pytest.mark.soak),
    pytest.param({"data": 8}, {"visibility": "block_causal", "threshold": 0.5}, marks=pytest.mark.soak),
    pytest.param({"data": 1, "fsdp": 4, "tensor": 2}, {"temperature": 0.7}, marks=pytest.mark.soak),
    ({"data": 1, "fsdp": 4, "tensor": 2}, {"visibility": "block_causal", "threshold": 0.5, "cfg_scale": 1.0}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "options"), MESHES)
def test_a_mesh_gives_the_tokens_of_one_device(twin, twin_folder, sizes, options):
    _, model = twin
    mesh = q.make_mesh(**sizes)
    spread = q.load(twin_folder, mesh=mesh)
    spread.config = model.config
    config = q.SamplerConfig(gen_length=12, block_length=4, **options)
    with jax.set_mesh(mesh):
        got = q.generate(spread, EIGHT, config)
    alone = q.generate(model, EIGHT, config)
    assert got.answers() == alone.answers()
    np.testing.assert_array_equal(got.nfe, alone.nfe)


@pytest.mark.slow
@pytest.mark.parametrize("visibility", [pytest.param("full", marks=pytest.mark.soak), "block_causal"])
def test_eos_is_an_end(twin, visibility):
    """Tokens up to the first EOS are those without stopping; the rest is EOS, and passes are saved."""
    _, model = twin
    on = q.SamplerConfig(gen_length=16, block_length=4, visibility=visibility, remasking="left_to_right")
    free = q.generate(model, EIGHT, dataclasses.replace(on, stop_at_eos=False)).answers()
    eos = free[0][5]  # a token that comes up, as if it were EOS
    stopped = q.generate(model, EIGHT, dataclasses.replace(on, eos_token_ids=(eos,)))
    for answer, whole, nfe in zip(stopped.answers(), free, stopped.nfe, strict=True):
        end = whole.index(eos) if eos in whole else 16
        assert answer == whole[:end] + [eos] * (16 - end)
        assert nfe == min(end + 1, 16)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.soak), 1.0])
def test_eos_never_and_late(twin, temperature):
    _, model = twin
    plain = q.SamplerConfig(gen_length=12, block_length=12, temperature=temperature, stop_at_eos=False)
    common = np.bincount(np.concatenate(q.generate(model, EIGHT, plain).answers()), minlength=V)
    eos = tuple(int(i) for i in common.argsort()[-3:])
    with_eos = dataclasses.replace(plain, eos_token_ids=eos)
    never = q.generate(model, EIGHT, dataclasses.replace(with_eos, eos="never"))
    assert not np.isin(never.answers(), eos).any()
    late = np.array(q.generate(model, EIGHT, dataclasses.replace(with_eos, min_length=5)).answers())
    assert not np.isin(late[:, :5], eos).any()
    assert np.isin(late[:, 5:], eos).any()


def test_eos_last_goes_after_all_others():
    confidence, masked = jnp.array([[[0.9, 0.5, 0.8, 0.1, 0.7]]]), jnp.array([[[True, True, True, True, False]]])
    is_eos = jnp.array([[[True, False, True, False, False]]])
    order = best_first(confidence, masked, is_eos)
    assert order[0, 0].tolist() == [1, 3, 0, 2, 4]
    config = q.SamplerConfig(gen_length=5, block_length=5, threshold=0.05, eos="last", eos_token_ids=(1,))
    proposal = Proposal(jnp.zeros((1, 1, 5), int), confidence, confidence, confidence)
    steps = jnp.asarray(config.passes_of_a_block([5], [1]))
    arguments = (jnp.array([[4]]), jnp.zeros(1, int), steps, config.parameters().commit)
    assert to_unmask(proposal, masked, is_eos, order, *arguments)[0].item() == 2
    order = best_first(confidence, masked & is_eos, is_eos)
    assert to_unmask(proposal, masked & is_eos, is_eos, order, *arguments)[0].item() == 2


@pytest.mark.slow
def test_infilling_fills_holes_and_nothing_else(twin):
    _, model = twin
    texts = [[5, None, None, 6, 7, None], [None] * 5 + [3], [1, 2, None]]
    for options in ({}, {"threshold": 0.4, "cache": "dual", "block_length": 2}):
        result = q.infill(model, texts, q.SamplerConfig(**options))
        for row, text, answer in zip(np.asarray(result.tokens), texts, result.answers(), strict=True):
            assert [int(t) for t, given in zip(row, text, strict=False) if given is not None] == [
                t for t in text if t is not None
            ]
            assert answer == [int(t) for t, given in zip(row, text, strict=False) if given is None]
            assert max(answer) < V - 3
    with pytest.raises(
        q.InputError, match=r"steps 3 is not a multiple of the 2 blocks of text 2 \(5 holes / block_leng"
    ):
        q.infill(model, texts, q.SamplerConfig(steps=3, block_length=3))
    for wrong, part in {
        ((1, 2),): "needs at least one hole",
        ((1, None, V),): f"token id {V} is outside",
        ((1, None, 2**32 + 5),): f"token id {2**32 + 5} is outside",
    }.items():
        with pytest.raises(q.InputError, match=part):
            q.infill(model, wrong, q.SamplerConfig())
    for cache, use in {"prefix": "dual or none", "dual": "none .under block_causal"}.items():
        with pytest.raises(q.InputError, match=f"no prefix to keep.*use cache {use}"):
            q.infill(model, texts, q.SamplerConfig(visibility="block_causal", cache=cache, block_length=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 4, "block_length": 4},
        pytest.param({"steps": 4, "block_length": 4, "revise": 2, "revise_by": "random"}, marks=pytest.mark.soak),
    ],
)
def test_texts_are_filled_as_each_alone(twin, options):
    """However many holes the others have."""
    _, model = twin
    config = q.SamplerConfig(**options)
    texts = [[7, *[None] * 3, 8, None], [9, *[None] * 16, 2], [1, None, 2], [4, *[None] * 7, 4]]
    keys = jax.random.split(jax.random.key(3), len(texts))
    together = q.infill(model, texts, config, key=keys)
    for row, (text, key) in enumerate(zip(texts, keys, strict=True)):
        alone = q.infill(model, [text], config, key=key[None])
        assert together.answers()[row] == alone.answers()[0]
        assert together.nfe[row] == alone.nfe[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "visibility",
    ["block_causal", pytest.param("full", marks=pytest.mark.soak), pytest.param("block_bias", marks=pytest.mark.slow)],
)
def test_continuing_is_infilling_at_the_end(twin, visibility):
    _, model = twin
    config = q.SamplerConfig(gen_length=6, block_length=3, steps=4, visibility=visibility)
    continued = q.generate(model, [[4, 5, 6]], config)
    np.testing.assert_array_equal(continued.tokens, q.infill(model, [[4, 5, 6] + [None] * 6], config).tokens)


def test_a_rule_of_ones_own(twin):
    _, model = twin

    def right_to_left(log_p, token, place, key):
        return place.astype(jnp.float32)

    config = q.SamplerConfig(gen_length=6, block_length=6, remasking=right_to_left)
    assert np.asarray(q.generate(model, [[1, 2]], config).written_at)[0].tolist() == [-1, -1, 5, 4, 3, 2, 1, 0]


def test_a_penalty_on_repetition_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(0)
    head = rng.normal(size=(V, 8)).astype(np.float32)
    hidden = rng.normal(size=(1, 3, 1, 8)).astype(np.float32)
    seen = [3, 5, 5, 9]
    logits = torch.tensor(hidden[0, :, 0] @ head.T)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seen] * 3), logits).softmax(-1)
    config = q.SamplerConfig(gen_length=3, block_length=3, repetition_penalty=1.7)
    got = propose(
        jnp.asarray(hidden),
        jnp.asarray(head),
        where=jnp.ones((1, 3), bool),
        place=jnp.arange(3)[None],
        keys=jax.random.split(jax.random.key(0), 1),
        present=jnp.zeros((1, V), bool).at[0, jnp.asarray(seen)].set(True),
        allowed=jnp.ones((1, V), bool),
        eos=jnp.zeros((1, V), bool),
        parameters=config.parameters(),
    )
    np.testing.assert_array_equal(got.token[0], expected.argmax(-1).numpy())
    np.testing.assert_allclose(got.probability[0], expected.max(-1).values.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["low_confidence", "margin", "entropy", "left_to_right"])
def test_confidence_rules_are_their_formulas(name):
    logits = np.random.default_rng(1).normal(size=(20, 13)) * 3
    logits[:, 4] = -np.inf
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    best = np.sort(p, axis=1)
    expected = {
        "low_confidence": best[:, -1],
        "margin": best[:, -1] - best[:, -2],
        "entropy": (p * np.log(np.where(p > 0, p, 1))).sum(axis=1),
        "left_to_right": -np.arange(20),
    }[name]
    log_p = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    got = jax.vmap(rules.CONFIDENCE_RULES[name]().order, (0, 0, 0, None))(
        log_p, log_p.argmax(1), jnp.arange(20), jax.random.key(0)
    )
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


@given(
    st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=6, max_size=6),  # XLA takes those for 0
    st.integers(1, 6),
    st.floats(0.0078125, 3, width=32),
)
@settings(max_examples=200, deadline=None)
def test_counting_rules_are_their_formulas(values, masked, level):
    best_first = np.sort(np.array(values, np.float32))[::-1]
    p, mask = jnp.asarray(best_first.copy()), jnp.arange(6) < masked
    c = best_first[:masked]
    assert (
        rules.Threshold(level).commit(p, mask).item()
        == (c > min(np.float32(level), np.float32(c[0] - np.float32(1e-5)))).sum()
    )
    fits = [n for n in range(1, masked + 1) if np.float32(n + 1) * (1 - c[n - 1]) < np.float32(level)]
    assert rules.Factor(level).commit(p, mask).item() == max(fits, default=0)
    H = np.sort(np.array(values, np.float64))[:masked] * 2
    fits = [n for n in range(1, masked + 1) if H[:n].sum() - H[:n].max() <= level]
    near = any(abs(H[:n].sum() - H[:n].max() - level) < 1e-5 for n in range(1, masked + 1))
    sorted_H = jnp.asarray(np.sort(np.array(values, np.float32)) * 2)
    assert near or rules.EntropyBound(level).commit(sorted_H, mask).item() == max(fits)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, None), (None, 0.75), (4, 0.6)])
def test_top_k_and_top_p_keep_what_transformers_keeps(top_k, top_p):
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(3).normal(size=12).astype(np.float32) * 2
    left = torch.tensor(logits)[None] / 0.7
    if top_k:
        left = TopKLogitsWarper(top_k)(None, left)
    if top_p:
        left = TopPLogitsWarper(top_p)(None, left)
    config = q.SamplerConfig(block_length=1, temperature=0.7, top_k=top_k, top_p=top_p)
    keys = jax.random.split(jax.random.key(0), 50_000)
    drawn = jax.vmap(lambda key: config.parameters().draw.draw(jnp.asarray(logits), key))(keys)
    share = np.bincount(np.asarray(drawn), minlength=12) / len(keys)
    expected = left.softmax(-1)[0].numpy()
    assert ((share > 0) == (expected > 0)).all()
    assert np.abs(share - expected).max() < 0.01


@pytest.mark.parametrize("size", [1, 12, 1000, 151936])
def test_a_nucleus_is_the_fewest_tokens_that_have_its_probability(size):
    draw = np.random.default_rng(size)
    for spread in (0.1, 1.0, 4.0, 30.0):
        logits = (spread * draw.normal(size=size)).astype(np.float32)
        p = np.asarray(jax.nn.softmax(logits / 0.8), np.float64)
        order = np.argsort(-p)
        for top_p in (1e-3, 0.3, 0.9, 0.99, 1.0):
            kept = np.asarray(rules.Sample(0.8, top_p=top_p).probabilities(jnp.asarray(logits))) > 0
            many = max(kept[p > 0].sum(), 1)
            assert kept[order[:many]].all(), "there are no gaps"
            assert p[order[:many]].sum() > top_p - 1e-4
            assert p[order[: many - 1]].sum() < top_p + 1e-4
    p = np.asarray(rules.Sample(1.0, top_p=0.5).probabilities(jnp.zeros(size)))
    np.testing.assert_allclose(p, 1 / size, rtol=1e-5, err_msg="of equals none is left out")


@pytest.mark.slow
@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-3}, {"top_k": 3, "top_p": 1e-3}])
@pytest.mark.parametrize(
    "more",
    [pytest.param({}, marks=pytest.mark.soak), {"cfg_scale": 1.5, "repetition_penalty": 1.4, "cache": "prefix"}],
)
def test_of_a_single_candidate_the_likeliest_is_drawn(twin, only, more):
    """In the whole program, where XLA may compute a logit twice and round it differently."""
    _, model = twin
    common = {"gen_length": 8, "block_length": 2, "forbid": (7, 11), "eos_token_ids": (), **more}
    prompts = [[], [0, 49], [5, 8, 1], [17]]
    greedy = q.generate(model, prompts, q.SamplerConfig(**common)).answers()
    for seed in range(5):
        drawn = q.generate(model, prompts, q.SamplerConfig(temperature=0.3, **common, **only), key=jax.random.key(seed))
        assert drawn.answers() == greedy


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_proposals_are_drawn_from_the_tempered_softmax(temperature):
    """Chi-square, with logits up to ±80."""
    draws, size = 20_000, 12
    logits = np.concatenate([[80.0, 79.5, 79.0, 78.0], np.linspace(77, 70, 6), [-80.0, 0.0]]).astype(np.float32)
    exact = np.exp((logits - 80.0) / temperature, dtype=np.float64)
    exact /= exact.sum()
    config = q.SamplerConfig(block_length=1, temperature=temperature)
    one = functools.partial(propose_one, parameters=config.parameters())
    keys = jax.random.split(jax.random.key(0), draws)
    proposals = jax.jit(jax.vmap(one, (None, None, 0)))(jnp.asarray(logits), jnp.int32(0), keys)
    counts = np.bincount(np.asarray(proposals.token), minlength=size)
    common = exact * draws >= 5
    statistic = ((counts - exact * draws) ** 2 / (exact * draws))[common].sum()
    degrees = common.sum() - 1
    assert statistic < degrees + 4 * np.sqrt(2 * degrees) + 4
    assert counts[-2] == counts[-1] == 0
    softmax = np.exp(logits - 80.0, dtype=np.float64) / np.exp(logits - 80.0, dtype=np.float64).sum()
    np.testing.assert_allclose(proposals.probability, softmax[np.asarray(proposals.token)], rtol=1e-4)


def test_random_rules():
    """`random` is uniform over positions; `random_topk` breaks near-ties and nothing more."""
    keys = jax.random.split(jax.random.key(0), (4000, 8))
    log_p = jnp.log(jnp.array([0.5, 0.3, 0.2]))

    def first(rule, tokens):
        confidence = jax.vmap(jax.vmap(rule, (None, 0, None, 0)), (None, None, None, 0))(log_p, tokens, 0, keys)
        return np.bincount(np.asarray(confidence.argmax(axis=1)), minlength=8) / 4000

    assert np.abs(first(rules.Random().order, jnp.zeros(8, int)) - 1 / 8).max() < 0.03
    tied = first(rules.RandomTopk().order, jnp.array([0, 0, 1, 1, 1, 2, 2, 2]))
    assert tied[2:].sum() == 0
    assert 0.4 < tied[0] < 0.6


def test_a_new_prompt_within_a_bucket_compiles_nothing(twin):
    _, model = twin
    config = q.SamplerConfig(gen_length=10, block_length=5, steps=10)
    q.generate(model, [[1, 2, 3]], config)
    before = q.compilations()
    for prompt in ([4, 5, 6], [], [7] * 16):
        q.generate(model, [prompt], config)
    q.generate(model, [[1]], dataclasses.replace(config, steps=4))
    assert q.compilations() == before
    q.generate(model, [[7] * 17], config)
    assert q.compilations() == before + 1


@given(st.integers(0, 5000))
def test_buckets_are_few_and_near(length):
    assert length <= bucket(length) <= max(16, length + 15, length * 1.25)
    assert len({bucket(n) for n in range(1, 4097)}) < 40


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"gen_length": 30, "block_length": 8}, "gen_length 30 is not a multiple of block_length 8; try 32"),
        ({"gen_length": 32, "block_length": 8, "steps": 6}, "steps 6 is not a multiple of the 4 blocks"),
        ({"gen_length": 0}, "gen_length must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"remasking": "best"}, "remasking 'best' is unknown"),
        ({"mask_token_id": 99}, "mask_token_id 99 is outside"),
        ({"forbid": (99,)}, "forbid 99 is outside"),
        ({"threshold": 0.5, "factor": 1.0}, "threshold and factor both say how many"),
        ({"top_p": 0.5}, "top_p chooses what to draw from; it needs a temperature"),
        ({"top_p": 1.5, "temperature": 1.0}, "top_p must be above 0 and at most 1"),
        ({"top_k": 99, "temperature": 1.0}, "top_k 99 is more than the vocabulary"),
        ({"parallel_blocks": True}, "parallel_blocks needs visibility block_bias"),
        (
            {"parallel_blocks": True, "visibility": "block_bias", "repetition_penalty": 1.2},
            "cannot know what others repeat",
        ),
        ({"cache": "all"}, "cache 'all' is unknown; choose one of none, prefix, dual"),
        ({"eos": "never"}, "the model names none, set eos_token_ids"),
        ({"eos": "soon"}, "eos 'soon' is unknown"),
        ({"revise": -1}, "revise must be at least 0"),
        ({"revise": 2**40}, "revise must be at most 2147483647"),
        ({"steps": 2**40}, "steps must be at most 2147483647"),
        ({"temperature": 1e39}, r"temperature must be 0 or more \(1e-06 to 1e\+06\), not 1e\+39"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"entropy_bound": -1.0}, "entropy_bound must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(twin, options, part):
    _, model = twin
    with pytest.raises(q.InputError, match=part):
        q.generate(model, [[1]], q.SamplerConfig(**options))


def test_prompt_ids_out_of_range_are_refused(twin):
    _, model = twin
    with pytest.raises(q.InputError, match="rows of token ids"):
        q.generate(model, [1, 2, 3], q.SamplerConfig(gen_length=8, steps=8))
    for wrong in (V, -1, 2**32 + 5):
        with pytest.raises(q.InputError, match=f"token id {wrong} is outside"):
            q.generate(model, [[1, wrong]], q.SamplerConfig(gen_length=8, steps=8))
    for rows in ([[1.5, 2]], [["a"]], [[None, 3]]):
        with pytest.raises(q.InputError, match="whole numbers, not of"):
            q.generate(model, rows, q.SamplerConfig(gen_length=8, steps=8))
