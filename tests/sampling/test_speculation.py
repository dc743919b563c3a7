"""Self-speculation writes what autoregression writes: token for token greedily, in distribution where it draws.

The reference is a loop in plain PyTorch, a token at a time under a causal mask; of drawn texts, the probabilities of
all first tokens by enumeration. That drafts are kept is seen of a model that learned both, by our own objective.
"""

import dataclasses
import io
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import TINY, refuses, trained, write
from flax import nnx
from torch_sampler import logits_of
from torch_twins import save_torch, torch_model, wide_twin

import qwen3llada_jax as q
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling.passes import proposals
from sample import chat, compare, generate
from train import step as training
from train.objectives.blocks import block_diffusion
from train.objectives.example import DeviceBatch
from train.objectives.noising import Corruption

V, MASK, EOS, GEN = 61, 60, (7, 11, 19), 13
FACTS = {"visibility": "block_causal", "causal_context": True, "block_length": 4, "shift": True}
PROMPTS = [[7, 3, 19], [], [12, 30, 41, 2, 8, 55, 23, 1, 17], [44] * 6, [5]]


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    with wide_twin(tmp_path_factory.mktemp("twin"), 4, V) as both:
        yield both


def autoregressive(reference, prompt, *, many=GEN, eos=(), min_length=0, cfg_scale=0.0):
    """(what is written greedily, the smallest lead of a first choice over the second)."""
    answer, margin = [], float("inf")
    while len(answer) < many:
        text = [*prompt, *answer] or [MASK]
        causal = torch.full((len(text), len(text)), torch.finfo(torch.float32).min).triu(1)[None, None]
        row = logits_of(reference, text, causal)[-1]
        if cfg_scale:
            without = logits_of(reference, [MASK] * len(prompt) + answer or [MASK], causal)[-1]
            row = without + (cfg_scale + 1) * (row - without)
        row[[MASK, *(eos if len(answer) < min_length else ())]] = -torch.inf
        first, second = row.topk(2).values.tolist()
        margin = min(margin, first - second)
        answer.append(int(row.argmax()))
        if answer[-1] in eos:
            answer += [answer[-1]] * (many - len(answer))
    return answer, margin


def assert_passes(result, S):
    """Each pass wrote 1 … S tokens, from left to right, until a row was done."""
    for row, nfe in enumerate(result.nfe):
        at = result.places[row][result.places[row] < result.tokens.shape[1]]
        passes = result.written_at[row, at]
        passes = passes[passes >= 0]
        assert sorted(set(passes.tolist())) == list(range(nfe))
        assert (np.diff(passes) >= 0).all()
        assert 1 <= np.bincount(passes).min() <= np.bincount(passes).max() <= S


@pytest.mark.parametrize(
    ("S", "options"),
    [
        (4, {"eos_token_ids": EOS}),
        pytest.param(2, {"cfg_scale": 1.5, "stop_at_eos": False}, marks=pytest.mark.soak),
        pytest.param(7, {"eos_token_ids": EOS, "min_length": 5, "cache": "none"}, marks=pytest.mark.soak),
        pytest.param(16, {"stop_at_eos": False}, marks=pytest.mark.soak),
    ],
)
def test_the_text_is_the_autoregressive_one(twin, S, options):
    reference, model = twin
    asked = {"eos": options.get("eos_token_ids", ()), "min_length": options.get("min_length", 0)}
    expected = [
        autoregressive(reference, prompt, cfg_scale=options.get("cfg_scale", 0.0), **asked) for prompt in PROMPTS
    ]
    assert min(margin for _, margin in expected) > 2e-5
    config = q.SamplerConfig(gen_length=GEN, block_length=S, speculate=True, **options)
    model = trained(model, MASK, **FACTS)
    result = q.generate(model, PROMPTS, config)
    assert result.answers() == [answer for answer, _ in expected]
    if "cfg_scale" not in options:
        assert_passes(result, S)


@pytest.mark.soak
def test_an_autoregressive_model_drafts_too(twin):
    reference, model = twin
    model = trained(model, MASK, visibility="block_causal", block_length=1, shift=True)
    result = q.generate(model, PROMPTS, q.SamplerConfig(gen_length=GEN, block_length=3, speculate=True))
    assert result.answers() == [autoregressive(reference, prompt)[0] for prompt in PROMPTS]


