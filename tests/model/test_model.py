"""The model against transformers' Qwen3, whole and part by part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import rule
from torch_twins import logits_of, save_torch, torch_model
from transformers import Qwen3Config, Qwen3ForCausalLM

import qwen3llada_jax as q
from qwen3llada_jax.model.config import PRESETS
from qwen3llada_jax.model.layers import rms_norm
from qwen3llada_jax.model.model import parameter_count
from qwen3llada_jax.model.rope import rope_tables

ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-tuned": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 2,
        "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def _case(number: int) -> dict:
    """Configuration `number` of the grid: the listed features in all, the rest by a seeded draw."""
    draw = np.random.default_rng(number)
    ropes = list(ROPES)
    kv_heads = int(draw.choice([1, 2]))
    return {
        "settings": {
            "tie_word_embeddings": bool(number % 2),
            "attention_bias": bool(number // 2 % 2),
            "num_key_value_heads": kv_heads,
            "num_attention_heads": kv_heads * [1, 2, 4][number % 3],
            "head_dim": int(draw.choice([8, 12, 24])),
            "hidden_size": int(draw.choice([32, 40])),
            "intermediate_size": int(draw.choice([36, 64])),
            "rms_norm_eps": float(draw.choice([1e-6, 1e-4])),
            "rope_parameters": {**ROPES[ropes[number % len(ropes)]], "rope_theta": [1e4, 1e6][number // 3 % 2]},
            "max_position_embeddings": 512,
        },
        "length": [1, 2, 7, 64, 300, 1024][(number // 2 + number // 6) % 6],
        "visibility": ["full", "padding", "block_bias", "block_causal"][number % 4],
    }


@pytest.mark.parametrize("number", [*range(24), *(pytest.param(n, marks=pytest.mark.slow) for n in range(24, 36))])
def test_logits_equal_transformers(number, tmp_path):
    case = _case(number)
    reference = torch_model(number, **case["settings"])
    model = q.load(save_torch(reference, tmp_path))
    B, L = 2, case["length"]
    draw = np.random.default_rng(number)
    tokens = draw.integers(0, 211, (B, L))
    prompts, block = np.minimum([1, 5], L), 3
    mask, allowed, counted = None, None, np.ones((B, L), bool)
    if case["visibility"] == "padding":
        lengths = np.array([L, max(1, L // 2)])
        counted = np.arange(L)[None] < lengths[:, None]
        mask = q.Mask(is_real=jnp.asarray(counted))
        allowed = np.repeat(counted[:, None], L, axis=1)
    elif case["visibility"] != "full":
        mask = q.Mask(case["visibility"], block, prompt_length=jnp.asarray(prompts))
        allowed = np.array(
            [[[rule(case["visibility"], i, j, p, block) for j in range(L)] for i in range(L)] for p in prompts]
        )
    expected = logits_of(reference, tokens, allowed)[counted]
    got = np.asarray(jax.jit(lambda m, t, k: m(t, k))(model, tokens, mask))[counted]
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


def test_grid_holds_every_feature():
    cases = [_case(n) for n in range(36)]
    settings = [c["settings"] for c in cases]
    assert {s["rope_parameters"]["rope_type"] for s in settings} == {"default", "linear", "dynamic", "yarn", "llama3"}
    assert {s["rope_parameters"]["rope_theta"] for s in settings} == {1e4, 1e6}
    assert {s["num_attention_heads"] // s["num_key_value_heads"] for s in settings} == {1, 2, 4}
    assert {(s["tie_word_embeddings"], s["attention_bias"]) for s in settings} == {
        (a, b) for a in (0, 1) for b in (0, 1)
    }
    assert {c["length"] for c in cases} == {1, 2, 7, 64, 300, 1024}
    assert all(s["head_dim"] * s["num_attention_heads"] != s["hidden_size"] for s in settings)
    assert any(c["length"] == 1024 and c["settings"]["rope_parameters"]["rope_type"] == "dynamic" for c in cases)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    reference = torch_model(5, attention_bias=True)
    return reference, q.load(save_torch(reference, tmp_path_factory.mktemp("twin")))


def _close(ours, theirs: torch.Tensor) -> None:
    expected = theirs.detach().numpy()
    assert np.abs(np.asarray(ours) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_rms_norm_equals_transformers(twin):
    reference, model = twin
    x = np.random.default_rng(0).normal(size=(2, 9, 48)).astype(np.float32)
    _close(rms_norm(x, model.norm[...], 1e-5), reference.model.norm(torch.tensor(x)))


@pytest.mark.parametrize("kind", ROPES)
def test_rope_equals_transformers(kind):
    rope = {**ROPES[kind], "rope_theta": 1e5}
    reference = torch_model(0, rope_parameters=rope, max_position_embeddings=256).model.rotary_emb
    positions = np.array([[0, 1, 5, 255, 256, 257, 258, 700]])
    cos, sin = reference(torch.zeros(1), torch.tensor(positions))
    config = q.ModelConfig.from_hf(reference.config.to_dict())
    our_cos, our_sin = rope_tables(config, jnp.asarray(positions))
    half = config.head_dim // 2
    # cos of an angle a is off by a · 2⁻²⁴ at least; angles here reach 700
    np.testing.assert_allclose(our_cos, cos.numpy()[..., :half], atol=2e-4)
    np.testing.assert_allclose(our_sin, sin.numpy()[..., :half], atol=2e-4)


def test_sub_modules_equal_transformers(twin):
    reference, model = twin
    layer, theirs = jax.tree.map(lambda w: w[1], model.layers), reference.model.layers[1]
    x = np.random.default_rng(1).normal(size=(2, 9, 48)).astype(np.float32)
    positions = np.arange(9)[None]
    rope = rope_tables(model.config, jnp.asarray(positions))
    theirs_rope = reference.model.rotary_emb(torch.tensor(x), torch.tensor(positions))
    attended, _ = theirs.self_attn(torch.tensor(x), position_embeddings=theirs_rope, attention_mask=None)
    _close(layer.attend(jnp.asarray(x), rope, None, "xla"), attended)
    _close(layer.mlp(jnp.asarray(x)), theirs.mlp(torch.tensor(x)))
    out = theirs(torch.tensor(x), position_embeddings=theirs_rope)
    _close(layer(jnp.asarray(x), rope, None, "xla"), out[0] if isinstance(out, tuple) else out)
    _close(model.logits(jnp.asarray(x)), reference.lm_head(torch.tensor(x)))
    tokens = np.arange(12).reshape(2, 6)
    _close(model.hidden(jnp.asarray(tokens)), reference.model(torch.tensor(tokens)).last_hidden_state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "no mask",
        "dense",
        "dense for all",
        "full",
        "block_bias",
        "block_causal",
        "block_diffusion",
        "documents",
        "coordinates",
    ],
)
def test_hidden_states_of_some_positions_are_those_of_all(twin, kind):
    _, model = twin
    draw = np.random.default_rng(2)
    tokens, where = draw.integers(0, 200, (2, 12)), np.array([[3, 11, 4], [0, 0, 7]])
    real = jnp.arange(12) < jnp.array([[12], [9]])
    dense = jnp.asarray(draw.random((2, 12, 12)) < 0.6) | jnp.eye(12, dtype=bool)
    if kind == "no mask":
        mask = None
    elif kind.startswith("dense"):
        mask = dense[:1] if kind == "dense for all" else dense
    elif kind == "documents":
        documents = np.array([[0] * 5 + [1] * 7, [0] * 9 + [3] * 3])
        positions = np.array([[*range(5), *range(7)], [*range(12)]])
        mask = q.Mask("block_causal", 3, segment_ids=documents, positions=positions)
    elif kind == "coordinates":
        position, segment, block, until = (draw.integers(0, 3, (rows, 12)) for rows in (2, 2, 1, 2))
        mask = q.Coordinates(position, segment, block, until=until)
    else:
        block = {} if kind == "full" else {"block_length": 4, "prompt_length": jnp.array([2, 5])}
        mask = q.Mask(kind, is_real=real, **block)
    hidden = model.hidden(jnp.asarray(tokens), mask)
    some = model.hidden(jnp.asarray(tokens), mask, where=jnp.asarray(where))
    np.testing.assert_allclose(some, np.take_along_axis(np.asarray(hidden), where[..., None], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_error_is_within_torchs(tmp_path):
    ours, theirs = [], []
    for seed in range(4):
        shape = {"hidden_size": 64, "num_hidden_layers": 6}
        reference = torch_model(seed, **shape)
        folder = save_torch(reference, tmp_path / str(seed))
        tokens = np.random.default_rng(seed).integers(0, 211, (4, 128))
        exact = logits_of(reference, tokens)
        theirs.append(np.abs(logits_of(reference.to(torch.bfloat16), tokens) - exact))
        ours.append(np.abs(np.asarray(q.load(folder, "bfloat16")(tokens)) - exact))
    assert np.mean(np.square(ours)) <= np.mean(np.square(theirs))
    assert np.quantile(ours, 0.999) <= np.quantile(theirs, 0.999)
    assert np.mean([e.max() for e in ours]) <= np.mean([e.max() for e in theirs])


def test_compute_dtype_is_not_parameter_dtype(tmp_path):
    save_torch(torch_model(4), tmp_path)
    model = q.load(tmp_path, "float32", runtime=q.Runtime(dtype="bfloat16"))
    assert model.embed_tokens.dtype == jnp.float32
    assert model.hidden(jnp.ones((1, 4), jnp.int32)).dtype == jnp.bfloat16
    assert model(jnp.ones((1, 4), jnp.int32)).dtype == jnp.float32


def test_last_token_reaches_first_position(twin):
    _, model = twin
    tokens = np.arange(16)[None]
    flipped = tokens.copy()
    flipped[0, -1] = 99
    assert np.abs(np.asarray(model(tokens) - model(flipped)))[0, 0].max() > 1e-3


@pytest.mark.parametrize("visibility", ["block_bias", "block_causal"])
def test_a_flip_changes_exactly_what_the_rule_says(twin, visibility):
    """Depth lets influence travel: position i feels j when a path of seen positions leads there."""
    _, model = twin
    L, prompt, block = 17, 3, 4
    mask = q.Mask(visibility, block, prompt_length=jnp.array([prompt]))
    sees = np.array([[rule(visibility, i, j, prompt, block) for j in range(L)] for i in range(L)])
    feels = np.linalg.matrix_power(sees.astype(np.int64), 3) > 0
    run = jax.jit(lambda m, t: m(t, mask))
    tokens = np.arange(L)[None]
    before = np.asarray(run(model, tokens))
    for j in range(L):
        flipped = tokens.copy()
        flipped[0, j] = 99
        changed = (np.asarray(run(model, flipped)) != before)[0].any(axis=-1)
        np.testing.assert_array_equal(changed, feels[:, j], err_msg=f"flipping {j}")


def test_token_ids_out_of_range_are_refused(twin):
    _, model = twin
    for wrong in (211, -1):
        with pytest.raises(q.InputError, match=f"token id {wrong} "):
            model(np.array([[1, wrong]]))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(twin, remat):
    _, model = twin
    tokens = np.arange(8)[None]

    def gradient(name):
        model.runtime = dataclasses.replace(model.runtime, remat=name)
        return jax.grad(lambda m: (m(tokens) ** 2).mean())(model)

    plain, saved = (jax.tree.leaves(gradient(name)) for name in ("none", remat))
    model.runtime = dataclasses.replace(model.runtime, remat="none")
    for a, b in zip(plain, saved, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_parameter_counts_equal_transformers(name):
    config = PRESETS[name]
    with torch.device("meta"):
        theirs = Qwen3ForCausalLM(Qwen3Config(**config.to_hf()))
    assert parameter_count(config) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.soak
@pytest.mark.slow
def test_logits_equal_transformers_at_the_shape_of_qwen3_0_6b(tmp_path):
    config = PRESETS["qwen3-0.6b"].to_hf()
    torch.manual_seed(0)
    reference = Qwen3ForCausalLM._from_config(Qwen3Config(**config), attn_implementation="eager").eval()
    save_torch(reference, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 151_669, (1, 48))
    expected = logits_of(reference, tokens)
    del reference
    got = np.asarray(q.load(tmp_path, runtime=q.Runtime())(tokens))
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()
