"""Shift, and blocks counted from elsewhere, with every other option: against the rules in plain PyTorch.

The model is one with wide weights; what it was trained with is said. Every row's tokens, the pass that wrote each, and
its forward passes are those of torch_sampler.py, which knows no cache, no batch and no program.
"""

import dataclasses
import random

import numpy as np
import pytest
import torch_sampler
from conftest import refuses, trained
from torch_twins import wide_twin

import qwen3llada_jax as q
from qwen3llada_jax.sampling.config import origin_of
from qwen3llada_jax.sampling.limits import check_positions
from qwen3llada_jax.writing import completions
from qwen3llada_jax.writing.requests import Request

V, MASK = 61, 60
EOS = (7, 11, 19)
GEN = 10
MARGIN = 2e-5

SDAR = {"visibility": "block_causal", "block_length": 4, "block_origin": "start"}
ALIGNED = {"visibility": "block_causal", "block_length": 5, "block_origin": "aligned"}
SHIFT = {"shift": True}


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    with wide_twin(tmp_path_factory.mktemp("twin"), 4, V) as both:
        yield both


def references(reference, facts, options, texts):
    """The first of each list of candidate texts that brings the reference to no near-tie, and what it writes."""
    asked = {"visibility": "full", **facts, **options}
    asked["origin"] = asked.pop("block_origin", "prompt")
    for name in ("cache", "gen_length"):
        asked.pop(name, None)
    if asked["origin"] == "start" and asked.get("steps"):
        asked["steps"] //= -(-GEN // asked["block_length"])
    found = []
    for candidates in texts:
        for text in candidates:
            written = torch_sampler.sample(reference, text, mask_token_id=MASK, **asked)
            if written.margin > MARGIN:
                found.append((text, written))
                break
        else:
            raise AssertionError("every candidate is near a tie")
    return found


def continuations(lengths, facts, seed):
    """Prompts of these lengths and their holes; of blocks counted from position 0 whole ones."""
    draw = random.Random(repr(seed))
    for length in lengths:
        end = length + GEN
        if facts.get("block_origin") == "start":
            end = -(-end // facts["block_length"]) * facts["block_length"]
        yield [[draw.randrange(MASK) for _ in range(length)] + [None] * (end - length) for _ in range(20)]


def assert_equal(got, found, what, gen_length=None):
    for row, (text, written) in enumerate(found):
        L = len(text) if gen_length is None else text.index(None) + gen_length
        said = f"{what}\nprompt {[t for t in text if t is not None]}"
        assert got.tokens[row, :L].tolist() == written.tokens[:L], said
        assert got.written_at[row, :L].tolist() == written.written_at[:L], said
        assert int(got.nfe[row]) == written.nfe, said
        assert got.confidence[row, :L].tolist() == pytest.approx(written.confidence[:L], abs=1e-4), said


OPTIONS = [
    (SDAR, {"cache": "prefix", "cfg_scale": 1.5, "revise": 2, "steps": 6, "eos_token_ids": EOS}),
    (SDAR | SHIFT, {"cache": "prefix", "threshold": 0.5, "repetition_penalty": 1.4, "eos_token_ids": EOS}),
    ({"visibility": "block_bias", "block_length": 5} | SHIFT, {"cache": "prefix", "factor": 1.1, "stop_at_eos": False}),
    (SHIFT, {"block_length": 5, "cfg_scale": 1.0, "remasking": "margin", "stop_at_eos": False}),
]
MORE = [
    (SDAR, {"cache": "none", "eos": "last", "eos_token_ids": EOS, "remasking": "entropy"}),
    (SDAR | SHIFT, {"cache": "prefix", "cfg_scale": 1.5, "min_length": 4, "eos_token_ids": EOS, "steps": 3}),
    (ALIGNED | SHIFT, {"cache": "prefix", "entropy_bound": 1.5, "cfg_scale": 1.5, "eos_token_ids": EOS}),
    (ALIGNED, {"cache": "prefix", "steps": 4, "revise": 2, "remasking": "entropy", "stop_at_eos": False}),
    ({"visibility": "block_causal", "block_length": 5} | SHIFT, {"cache": "prefix", "steps": 6, "eos_token_ids": EOS}),
    ({"visibility": "block_causal", "block_length": 1, "block_origin": "start"} | SHIFT,
     {"cache": "prefix", "cfg_scale": 1.5, "repetition_penalty": 1.3, "eos_token_ids": EOS}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "options"), [*OPTIONS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)], ids=str
)
def test_every_option_under_shift_and_origin(twin, facts, options):
    reference, model = twin
    found = references(reference, facts, options, continuations((6, 1, 9, 8), facts, options))
    prompts = [text[: text.index(None)] for text, _ in found]
    config = q.SamplerConfig(gen_length=GEN, **options)
    assert_equal(q.generate(trained(model, MASK, **facts), prompts, config), found, options, GEN)