@pytest.mark.soak
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "cfg_scale": 0.5}], ids=str)
def test_a_mesh_gives_the_same(tmp_path, options):
    wide = torch_model(4, vocab_size=64, hidden_size=32, num_hidden_layers=2, initializer_range=0.35)
    alone = trained(q.load(save_torch(wide, tmp_path)), MASK, **FACTS)
    mesh = q.make_mesh(data=2, fsdp=2, tensor=2)
    spread = q.load(tmp_path, mesh=mesh)
    spread.config = alone.config
    config = q.SamplerConfig(gen_length=GEN, speculate=True, stop_at_eos=False, **options)
    expected = q.generate(alone, PROMPTS[:4], config, key=3)
    with jax.set_mesh(mesh):
        found = q.generate(spread, PROMPTS[:4], config, key=3)
    assert found.answers() == expected.answers()
    assert found.nfe.tolist() == expected.nfe.tolist()


@pytest.mark.soak
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_nan_ends_alone(twin, temperature):
    model, config = trained(twin[1], MASK, **FACTS), q.SamplerConfig(gen_length=GEN, speculate=True, stop_at_eos=False)
    config = dataclasses.replace(config, temperature=temperature, forbid=(44,))
    whole = q.generate(model, PROMPTS, config)
    broken = jax.tree.map(jnp.copy, model)
    broken.embed_tokens[...] = model.embed_tokens[...].at[44].set(jnp.nan)
    with pytest.raises(q.InputError, match="not finite") as caught:
        q.generate(broken, PROMPTS, config)
    assert caught.value.rows == [3]
    answers = caught.value.result.answers()
    assert [answers[row] for row in (0, 1, 2, 4)] == [whole.answers()[row] for row in (0, 1, 2, 4)]


# ---- a model that learned to draft and to verify -----------------------------------------------------------------

TASK, S = 16, 4  # ids that follow one another in a circle, but for one in twenty; the next id is the mask token
CIRCLE = np.random.default_rng(0).permutation(TASK)
NEXT = np.empty(TASK, int)
NEXT[CIRCLE] = np.roll(CIRCLE, -1)


def texts(seed: int, rows: int, length: int = 24) -> np.ndarray:
    draw = np.random.default_rng(seed)
    found = draw.integers(0, TASK, (rows, length))
    for i in range(1, length):
        found[:, i] = np.where(draw.random(rows) < 0.05, found[:, i], NEXT[found[:, i - 1]])
    return found


@pytest.fixture(scope="module")
def joint():
    """Trained by block diffusion beside the next token's loss of the clean half, which is read from left to right."""
    rows, updates = 8, 120
    config = ModelConfig(
        vocab_size=TASK + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.1, mask_token_id=TASK, live_vocab_size=TASK, **FACTS,
    )  # fmt: skip
    model = q.Qwen3LLaDA(config, rngs=nnx.Rngs(0))
    how = Corruption(
        q.NoiseConfig(), TASK, TASK, q.Mask("block_causal", jnp.int32(S)), False, False, True, False, False, "tokens",
        causal_context=True, clean_loss=0.5,
    )  # fmt: skip
    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, updates))

    @jax.jit
    def update(params, moments, tokens, step):
        B, L = tokens.shape
        batch = DeviceBatch(tokens, jnp.zeros(B, jnp.int32), jnp.full(B, L), step * B + jnp.arange(B))
        example = block_diffusion(batch, jax.random.key(1), step, how)
        gradient = jax.grad(lambda p: training.loss_and_sums(nnx.merge(graphdef, p), example)[0])(params)
        change, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, change), moments

    moments = optimizer.init(params)
    for step in range(updates):
        params, moments = update(params, moments, jnp.asarray(texts(step, rows), jnp.int32), jnp.int32(step))
    return nnx.merge(graphdef, params)


def prompts_of_the_task():
    return [row[:n].tolist() for row, n in zip(texts(1000, 6), (1, 9, 4, 2, 8, 6), strict=True)]


@pytest.mark.slow
def test_a_model_trained_jointly_keeps_what_it_drafts(joint):
    prompts = prompts_of_the_task()
    config = q.SamplerConfig(gen_length=16, stop_at_eos=False)
    one_by_one = q.generate(joint, prompts, dataclasses.replace(config, block_length=1))
    assert (one_by_one.nfe == 16).all()
    found = {}
    for many in (2, S):
        drafted = q.generate(joint, prompts, dataclasses.replace(config, block_length=many, speculate=True))
        assert drafted.answers() == one_by_one.answers()
        assert_passes(drafted, many)
        np.testing.assert_allclose(drafted.confidence, one_by_one.confidence, atol=1e-4)
        found[many] = 16 * len(prompts) / drafted.nfe.sum()
    assert found[2] > 1.5
    assert found[S] > 2


