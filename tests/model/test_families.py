"""Every family's logits: against transformers where it has the layers, else against the formulas in plain torch."""

import jax
import numpy as np
import pytest
import torch
from family_folders import CASES, Case, base_of, llada_weights, save, torch_model
from torch_twins import logits_of

import qwen3llada_jax as q
from qwen3llada_jax.model.layers import rms_norm
from qwen3llada_jax.model.rope import rope_tables

LENGTHS = [1, 2, 7, 33, 64, 129, 300]


def rotated(x: torch.Tensor, theta: float) -> torch.Tensor:
    """RoFormer's rotation of [B, N, L, H], halves paired."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] / theta ** (torch.arange(half) / half)[None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def llada_attention(x: torch.Tensor, w: dict, n: int, case: Case, allowed: torch.Tensor) -> torch.Tensor:
    heads, kv_heads, at = case.config["n_heads"], case.config["n_kv_heads"], f"model.transformer.blocks.{n}."
    B, L, D = x.shape

    def split(name: str, count: int) -> torch.Tensor:
        return (x @ w[f"{at}{name}.weight"].T).view(B, L, count, D // heads).transpose(1, 2)

    theta = case.config["rope_theta"]
    query, key = rotated(split("q_proj", heads), theta), rotated(split("k_proj", kv_heads), theta)
    key, value = (y.repeat_interleave(heads // kv_heads, 1) for y in (key, split("v_proj", kv_heads)))
    scores = (query @ key.transpose(2, 3) / (D // heads) ** 0.5).masked_fill(~allowed[:, None], float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(B, L, D) @ w[f"{at}attn_out.weight"].T


def llada_mlp(x: torch.Tensor, w: dict, n: int) -> torch.Tensor:
    gate, up, down = (w[f"model.transformer.blocks.{n}.{name}.weight"] for name in ("ff_proj", "up_proj", "ff_out"))
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def llada_logits(case: Case, tokens: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    w, seen = llada_weights(case), torch.tensor(allowed)
    x = w["model.transformer.wte.weight"][torch.tensor(tokens)]
    for n in range(case.config["n_layers"]):
        at = f"model.transformer.blocks.{n}."
        x = x + llada_attention(normed(x, w[f"{at}attn_norm.weight"]), w, n, case, seen)
        x = x + llada_mlp(normed(x, w[f"{at}ff_norm.weight"]), w, n)
    head = "wte" if case.config["weight_tying"] else "ff_out"
    return (normed(x, w["model.transformer.ln_f.weight"]) @ w[f"model.transformer.{head}.weight"].T).numpy()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, q.Qwen3LLaDA]:
    parent = tmp_path_factory.mktemp("families")
    return {case.name: q.load(save(case, parent), **case.said) for case in CASES}


def _runs() -> list:
    """Each case at one length, at the longest (slow), and at the others (soak)."""
    runs = []
    for number, case in enumerate(CASES):
        for length in LENGTHS:
            kind = [pytest.mark.slow] if length == 300 else [pytest.mark.slow, pytest.mark.soak]
            marks = () if length == LENGTHS[number % len(LENGTHS)] else kind
            runs.append(pytest.param(case, length, marks=marks, id=f"{case.name}-{length}"))
    return runs


@pytest.mark.parametrize(("case", "length"), _runs())
def test_logits_are_the_familys(models, case, length):
    """Under its own visibility, of which nothing is said here, with a row that ends in padding."""
    draw = np.random.default_rng(length)
    tokens = draw.integers(0, 203, (2, length))
    real = np.arange(length)[None] < np.array([[length], [max(1, length * 2 // 3)]])
    i, j = np.arange(length)[:, None], np.arange(length)[None]
    seen = np.ones((length, length), bool) if case.block is None else j // case.block <= i // case.block
    allowed = seen[None] & real[:, None]
    if base_of(case):
        expected = logits_of(torch_model(case), tokens, allowed)[real]
    else:
        expected = llada_logits(case, tokens, allowed)[real]
    got = np.asarray(jax.jit(lambda m, t: m(t, q.Mask(is_real=real)))(models[case.name], tokens))[real]
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.facts[:2] == ("block_causal", 1)], ids=lambda c: c.name)
def test_an_autoregressive_models_logits_are_transformers_own(models, case):
    """With no mask given on either side."""
    tokens = np.random.default_rng(0).integers(0, 203, (2, 40))
    expected = logits_of(torch_model(case), tokens)
    got = np.asarray(models[case.name](tokens))
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


def _close(ours, theirs: torch.Tensor) -> None:
    expected = theirs.detach().numpy()
    assert np.abs(np.asarray(ours) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_llada_part_by_part(models):
    case = next(c for c in CASES if c.name == "iLLaDA-8B")  # grouped heads, and a tied head
    model, w = models[case.name], llada_weights(case)
    layer = jax.tree.map(lambda weight: weight[1], model.layers)
    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(2, 9, 9, dtype=torch.bool)
    rope = rope_tables(model.config, np.arange(9)[None])
    at = "model.transformer.blocks.1."
    _close(rms_norm(x.numpy(), model.norm[...], 1e-5), normed(x, w["model.transformer.ln_f.weight"]))
    _close(layer.normed(x.numpy()), normed(x, w[f"{at}attn_norm.weight"]))
    _close(layer.attend(x.numpy(), rope, None, "xla"), llada_attention(x, w, 1, case, ones))
    _close(layer.mlp(x.numpy()), llada_mlp(x, w, 1))
    _close(model.logits(x.numpy()), x @ w["model.transformer.wte.weight"].T)


def test_dream_part_by_part(models):
    case = next(c for c in CASES if c.config["model_type"] == "Dream")
    model, theirs = models[case.name], torch_model(case)
    layer, their = jax.tree.map(lambda weight: weight[1], model.layers), theirs.model.layers[1]
    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1))
    places = torch.arange(9)[None]
    rope = rope_tables(model.config, np.arange(9)[None])
    all_seen = torch.zeros(2, 1, 9, 9)
    attended, _ = their.self_attn(x, position_embeddings=theirs.model.rotary_emb(x, places), attention_mask=all_seen)
    _close(layer.normed(x.numpy()), their.input_layernorm(x))
    _close(layer.attend(x.numpy(), rope, None, "xla"), attended)
    _close(layer.mlp(x.numpy()), their.mlp(x))
    _close(model.logits(x.numpy()), theirs.lm_head(x))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_config_says_what_the_family_was_trained_with(models, case):
    config = models[case.name].config
    assert (config.visibility, config.block_length, config.shift, config.block_origin) == case.facts
    assert config.is_autoregressive == (case.facts == ("block_causal", 1, True, "start"))
    assert config.model_type == case.config["model_type"]
    assert config.mask_token_id == case.config.get("mask_token_id")
    assert config.eos_token_ids == tuple(np.atleast_1d(case.config.get("eos_token_id", [])))
    assert config.tie_word_embeddings == (
        case.stored_head is not True and case.config.get("tie_word_embeddings", case.config.get("weight_tying"))
    )
    again = q.ModelConfig.from_hf(config.to_hf())
    assert again == config
