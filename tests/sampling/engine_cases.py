"""Engines of every kind, each over a tiny random model whose confidences are well spread."""

import dataclasses
import functools

import numpy as np
import pytest
from flax import nnx

import qwen3llada_jax as q

V, MASK = 62, 61
PLAIN = q.SamplerConfig(gen_length=8, block_length=4, eos_token_ids=())
START = {"visibility": "block_causal", "block_origin": "start", "block_length": 4}
CAUSAL = {"visibility": "block_causal", "causal_context": True, "block_length": 4}
ONE = {**START, "shift": True, "block_length": 1}

# name: (facts of the model, settings)
KINDS = {
    "full": ({}, {"threshold": 0.4}),
    "revising": ({}, {"revise": 2}),
    "editing": ({}, {"edit_above": 0.3, "threshold": 0.3}),
    "narrowed": ({}, {"wide_in": 0.2, "narrow_out": 0.9}),
    "in parts": ({}, {"sub_block_length": 2, "finish_below": 0.5}),
    "bias": ({"visibility": "block_bias", "block_length": 4}, {"cfg_scale": 1.0}),
    "blocks": ({"visibility": "block_causal", "block_length": 4}, {"threshold": 0.3}),
    "aligned": ({**START, "block_origin": "aligned"}, {"threshold": 0.3}),
    "start": (START, {"threshold": 0.3}),
    "start, shifted": ({**START, "shift": True}, {"threshold": 0.3}),
    "start, guided": (START, {"cfg_scale": 0.7}),
    "causal": (CAUSAL, {"threshold": 0.3}),
    "causal, shifted": ({**CAUSAL, "shift": True}, {"threshold": 0.3}),
    "autoregressive": (ONE, {"block_length": 1}),
    "speculating": ({**CAUSAL, "shift": True}, {"speculate": True, "temperature": 0.5}),
}


def some(kinds, *quick):
    """Cases of a test: a few of these kinds while one works, the others in `make soak`."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.soak) for kind in kinds]


@functools.cache
def model_of(kind, seed=0):
    config = q.ModelConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.4, mask_token_id=MASK,
        live_vocab_size=V - 3, tie_word_embeddings=False, **KINDS[kind][0],
    )  # fmt: skip
    return q.Qwen3LLaDA(config, rngs=nnx.Rngs(seed))


def config_of(kind, **options):
    return dataclasses.replace(PLAIN, **{**KINDS[kind][1], **options})


def assert_same_text(result, expected):
    """Of one row each: the answer, the passes, and in which of them each token was written."""
    assert result.answers() == expected.answers()
    assert result.nfe.tolist() == expected.nfe.tolist()
    places = expected.places[expected.places < expected.tokens.shape[1]]
    np.testing.assert_array_equal(result.written_at[0, places], expected.written_at[0, places])