def holes(seed):
    """Texts with holes alone, in runs, at both ends."""
    draw = random.Random(repr(seed))
    for length, many in ((14, 5), (9, 2), (21, 13)):
        candidates = [[draw.randrange(MASK) for _ in range(length)] for _ in range(20)]
        for text in candidates:
            for i in draw.sample(range(length), many):
                text[i] = None
        yield candidates


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "options"),
    [
        (SDAR | SHIFT, {"cfg_scale": 1.0}),
        pytest.param(SDAR, {"threshold": 0.4}, marks=pytest.mark.slow),
        pytest.param(ALIGNED, {"remasking": "entropy"}, marks=pytest.mark.slow),
        pytest.param(ALIGNED | SHIFT, {"threshold": 0.4}, marks=pytest.mark.slow),
        pytest.param(SHIFT, {"block_length": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_holes_under_shift_and_origin(twin, facts, options):
    reference, model = twin
    model = trained(model, MASK, **facts)
    options = {"stop_at_eos": False, **options}
    found = references(reference, facts, options, holes(options))
    config, texts = q.SamplerConfig(**options), [text for text, _ in found]
    got = q.infill(model, texts, config)
    assert_equal(got, found, options)
    for text, answer, written in zip(texts, got.answers(), got.tokens, strict=True):
        assert answer == [int(written[i]) for i, token in enumerate(text) if token is None]
    if facts == SDAR | SHIFT:
        engine = q.Engine(model, dataclasses.replace(config, cache="none"), slots=2, length=32)
        for text, answer in zip(texts, got.answers(), strict=True):
            engine.admit(0, text, config)
            engine.advance()
            [done] = engine.harvest()
            assert done.result.answers() == [answer]


@pytest.mark.slow
def test_watching_shows_the_answer_alone(twin):
    model, prompts = trained(twin[1], MASK, **SDAR), [[1, 2, 3, 4, 5], [6, 7, 8, 9]]
    config = q.SamplerConfig(gen_length=6, stop_at_eos=False)
    whole = q.generate(model, prompts, config)
    *_, last = canvases = list(q.watch(model, prompts, config))
    assert [int(canvas.is_masked.sum()) for canvas in canvases[:1]] == [12]
    assert q.finish(last).answers() == whole.answers() == [row[5:11].tolist() if i == 0 else row[4:10].tolist()
                                                            for i, row in enumerate(whole.tokens)]  # fmt: skip
    assert whole.tokens.shape == (2, 11)
    assert whole.tokens[1, 10] == MASK
    assert whole.confidence[1, 10] == 0


@pytest.mark.slow
def test_an_end_in_the_prompts_last_block_ends_nothing(twin):
    model = trained(twin[1], MASK, **SDAR)
    config = q.SamplerConfig(gen_length=6, eos_token_ids=(7,), eos="never")
    result = q.generate(model, [[1, 2, 3, 4, 5, 7], [1] * 8], config)
    assert result.nfe.tolist() == [6, 8]
    assert not any(7 in answer for answer in result.answers())


def test_asking_another_visibility_counts_blocks_from_the_prompt(twin):
    config = trained(twin[1], MASK, **SDAR).config
    assert origin_of(q.SamplerConfig(), config) == "start"
    assert origin_of(q.SamplerConfig(visibility="block_causal", block_length=2), config) == "start"
    assert origin_of(q.SamplerConfig(visibility="full"), config) == "prompt"
    full = dataclasses.replace(config, visibility="full", block_origin="prompt", shift=True)
    asked = q.SamplerConfig(visibility="block_causal").for_model(full)
    assert (asked.structure(full).block_origin, asked.structure(full).shift) == ("prompt", True)
    assert q.is_exact(asked, full)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_an_approximate_cache_is_exact_where_a_block_takes_one_pass(twin, cache):
    model, prompts = trained(twin[1], MASK, **SHIFT), [[5, 6, 7], [8] * 9, []]
    config = q.SamplerConfig(gen_length=12, block_length=4, steps=3, cache=cache, stop_at_eos=False)
    got, whole = (q.generate(model, prompts, dataclasses.replace(config, cache=c)) for c in (cache, "none"))
    assert got.answers() == whole.answers()
    several = q.generate(model, prompts, dataclasses.replace(config, steps=12))
    assert (several.nfe == 12).all()
    assert np.array_equal(several.written_at >= 0, whole.written_at >= 0)


def test_what_cannot_be_is_refused(twin):
    bias = trained(twin[1], MASK, visibility="block_bias", block_length=4, shift=True).config
    refuses(lambda: q.SamplerConfig(parallel_blocks=True).for_model(bias), "parallel_blocks", "block before")
    sdar = trained(twin[1], MASK, **SDAR)
    refuses(lambda: q.SamplerConfig(sub_block_length=5).for_model(sdar.config), "sub_block_length 5", "block_length 4")
    refuses(lambda: q.SamplerConfig(gen_length=10, steps=4).for_model(sdar.config), "steps 4", "3 blocks")
    refuses(lambda: q.SamplerConfig(dynamic=0.5, threshold=0.5), "threshold and dynamic both say")
    refuses(lambda: q.SamplerConfig(timesteps=0), "timesteps", "above 0")
    short = dataclasses.replace(sdar.config, max_position_embeddings=15)
    check_positions(short, [2], 10, whole_blocks=4)
    sdar.config = short
    refuses(lambda: q.generate(sdar, [[1] * 5], q.SamplerConfig(gen_length=8)), "whole blocks of 4", "15 positions")
    asked = [Request(0, 0, "prompt", "", (1,) * 5)]  # as programs ask, before weights are read
    settings = q.SamplerConfig(gen_length=8, mask_token_id=MASK)
    refuses(lambda: completions.check(asked, settings, short, 1), "prompt 1", "whole blocks of 4", "15 positions")
