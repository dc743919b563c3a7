"""Text before the block that is written, read from left to right: against plain PyTorch under dense masks.

The reference (torch_sampler.py) runs the whole text in every pass, under a mask that is spelled out for each block.
"""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import refuses, trained
from test_shift_and_origin import GEN, MASK, V, assert_equal, continuations, references
from torch_sampler import logits_of
from torch_twins import wide_twin

import qwen3llada_jax as q
from sample.comparing import quality

CAUSAL = {"visibility": "block_causal", "causal_context": True}
LENGTHS = (6, 1, 9, 8)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    with wide_twin(tmp_path_factory.mktemp("twin"), 4, V) as both:
        yield both


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        ({"block_length": 5, "shift": True}, {"steps": 6, "eos_token_ids": (7, 11, 19)}),
        pytest.param({"block_length": 4, "block_origin": "start"}, {"threshold": 0.5}, marks=pytest.mark.slow),
        pytest.param({"block_length": 5}, {"steps": 4, "remasking": "entropy"}, marks=pytest.mark.soak),
        pytest.param({"block_length": 4, "block_origin": "start", "shift": True}, {"cfg_scale": 1.5, "steps": 3},
                     marks=pytest.mark.soak),
        pytest.param({"block_length": 5, "shift": True}, {"cfg_scale": 1.0, "threshold": 0.5}, marks=pytest.mark.soak),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("cache", ["prefix", pytest.param("none", marks=pytest.mark.soak)])
def test_texts_are_those_of_dense_masks(twin, facts, options, cache):
    reference, model = twin
    facts, options = CAUSAL | facts, {"stop_at_eos": bool(options.get("eos_token_ids")), **options}
    found = references(reference, facts, options, continuations(LENGTHS, facts, options))
    prompts = [text[: text.index(None)] for text, _ in found]
    model = trained(model, MASK, **facts)
    config = q.SamplerConfig(gen_length=GEN, cache=cache, **options)
    assert q.is_exact(config.for_model(model.config), model)
    assert_equal(q.generate(model, prompts, config), found, options, GEN)


@pytest.mark.soak
def test_an_engines_rows_come_and_go(twin):
    reference, model = twin
    facts, options = CAUSAL | {"block_length": 5, "shift": True}, {"cfg_scale": 1.0, "stop_at_eos": False}
    found = references(reference, facts, options, continuations(LENGTHS, facts, "engine"))
    config = q.SamplerConfig(gen_length=GEN, **options)
    engine = q.Engine(trained(model, MASK, **facts), config, slots=3, length=32)
    waiting, rows, done = list(range(len(found))), {}, {}
    while len(done) < len(found):
        for slot in engine.free[: len(waiting)]:
            rows[slot] = waiting.pop(0)
            text = found[rows[slot]][0]
            engine.admit(slot, text[: text.index(None)])
        engine.advance()
        done |= {rows[finished.slot]: finished.result for finished in engine.harvest()}
    for row, expected in enumerate(found):
        assert_equal(done[row], [expected], options, GEN)


@pytest.mark.slow
def test_holes_anywhere(twin):
    reference, model = twin
    facts, options = CAUSAL | {"block_length": 4, "shift": True}, {"stop_at_eos": False}
    draw = np.random.default_rng(5)
    texts = []
    for length, many in ((14, 5), (21, 13)):
        candidates = []
        for _ in range(20):
            text = draw.integers(0, MASK, length).tolist()
            for i in draw.choice(np.arange(1, length), many, replace=False):
                text[i] = None
            candidates.append(text)
        texts.append(candidates)
    found = references(reference, facts, options, texts)
    got = q.infill(trained(model, MASK, **facts), [text for text, _ in found], q.SamplerConfig(**options))
    assert_equal(got, found, options)


@pytest.mark.slow
def test_what_a_model_thinks_of_its_text_is_its_likelihood(twin):
    """With shift each written token's, from those before it alone; without, none can be asked in one pass."""
    reference, model = twin
    facts = CAUSAL | {"block_length": 5}
    settings = q.SamplerConfig(gen_length=GEN, stop_at_eos=False)
    shifted = trained(model, MASK, shift=True, **facts)
    prompts = [[5, 9, 2], [17]]
    result = q.generate(shifted, prompts, settings)
    found = quality.log_probability(shifted, result, settings)
    for row, (prompt, answer) in enumerate(zip(prompts, result.answers(), strict=True)):
        text = [*prompt, *answer]
        causal = torch.tensor(np.triu(np.full((len(text), len(text)), torch.finfo(torch.float32).min), 1)).float()
        log_p = logits_of(reference, text, causal[None, None], shift=True).log_softmax(-1)
        expected = [log_p[i, text[i]].item() for i in range(len(prompt), len(text))]
        assert found[row, len(prompt) : len(text)].tolist() == pytest.approx(expected, abs=1e-4)
        assert np.isnan(found[row, : len(prompt)]).all()
    straight = dataclasses.replace(shifted.config, shift=False)
    refuses(lambda: quality.check_likelihood(straight, settings), "causal_context", "shift", "answers")