@pytest.mark.slow
def test_a_text_ends_at_its_eos_within_a_draft(joint):
    """What was kept behind it is not written: the rest of the row is EOS, as of an autoregressive text."""
    prompts = [[int(token)] for token in CIRCLE[:6]]
    config = q.SamplerConfig(gen_length=16, eos_token_ids=(int(CIRCLE[12]),))
    one_by_one = q.generate(joint, prompts, dataclasses.replace(config, block_length=1))
    drafted = q.generate(joint, prompts, dataclasses.replace(config, speculate=True))
    assert drafted.answers() == one_by_one.answers()
    assert (drafted.nfe < one_by_one.nfe).all()
    assert len(set(one_by_one.nfe.tolist())) > 3  # rows that end apart, at every place of a draft


@pytest.mark.soak
def test_rows_come_and_go_and_are_watched(joint):
    prompts = prompts_of_the_task()
    config = q.SamplerConfig(gen_length=18, speculate=True, stop_at_eos=False)
    whole = q.generate(joint, prompts, config)
    *_, last = canvases = list(q.watch(joint, prompts, config))
    assert len(canvases) == whole.passes + 1
    assert q.finish(last).answers() == whole.answers()
    drawing = dataclasses.replace(config, temperature=1.0)
    engine = q.Engine(joint, drawing, slots=2, length=48)  # 0 is a temperature like others here
    waiting, rows, found = list(range(len(prompts))), {}, {}
    while len(found) < len(prompts):
        for slot in engine.free[: len(waiting)]:
            rows[slot] = waiting.pop(0)
            engine.admit(slot, prompts[rows[slot]], drawing if rows[slot] % 2 else config, key=rows[slot])
        engine.advance()
        found |= {rows[done.slot]: done.result for done in engine.harvest()}
    for row, prompt in enumerate(prompts):
        own = drawing if row % 2 else config
        alone = q.generate(joint, [prompt], own, key=row)
        assert found[row].answers() == alone.answers()
        assert found[row].nfe.tolist() == alone.nfe.tolist()


# ---- drawn texts -------------------------------------------------------------------------------------------------


def fits(counts: np.ndarray, p: np.ndarray) -> float:
    """Chi-square of counts beside probabilities, as standard deviations from what is expected."""
    p = p / p.sum()
    assert counts[p == 0].sum() == 0
    counts, p = counts[p > 0], p[p > 0]
    rare = p * counts.sum() < 5
    if rare.any():
        counts, p = np.append(counts[~rare], counts[rare].sum()), np.append(p[~rare], p[rare].sum())
    expected = p * counts.sum()
    free = len(p) - 1
    return (((counts - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free)


def test_a_verified_draft_is_distributed_as_the_model():
    p, at = np.array([0.05, 0.4, 0.0, 0.25, 0.3], np.float32), np.array([0.5, 0.1, 0.2, 0.2, 0.0], np.float32)

    def one(key):
        to_draft, to_verify = jax.random.split(key)
        draft = jax.random.categorical(to_draft, jnp.log(at))
        return draft, proposals.verified(jnp.asarray(p), jnp.asarray(at), draft, to_verify)

    drafts, found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 20_000))
    assert abs(fits(np.bincount(found, minlength=5), p)) < 4
    assert abs(fits(np.bincount(drafts, minlength=5), p[[1, 0, 3, 4, 2]])) > 20  # the test sees a difference
    assert float((drafts == found).mean()) == pytest.approx(np.minimum(p, at).sum(), abs=0.015)


def all_texts(model, prompt, tempered) -> np.ndarray:
    """p of every three tokens behind a prompt, [5, 5, 5], by the chain rule."""
    rows = np.array([[*prompt, *three] for three in itertools.product(range(5), repeat=3)])
    causal = jnp.tril(jnp.ones((1, rows.shape[1], rows.shape[1]), bool))
    logits = np.asarray(model(rows, causal), np.float64)[:, len(prompt) - 1 : -1, :5]
    p = np.array([[tempered(row) for row in three] for three in logits])
    chosen = np.take_along_axis(p, rows[:, len(prompt) :, None], axis=-1)[..., 0]
    return chosen.prod(axis=1)


