"""Autoregression is a block length of 1 with shift: token for token what transformers' greedy `generate` writes."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import refuses
from flax import nnx
from torch_twins import save_torch
from transformers import AutoConfig, AutoModelForCausalLM

import qwen3llada_jax as q

V, MASK = 61, 60
PROMPTS = [[7, 3, 19], [5], [12, 30, 41, 2, 8, 55, 23, 1, 17], [44] * 6]
GEN = 12
OF = {
    "qwen3": {"head_dim": 16},
    "qwen2": {},
    "llama": {"attention_bias": True},
}


def causal(model_type):
    """A tiny model as transformers makes it, causal, with every weight away from its initial value."""
    config = AutoConfig.for_model(
        model_type, vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=model_type == "llama", max_position_embeddings=64,
        rms_norm_eps=1e-5, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        **OF[model_type],
    )  # fmt: skip
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def opened(reference, folder):
    model = q.load(save_torch(reference, folder))
    model.config = dataclasses.replace(model.config, mask_token_id=MASK, live_vocab_size=MASK)
    return model


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    reference = causal("qwen3")
    return reference, opened(reference, tmp_path_factory.mktemp("ar"))


def greedy(reference, prompt, many=GEN, eos=None):
    """What transformers writes; the mask token apart, which we never write."""
    tokens = torch.tensor([prompt])
    written = reference.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=many, do_sample=False, suppress_tokens=[MASK],
        eos_token_id=eos, pad_token_id=0,
    )  # fmt: skip
    return written[0, len(prompt) :].tolist()


def assert_greedy(result, reference):
    assert result.answers() == [greedy(reference, prompt) for prompt in PROMPTS]
    assert result.nfe.tolist() == [GEN] * len(PROMPTS)
    assert result.passes == GEN
    for row, prompt in enumerate(PROMPTS):
        assert result.written_at[row, len(prompt) : len(prompt) + GEN].tolist() == list(range(GEN))


@pytest.mark.parametrize("cache", [None, pytest.param("none", marks=pytest.mark.slow)])
def test_a_model_opened_as_it_is_writes_what_transformers_writes(twin, cache):
    reference, model = twin
    assert model.config.is_autoregressive
    config = q.SamplerConfig(gen_length=GEN, cache=cache, stop_at_eos=False)
    assert config.for_model(model.config).cache == (cache or "prefix")
    assert q.is_exact(config, model)
    assert_greedy(q.generate(model, PROMPTS, config), reference)


@pytest.mark.parametrize("model_type", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_other_architectures_do_too(model_type, tmp_path):
    reference = causal(model_type)
    model = opened(reference, tmp_path)
    assert_greedy(q.generate(model, PROMPTS, q.SamplerConfig(gen_length=GEN, stop_at_eos=False)), reference)


@pytest.mark.slow
def test_an_engine_does_too_and_a_row_ends_at_its_eos(twin):
    reference, model = twin
    free = [greedy(reference, prompt, 16) for prompt in PROMPTS]
    eos = free[0][4]
    engine = q.Engine(model, q.SamplerConfig(gen_length=16, eos_token_ids=(eos,)), slots=3, length=48)
    waiting, rows, found = list(range(len(PROMPTS))), {}, {}
    while len(found) < len(PROMPTS):
        for slot in engine.free[: len(waiting)]:
            rows[slot] = waiting.pop(0)
            engine.admit(slot, PROMPTS[rows[slot]])
        engine.advance()
        for done in engine.harvest():
            found[rows[done.slot]] = done.result
    for row, prompt in enumerate(PROMPTS):
        stopped = greedy(reference, prompt, 16, eos)
        [answer] = found[row].answers()
        assert answer == stopped + [eos] * (16 - len(stopped))
        assert int(found[row].nfe[0]) == len(stopped)


def test_an_empty_prompt_begins_with_what_the_mask_token_predicts(twin):
    reference, model = twin
    [answer] = q.generate(model, [[]], q.SamplerConfig(gen_length=GEN, stop_at_eos=False)).answers()
    with torch.no_grad():
        first = reference(torch.tensor([[MASK]])).logits[0, 0]
    assert answer[0] == int(first[:MASK].argmax())
    assert answer[1:] == greedy(reference, answer[:1], GEN - 1)


@pytest.mark.slow
def test_longer_blocks_are_allowed(twin):
    _, model = twin
    blocks = q.SamplerConfig(gen_length=GEN, block_length=4, steps=6, stop_at_eos=False)
    result = q.generate(model, PROMPTS, blocks)
    assert (np.array([len(answer) for answer in result.answers()]) == GEN).all()
    full = q.generate(model, PROMPTS, q.SamplerConfig(gen_length=GEN, block_length=6, visibility="full"))
    assert full.nfe.tolist() == [GEN] * len(PROMPTS)


def test_no_mask_token_is_needed_where_none_is_seen(twin):
    _, model = twin
    nameless = nnx.merge(*nnx.split(model))
    nameless.config = dataclasses.replace(model.config, mask_token_id=None)
    settings = q.SamplerConfig(gen_length=GEN)
    assert q.generate(nameless, PROMPTS, settings).answers() == q.generate(model, PROMPTS, settings).answers()
    for sees in ({"block_length": 4}, {"visibility": "full", "block_length": 4}):
        refuses(lambda s=sees: q.SamplerConfig(gen_length=8, **s).for_model(nameless.config), "names no mask token")
    full = dataclasses.replace(nameless.config, live_vocab_size=V)
    refuses(lambda: settings.for_model(full), "names no mask token")
