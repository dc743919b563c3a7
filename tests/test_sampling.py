"""The sampler against LLaDA's algorithm written in PyTorch, its invariants, and what bad input gets."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import assert_one_line_error, rule, run_program, save_torch, torch_model
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from qwen3llada_jax import sampling

V, MASK = 61, 60


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A small model with wide weights, so that confidences are well spread."""
    reference = torch_model(
        9, vocab_size=V, hidden_size=32, num_hidden_layers=2, initializer_range=0.35, tie_word_embeddings=False
    )
    folder = save_torch(reference, tmp_path_factory.mktemp("twin"))
    model = q.load(folder)
    model.config = q.ModelConfig(**{**vars(model.config), "mask_token_id": MASK, "live_vocab_size": V - 3})
    return reference, model


def torch_llada(reference, prompt, *, gen_length, block_length, steps, cfg_scale, visibility="full", forbidden=()):
    """LLaDA's algorithm 5 for one prompt, greedy, low-confidence; positions still masked are kept in a list."""
    P = len(prompt)
    x = torch.tensor([prompt + [MASK] * gen_length])
    masked = [False] * P + [True] * gen_length
    L = P + gen_length
    allowed = torch.tensor([[rule(visibility, i, j, P, block_length) for j in range(L)] for i in range(L)])
    bias = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
    blocks = gen_length // block_length
    steps_per_block = steps // blocks
    for block in range(blocks):
        where = range(P + block * block_length, P + (block + 1) * block_length)
        share, rest = divmod(sum(masked[i] for i in where), steps_per_block)
        for step in range(steps_per_block):
            with torch.no_grad():
                logits = reference(x, attention_mask=bias).logits[0].double()
                if cfg_scale > 0:
                    blank = x.clone()
                    blank[0, :P] = MASK
                    without = reference(blank, attention_mask=bias).logits[0].double()
                    logits = without + (cfg_scale + 1) * (logits - without)
            probability = logits.softmax(-1)
            logits[:, list(forbidden)] = -torch.inf
            token = logits.argmax(-1)
            sure = sorted((i for i in where if masked[i]), key=lambda i: -probability[i, token[i]].item())
            for i in sure[: share + (step < rest)]:
                x[0, i], masked[i] = token[i], False
    assert not any(masked)
    return x[0, P:].tolist()


GRID = [
    (blocks, ratio, cfg, prompt, visibility)
    for (blocks, ratio, cfg), (prompt, visibility) in itertools.product(
        [(1, 1, 0.0), (1, 2, 1.5), (4, 1, 1.5), (4, 3, 0.0), (2, 4, 0.0)],
        [([5], "full"), ([3, 1, 4, 1, 5, 9], "full"), ([7, 7, MASK, 2], "full"), ([8, 2], "block_bias"),
         ([2, 8, 8], "block_causal")],
    )
]  # fmt: skip


@pytest.mark.parametrize(("blocks", "ratio", "cfg", "prompt", "visibility"), GRID)
def test_greedy_sampling_equals_torch_token_for_token(twin, blocks, ratio, cfg, prompt, visibility):
    reference, model = twin
    gen_length = 24
    shape = {
        "gen_length": gen_length,
        "block_length": gen_length // blocks,
        "steps": gen_length // ratio,
        "cfg_scale": cfg,
    }
    expected = torch_llada(reference, prompt, visibility=visibility, forbidden=(V - 3, V - 2, MASK), **shape)
    got = q.generate(model, [prompt], q.SamplerConfig(visibility=visibility, **shape))
    assert got.answers()[0] == expected
    assert got.nfe == shape["steps"] * (2 if cfg else 1)


def test_the_models_confidences_are_well_spread(twin):
    """Else the test above would compare the breaking of ties."""
    _, model = twin
    sure = np.asarray(
        q.generate(model, [[5, 6]], q.SamplerConfig(gen_length=24, block_length=24, steps=24)).confidence
    )[0, 2:]
    assert np.ptp(sure) > 0.2
    assert np.diff(np.sort(sure)).min() > 1e-6


SETTINGS = [
    {"block_length": 4, "steps": 8},
    {"block_length": 8, "steps": 3, "temperature": 0.7, "remasking": "random"},
    {"block_length": 4, "steps": 6, "cfg_scale": 1.0, "remasking": "random_topk"},
    {"block_length": 2, "steps": 4, "temperature": 1.5, "visibility": "block_causal"},
]
token_ids = st.integers(0, V - 1)