def nucleus(logits, temperature=0.8, top_p=0.9):
    p = np.exp(logits / temperature - (logits / temperature).max())
    p /= p.sum()
    order = np.argsort(-p)
    p[order[np.cumsum(p[order]) - p[order] >= top_p]] = 0
    return p / p.sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, pytest.param({"temperature": 0.8, "top_p": 0.9}, marks=pytest.mark.soak)], ids=str
)
def test_drawn_texts_are_distributed_as_autoregressive_ones(options):
    config = ModelConfig(
        vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, initializer_range=0.35, mask_token_id=5, live_vocab_size=5, **FACTS,
    )  # fmt: skip
    model = q.Qwen3LLaDA(config, rngs=nnx.Rngs(2))
    prompt, rows = [3, 0, 4], 4096
    expected = all_texts(model, prompt, lambda logits: nucleus(logits, options["temperature"], options.get("top_p", 1)))
    assert expected.sum() == pytest.approx(1)
    settings = q.SamplerConfig(gen_length=5, block_length=3, speculate=True, stop_at_eos=False, **options)
    result = q.generate(model, [prompt] * rows, settings, key=5)
    answers = np.array(result.answers())
    assert abs(fits(np.bincount(answers[:, :3] @ [25, 5, 1], minlength=125), expected)) < 4
    assert len(set(result.nfe.tolist())) > 2  # some drafts were kept, and some were not


# ---- the programs ------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_the_programs_write_the_same_in_no_more_passes(tmp_path, capsys, monkeypatch):
    asked = ["--model", str(TINY), "--mask-token-id", "1050", "--gen-length", "20", "--temperature", "0"]
    ask = [*asked, "--prompt", "ROMEO:", "--prompt", "My lord,"]
    generate.main(ask)
    alone = capsys.readouterr()
    generate.main([*ask, "--speculate", "--block-length", "4"])
    drafted = capsys.readouterr()
    assert drafted.out == alone.out
    assert "was not trained to draft" in drafted.err
    assert "tokens per forward" in drafted.err
    monkeypatch.setattr("sys.stdin", io.StringIO("Who?\n/set speculate=default\n/set block_length=1\n/clear\nWho?\n"))
    chat.main([*asked, "--speculate", "--block-length", "4"])
    said = capsys.readouterr().out
    assert said == 2 * said[: len(said) // 2] != ""
    data = write(tmp_path / "data.jsonl", [{"prompt": "ROMEO:"}])
    rules = "low_confidence,speculate=on+block_length=4"
    compare.main([*asked, "--data", data, "--rules", rules, "--steps", "20", "--out", str(tmp_path / "out")])
    by_steps, drafting = json.loads((tmp_path / "out" / "compare.json").read_text())["results"]
    assert (by_steps["nfe"], by_steps["steps"], drafting["steps"]) == (20, 20, None)
    assert 5 <= drafting["nfe"] <= 20


# ---- what it does not go with ------------------------------------------------------------------------------------


def test_what_cannot_be_verified_is_refused(twin):
    model, asked = trained(twin[1], MASK, **FACTS), q.SamplerConfig(speculate=True)
    assert asked.for_model(model.config).cache == "prefix"
    for options, name in (
        ({"steps": 4}, "steps"), ({"threshold": 0.9}, "threshold"), ({"revise": 1}, "revise"),
        ({"remasking": "entropy"}, "remasking"), ({"eos": "last"}, "eos 'last'"),
        ({"sub_block_length": 2}, "sub_block"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"), ({"commit": q.rules.Threshold(0.9)}, "commit"),
    ):  # fmt: skip
        refuses(lambda o=options: q.SamplerConfig(speculate=True, **o), name, "speculate")
    for facts, parts in (
        ({"causal_context": False}, ("left to right", "block_attention.causal_context")),
        ({"shift": False}, ("position before", "training.shift")),
        ({"block_length": 1}, ("1 token", "block_length")),
    ):
        other = dataclasses.replace(model.config, **facts)
        refuses(lambda o=other: asked.for_model(o), "speculate", *parts)
    refuses(lambda: q.SamplerConfig(speculate=True, visibility="full").for_model(model.config), "visibility full")
    refuses(lambda: q.infill(model, [[1, None, 2]], asked), "speculate", "holes")
    own = dataclasses.replace(
        model.config, sampling=(("threshold", 0.9), ("remasking", "entropy"), ("temperature", 0.5))
    )
    assert q.settings_for(own, speculate=True) == q.SamplerConfig(speculate=True, temperature=0.5)
    engine = q.Engine(model, q.SamplerConfig(gen_length=8), slots=1, length=16)
    refuses(lambda: engine.admit(0, [1], q.SamplerConfig(gen_length=8, speculate=True)), "speculate")
