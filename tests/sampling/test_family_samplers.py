"""Greedy sampling with shift, and with blocks counted from elsewhere, against the published samplers that have it.

Every row of every batch: the same tokens as an independent port in plain PyTorch (torch_families.py), in as many
passes, with a cache, without one, and in an engine.
"""

import dataclasses
import itertools
import random

import jax.numpy as jnp
import pytest
import torch_families as published
from conftest import trained
from torch_twins import wide_twin

import qwen3llada_jax as q

V, MASK = 61, 60
S, GEN = 4, 10  # a last block that ends behind the answer, and is written whole
MARGIN = 2e-5  # of the port's closest decision: far above what float32 rounds away here


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    with wide_twin(tmp_path_factory.mktemp("twin"), 5, V) as both:
        yield both


def drawn(lengths, seed):
    """Prompts of these lengths."""
    draw = random.Random(repr(seed))
    return [[draw.randrange(MASK) for _ in range(length)] for length in lengths]


def clear(port, lengths, seed, **options):
    """Prompts of these lengths, and (answer, passes) of each by the port, none of them near a tie."""
    found = []
    for length in lengths:
        for attempt in range(20):
            [prompt] = drawn([length], (seed, length, attempt))
            answer, passes, margin = port(prompt, **options)
            if margin > MARGIN:
                found.append((prompt, answer, passes))
                break
        else:
            raise AssertionError(f"20 prompts of {length} tokens, each near a tie")
    return found


def assert_written(result, found, what):
    for row, (prompt, answer, passes) in enumerate(found):
        assert result.answers()[row] == answer, f"{what}, prompt {prompt}"
        assert int(result.nfe[row]) == passes, f"{what}, prompt {prompt}"
        assert result.tokens[row, : len(prompt) + len(answer)].tolist() == prompt + answer


def in_an_engine(model, config, found, slots=3):
    """The same requests, a few at a time."""
    engine = q.Engine(model, config, slots=slots, length=48)
    waiting, results = list(enumerate(found)), {}
    rows = {}
    while waiting or len(engine.free) < slots:
        for slot in engine.free[: len(waiting)]:
            number, (prompt, *_) = waiting.pop(0)
            engine.admit(slot, prompt, config)
            rows[slot] = number
        engine.advance()
        for done in engine.harvest():
            assert done.error is None
            results[rows[done.slot]] = done.result
    for number, one in enumerate(found):
        assert_written(results[number], [one], f"engine, {config}")


# ---- SDAR


SDAR = {"visibility": "block_causal", "block_length": S, "block_origin": "start"}
REMAINDERS = (1, 6, 7, 8, 13)  # modulo a block of 4: each, and a prompt shorter than a block
STATIC = [{"steps": n} for n in (1, 2, 3, 4)]
DYNAMIC = [{"steps": n, "dynamic": level} for n, level in itertools.product((4, 2), (0.3, 0.5, 0.8))]


@pytest.mark.parametrize("cache", ["prefix", pytest.param("none", marks=pytest.mark.soak)])
@pytest.mark.parametrize("rules", [STATIC, pytest.param(DYNAMIC, marks=pytest.mark.slow)], ids=["static", "dynamic"])
def test_sdar(twin, rules, cache):
    reference, model = twin
    model = trained(model, MASK, **SDAR)
    for rule in rules:
        found = clear(
            lambda prompt, rule=rule: published.sdar(
                reference, prompt, GEN, S, rule["steps"], MASK, [MASK], rule.get("dynamic")
            ),
            REMAINDERS,
            rule,
        )
        config = q.SamplerConfig(gen_length=GEN, cache=cache, stop_at_eos=False, **{**rule, "steps": rule["steps"] * 3})
        result = q.generate(model, [prompt for prompt, *_ in found], config)
        assert_written(result, found, config)
        assert result.places.shape == (len(found), GEN)
        if rule == rules[-1] and cache == "prefix" and rules is DYNAMIC:
            in_an_engine(model, config, found)


# ---- dllm's BD3LM


@q.rule
class Rounded:
    """Under dllm's linear schedule: what is masked over the passes left, rounded."""

    def commit(self, is_masked, step, steps):
        return jnp.round(is_masked.sum() / jnp.maximum(steps - step, 1))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["prefix", pytest.param("none", marks=pytest.mark.soak)])
@pytest.mark.parametrize("right_shift", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_bd3lm(twin, right_shift, cache):
    reference, model = twin
    model = trained(model, MASK, visibility="block_causal", block_length=8, block_origin="aligned", shift=right_shift)
    for steps, seed in itertools.product((8, 4, 3, 1), range(2)):
        for attempt in range(20):
            prompts = drawn((1, 7, 16, 11), (steps, seed, attempt))
            answers, passes, margins = published.bd3lm(
                reference, prompts, 16, 8, steps, MASK, [MASK], pad=3, right_shift=right_shift
            )
            if min(margins) > MARGIN:
                break
        else:
            raise AssertionError("20 batches near a tie")
        config = q.SamplerConfig(gen_length=16, steps=2 * steps, commit=Rounded(), cache=cache, stop_at_eos=False)
        found = [(prompt, answer, passes) for prompt, answer in zip(prompts, answers, strict=True)]
        assert_written(q.generate(model, prompts, config), found, config)
        if 8 % steps == 0 and cache == "prefix" and not right_shift and seed == 0:  # there it is the even share
            shared = dataclasses.replace(config, commit=None)
            assert q.generate(model, prompts, shared).answers() == answers


# ---- Dream


@pytest.mark.slow
@pytest.mark.parametrize("order", ["maskgit_plus", "entropy", pytest.param("topk_margin", marks=pytest.mark.soak)])
def test_dream(twin, order):
    reference, model = twin
    model = trained(model, MASK, shift=True)
    for steps in (1, 2, 5, 7, 8, 11, 16, 40):
        found = clear(
            lambda prompt, steps=steps: published.dream(reference, prompt, 16, steps, order, MASK, [MASK]),
            (1, 9, 14),
            (order, steps),
        )
        ours = {"maskgit_plus": "low_confidence", "topk_margin": "margin", "entropy": "entropy"}[order]
        config = q.SamplerConfig(
            gen_length=16, block_length=16, steps=steps, timesteps=1e-3, remasking=ours, stop_at_eos=False
        )
        assert_written(q.generate(model, [prompt for prompt, *_ in found], config), found, config)


# ---- Fast-dLLM v2


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["prefix", pytest.param("none", marks=pytest.mark.soak)])
def test_fast_dllm_v2(twin, cache):
    reference, model = twin
    model = trained(model, MASK, visibility="block_causal", block_length=8, block_origin="start", shift=True)
    for part, threshold in itertools.product((8, 4, 2), (0.3, 0.6, 0.9)):
        found = clear(
            lambda prompt, part=part, threshold=threshold: published.fast_dllm_v2(
                reference, prompt, 18, 8, part, threshold, MASK, [MASK]
            ),
            (3, 8, 15, 21),
            (part, threshold),
        )
        config = q.SamplerConfig(
            gen_length=18, threshold=threshold, sub_block_length=part, cache=cache, stop_at_eos=False
        )
        assert_written(q.generate(model, [prompt for prompt, *_ in found], config), found, config)
        if (part, threshold) == (4, 0.6) and cache == "prefix":
            in_an_engine(model, config, found)