@given(
    st.sampled_from(SETTINGS),
    st.lists(token_ids, min_size=5, max_size=5),  # the longest prompt fixes the shape, so that little is compiled
    st.lists(token_ids, max_size=5),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_invariants(twin, options, first, second, seed):
    _, model = twin
    prompts = [first, second]
    config = q.SamplerConfig(gen_length=8, **options)
    canvases = list(q.watch(model, prompts, config, key=jax.random.key(seed)))
    per_block = config.steps * config.block_length // 8
    share, rest = divmod(config.block_length, per_block)
    assert len(canvases) == config.steps + 1
    for number, (before, after) in enumerate(itertools.pairwise(canvases)):
        was, now = np.asarray(before.is_masked), np.asarray(after.is_masked)
        written = was & ~now
        assert not (now & ~was).any()
        assert (written.sum(axis=1) == share + (number % per_block < rest)).all()
        np.testing.assert_array_equal(np.asarray(before.tokens)[~written], np.asarray(after.tokens)[~written])
        for row, prompt in enumerate(prompts):
            block = (np.flatnonzero(written[row]) - len(prompt)) // config.block_length
            assert (block == number // per_block).all()
    last = canvases[-1]
    assert not last.is_masked.any()
    result = q.generate(model, prompts, config, key=jax.random.key(seed))
    np.testing.assert_array_equal(result.tokens, last.tokens)
    np.testing.assert_array_equal(result.written_at, last.written_at)
    for row, (prompt, answer) in enumerate(zip(prompts, result.answers(), strict=True)):
        assert np.asarray(result.tokens)[row, : len(prompt)].tolist() == prompt
        assert max(answer) < V - 3


def test_prompts_of_different_lengths_give_what_each_gives_alone(twin):
    _, model = twin
    prompts = [[1], [2, 3, 4, 5, 6, 7], []]
    for visibility in ("full", "block_causal"):
        config = q.SamplerConfig(gen_length=8, block_length=4, steps=8, visibility=visibility)
        together = q.generate(model, prompts, config).answers()
        assert together == [q.generate(model, [p], config).answers()[0] for p in prompts]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_proposals_are_drawn_from_the_tempered_softmax(temperature):
    """Chi-square, with logits up to ±80."""
    draws, size = 20_000, 12
    logits = np.concatenate([[80.0, 79.5, 79.0, 78.0], np.linspace(77, 70, 6), [-80.0, 0.0]]).astype(np.float32)
    exact = np.exp((logits - 80.0) / temperature, dtype=np.float64)
    exact /= exact.sum()
    wide = jnp.broadcast_to(logits, (1, draws, size))
    tokens, sure = sampling.propose(jax.random.split(jax.random.key(0), 1), wide, jnp.ones(size, bool), temperature)
    counts = np.bincount(np.asarray(tokens[0]), minlength=size)
    common = exact * draws >= 5
    statistic = ((counts - exact * draws) ** 2 / (exact * draws))[common].sum()
    degrees = common.sum() - 1
    assert statistic < degrees + 4 * np.sqrt(2 * degrees) + 4
    assert counts[-2] == counts[-1] == 0
    softmax = np.exp(logits - 80.0, dtype=np.float64) / np.exp(logits - 80.0, dtype=np.float64).sum()
    np.testing.assert_allclose(sure[0], softmax[np.asarray(tokens[0])], rtol=1e-4)


def test_random_remasking_is_uniform_over_positions():
    keys = jax.random.split(jax.random.key(0), 4000)
    confidence = sampling.confidence_of(keys, jnp.tile(jnp.linspace(0, 1, 8), (4000, 1)), "random")
    first = np.bincount(np.asarray(confidence.argmax(axis=1)), minlength=8) / 4000
    assert np.abs(first - 1 / 8).max() < 0.03


def test_random_topk_breaks_near_ties_only():
    keys = jax.random.split(jax.random.key(0), 500)
    tied = sampling.confidence_of(keys, jnp.tile(jnp.array([0.5, 0.5, 0.1]), (500, 1)), "random_topk").argmax(axis=1)
    share = np.bincount(np.asarray(tied), minlength=3) / 500
    assert share[2] == 0
    assert 0.4 < share[0] < 0.6


def test_trajectory_is_one_program(twin):
    _, model = twin
    config = q.SamplerConfig(gen_length=10, block_length=5, steps=10)
    before = sampling._run._cache_size()
    for prompt in ([1, 2, 3], [4, 5, 6]):
        q.generate(model, [prompt], config)
    assert sampling._run._cache_size() == before + 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"gen_length": 30, "block_length": 8}, "gen_length 30 is not a multiple of block_length 8; try 32"),
        ({"gen_length": 32, "block_length": 8, "steps": 6}, "steps 6 is not a multiple of the 4 blocks"),
        ({"gen_length": 0}, "gen_length must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"remasking": "best"}, "remasking 'best' is unknown"),
        ({"mask_token_id": 99}, "mask_token_id 99 is outside"),
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
    with pytest.raises(q.InputError, match=f"token id {V} is outside"):
        q.generate(model, [[1, V]], q.SamplerConfig(gen_length=8, steps=8))


@pytest.mark.slow
def test_program_as_typed(tiny_folder, tmp_path):
    trace = tmp_path / "trace.json"
    common = [
        "sample.generate",
        "--model",
        tiny_folder,
        "--mask_token_id",
        "1050",
        "--gen_length",
        "16",
        "--steps",
        "8",
    ]
    done = run_program(*common, "--prompt", "ROMEO:", "--block-length", "8", "--trace", trace, "--live")
    assert done.stdout.startswith("ROMEO:")
    assert "NFE 8" in done.stderr
    assert "step 8/8" in done.stderr
    written = json.loads(trace.read_text())["rows"][0]["written"]
    assert sorted(w["step"] for w in written) == sorted([*range(1, 9)] * 2)
    picture = run_program(*common, "--chat", "--prompt", "Speak.", "--cfg", "1", "--trace", tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 5000
    assert "NFE 16" in picture.stderr
    for arguments, parts in {
        ("--prompt", "x", "--block-length", "5"): ("not a multiple of block_length 5",),
        ("--prompt", "x", "--remaskin", "random"): ("unknown option '--remaskin'", "did you mean '--remasking'?"),
        ("--prompt", "x", "--trace", "a.pdf"): ("unknown kind of file",),
        (): ("--prompt",),
    }.items():
        assert_one_line_error(run_program(*common, *arguments, check=None), *parts)
    nowhere = run_program("sample.generate", "--model", tmp_path / "no", "--prompt", "x", check=None)
    assert_one_line_error(nowhere, "no such folder")
