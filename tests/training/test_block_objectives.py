"""Block diffusion and what goes with it: losses and gradients beside PyTorch, expectations beside enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from test_shift import MASK, PROMPTS, B, L, S, assert_trained_alike, batch_of, configured, twin

import qwen3llada_jax as q
from qwen3llada_jax.model.masks import dense
from train.config.block_schedule import read_schedule
from train.objective import objective_of
from train.objectives.example import DeviceBatch

DIFFUSION = {"training.objective": "block_diffusion", "training.block_attention.block_length": S}
FROM_0 = {"training.block_attention.origin": "start"}
JOINT = {"training.block_attention.causal_context": True, "training.clean_loss": 0.2}


# ---- beside PyTorch ------------------------------------------------------------------------------------------


def by_torch(
    model, example, batch, mode: str, *, shift: bool, causal: bool, from_0: bool, normalization: str
) -> torch.Tensor:
    """The losses from transformers' logits of what our noise left, each row a pass over its own [noisy ; clean]."""
    tokens, noisy = np.asarray(batch.tokens), np.asarray(example.inputs)[:, :L]
    prompts, sizes = np.asarray(batch.prompt_length), np.asarray(batch.real_length)
    segment = np.zeros((B, L), int) if batch.segment_ids is None else np.asarray(batch.segment_ids)
    place = np.tile(np.arange(L), (B, 1)) if batch.positions is None else np.asarray(batch.positions)
    sums, clean_sums = [], []
    for b in range(B):
        n = sizes[b]
        P = 0 if from_0 or mode == "pretrain" else prompts[b]
        block = [-1 if place[b, i] < P else (place[b, i] - P) // S for i in range(n)]
        first = [0 if block[i] < 0 else P + block[i] * S for i in range(n)]  # where its block begins
        allowed = np.zeros((2 * n, 2 * n), bool)
        for i, j in itertools.product(range(n), range(n)):
            if segment[b, i] != segment[b, j]:
                continue
            allowed[i, j] = first[i] == first[j]
            allowed[i, n + j] = place[b, j] < first[i]
            allowed[n + i, n + j] = place[b, j] <= place[b, i] if causal else first[j] <= first[i]
        hidden = torch.zeros(1, 1, 2 * n, 2 * n, dtype=torch.float64).masked_fill(torch.tensor(~allowed), -1e300)
        ids = torch.tensor(np.concatenate([noisy[b, :n], tokens[b, :n]])).long()[None]
        both = torch.tensor(np.tile(place[b, :n], 2))[None]
        log_p = model(ids, attention_mask=hidden, position_ids=both).logits.log_softmax(-1)[0]
        has_left = [i > 0 and segment[b, i] == segment[b, i - 1] for i in range(n)]
        asked = [i for i in range(prompts[b] if mode == "sft" else 0, n) if has_left[i] or not shift]
        noised = [i for i in range(n) if noisy[b, i] == MASK]
        assert set(noised) <= set(asked)
        total = 0.0
        for i in noised:
            t = float(np.asarray(example.t)[b, i])
            at = i if not shift else n + i - 1 if first[i] == place[b, i] else i - 1
            total = total - log_p[at, tokens[b, i]] / (0.9 * t + 0.1)
        follows = [i for i in range(prompts[b] if mode == "sft" else 0, n) if has_left[i]]
        clean = -sum(log_p[n + i - 1, tokens[b, i]] for i in follows) if follows else torch.zeros(())
        sums.append((total, len(asked)))
        clean_sums.append((clean, len(follows)))

    def mean(parts):
        if normalization == "rows":
            return sum(x / n for x, n in parts if n) / sum(n > 0 for _, n in parts)
        return sum(x for x, _ in parts) / sum(n for _, n in parts)

    return mean(sums) + (0.2 * mean(clean_sums) if causal else 0.0)


@pytest.mark.parametrize(
    ("kind", "mode", "shift", "causal", "from_0", "divided"),
    [
        pytest.param("qwen3", "pretrain", False, False, False, True, marks=pytest.mark.slow),
        ("qwen3", "sft", True, True, False, False),
        pytest.param("qwen2", "sft", False, False, True, False, marks=pytest.mark.soak),
        pytest.param("llama", "pretrain", True, True, False, True, marks=pytest.mark.slow),
        pytest.param("llama", "sft", True, False, False, False, marks=pytest.mark.soak),
    ],
)
def test_loss_and_gradients_are_pytorchs(kind, mode, shift, causal, from_0, divided, tmp_path):
    theirs, ours = twin(kind, tmp_path)
    rows = mode == "sft" and not shift
    more = DIFFUSION | {"training.shift": shift, "dataset.pack_to_max_length": divided}
    more |= (
        (FROM_0 if from_0 else {}) | (JOINT if causal else {}) | ({} if rows else {"training.normalization": "tokens"})
    )
    config, batch = configured(mode, **more), batch_of(mode, divided=divided)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, block_attention=settled(config)))
    example = objective_of(config, MASK, MASK)(batch, jax.random.key(4), jnp.int32(2))
    expected = by_torch(theirs, example, batch, mode, shift=shift, causal=causal, from_0=from_0,
                        normalization="rows" if rows else "tokens")  # fmt: skip
    assert_trained_alike(theirs, ours, example, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param("pretrain", marks=pytest.mark.soak), "sft"])
def test_blocks_of_one_token_all_of_them_noised_are_autoregressive_training(mode, tmp_path):
    """The cross-entropy that transformers gives for labels, and its gradients; whatever the noise draws."""
    theirs, ours = twin("qwen3", tmp_path)
    more = {
        "training.block_attention.block_length": 1,
        "training.shift": True,
        "training.noise.min_masking_rate": 1,
        **FROM_0,
    }
    config, batch = configured(mode, **DIFFUSION | more, **{"training.normalization": "tokens"}), batch_of(mode)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, block_attention=settled(config)))
    example = objective_of(config, MASK, MASK)(batch, jax.random.key(4), jnp.int32(2))
    tokens, place = torch.tensor(np.asarray(batch.tokens)).long(), torch.arange(L)[None]
    sizes, prompts = (torch.tensor(np.asarray(x))[:, None] for x in (batch.real_length, batch.prompt_length))
    labels = tokens.masked_fill((place < prompts) | (place >= sizes), -100)
    assert_trained_alike(theirs, ours, example, theirs(tokens, labels=labels).loss)


def settled(config):
    """Its blocks, as a run has them."""
    return dataclasses.replace(config.training.block_attention, enabled=True, visibility="block_causal")


# ---- expectations --------------------------------------------------------------------------------------------

SMALL = q.ModelConfig(5, 8, 12, 1, 2, 1, 4, rope_theta=100.0, mask_token_id=4)
ROW = 6


@pytest.fixture(scope="module")
def small():
    model = q.Qwen3LLaDA(SMALL, rngs=nnx.Rngs(2))
    return jax.tree.map(lambda w: 8 * w if w.ndim > 2 else w, model)  # far from uniform


def pieces_of(size: int, length: int, first: int = 0) -> list[tuple[int, int]]:
    return [(b, min(b + size, length)) for b in range(first, length, size)]


def expected_loss(model, tokens, *, S, shift, causal, complementary=False, eps=0.1) -> float:
    """Σ over blocks and all their noise patterns, each with its probability (by quadrature over t) and weight."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    p = eps + (1 - eps) * (nodes + 1) / 2
    if complementary:
        p = eps + (1 - eps) * (1 - eps) * (nodes + 1) / 2
    read = jax.jit(lambda ids, allowed: jax.nn.log_softmax(model(ids, allowed)))
    total = 0.0
    for begin, end in pieces_of(S, ROW):
        can = [i for i in range(begin, end) if i or not shift]
        for chosen in itertools.product([False, True], repeat=len(can)):
            noised = [i for i, is_in in zip(can, chosen, strict=True) if is_in]
            if not noised:
                continue
            k, n = len(noised), len(can)
            probability = (weights / 2 * p**k * (1 - p) ** (n - k) / p).sum()
            if complementary:
                others = (weights / 2 * (1 - p) ** k * p ** (n - k) / (1 - p)).sum()
                probability = (probability + others) / 2
            ids = np.array(tokens)
            ids[noised] = 4
            number = np.arange(ROW) // S * S
            if causal:
                number = np.where(np.arange(ROW) < begin, np.arange(ROW), number)
            allowed = number[:, None] >= number
            log_p = np.asarray(read(ids[None], allowed[None]))[0]
            total -= probability * sum(log_p[i - shift, tokens[i]] for i in noised)
    return total / (ROW - shift)


@pytest.mark.parametrize(
    ("S", "shift", "causal", "complementary"),
    [
        pytest.param(1, True, False, False, marks=pytest.mark.slow),
        pytest.param(2, False, False, False, marks=pytest.mark.slow),
        (3, True, True, False),
        pytest.param(6, False, False, False, marks=pytest.mark.slow),
        (2, True, False, True),
    ],
)
def test_expectation_is_that_of_all_noise_patterns(small, S, shift, causal, complementary):
    tokens = np.array([0, 3, 1, 1, 2, 0])
    more = DIFFUSION | {"training.block_attention.block_length": S, "training.shift": shift}
    more |= {"training.complementary": complementary, "training.block_attention.causal_context": causal}
    config = configured(**more, **{"training.noise.at_least_one": False, "training.max_length": ROW})
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, block_attention=settled(config)))
    objective = objective_of(config, 4, 4)
    rows = 512
    batch = DeviceBatch(*(jnp.asarray(x, jnp.int32) for x in (
        np.tile(tokens, (rows, 1)), np.zeros(rows), np.full(rows, ROW), np.arange(rows))))  # fmt: skip

    @jax.jit
    def losses(step):
        example = objective(batch, jax.random.key(7), step)
        hidden = small.hidden(example.inputs, example.mask, where=example.at)
        _, ce = q.cross_entropy(hidden, small.head, example.targets, example.weight, example.where)
        return (example.weight * ce).reshape(rows, -1).sum(axis=1) * rows  # of each row, as if it stood alone

    found = np.concatenate([np.asarray(losses(jnp.int32(i))) for i in range(16)])
    expected = expected_loss(small, tokens, S=S, shift=shift, causal=causal, complementary=complementary)
    error = found.std() / np.sqrt(len(found))
    assert error < 0.03 * expected
    assert abs(found.mean() - expected) < 3 * error


@pytest.mark.slow
def test_later_places_of_a_block_are_noised_more_often():
    """Exactly round(p n) of each block, by weights that bend towards its end where p is small."""
    S, rows, eps = 8, 4000, 1e-3
    config = configured(**DIFFUSION | {"training.block_attention.block_length": S, "training.place_bias": 4.0,
                                       "training.max_length": 16, "training.noise.eps": eps})  # fmt: skip
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, block_attention=settled(config)))
    batch = DeviceBatch(*(jnp.asarray(x, jnp.int32) for x in (
        np.zeros((rows, 16)), np.zeros(rows), np.full(rows, 16), np.arange(rows))))  # fmt: skip
    example = objective_of(config, MASK, MASK)(batch, jax.random.key(0), jnp.int32(0))
    noised = np.asarray(example.where).reshape(rows, 2, S)
    p = (1 - eps) * np.asarray(example.t).reshape(rows, 2, S)[..., 0] + eps
    np.testing.assert_array_equal(noised.sum(axis=2), np.round(p.astype(np.float32) * S))
    one = noised[noised.sum(axis=2) == 1]  # a single draw: its probabilities are the weights'
    bend = 4 * (1 - p[noised.sum(axis=2) == 1])
    weights = 2.0 ** (bend[:, None] * np.arange(S) / S)
    weights = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
    error = np.sqrt(weights * (1 - weights) / len(one))
    assert (np.abs(one.mean(axis=0) - weights) < 4 * error).all()
    assert weights[-1] > 5 * weights[0]


def test_two_readings_noise_every_token_once():
    config = configured("sft", **{"training.complementary": True, "training.noise.at_least_one": False})
    example = objective_of(config, MASK, MASK)(batch_of("sft"), jax.random.key(0), jnp.int32(0))
    first, second = np.asarray(example.where)[0::2], np.asarray(example.where)[1::2]
    answers = (np.arange(L) >= PROMPTS[:, None]) & (np.arange(L) < np.asarray(batch_of("sft").real_length)[:, None])
    np.testing.assert_array_equal(first ^ second, answers)
    np.testing.assert_array_equal(first & second, False)
    assert example.share.tolist() == [1, 0] * B
    p = 0.9 * np.asarray(example.t)[0::2, :1] + 0.1
    lengths = answers.sum(axis=1, keepdims=True)
    weight = np.asarray(example.weight)
    np.testing.assert_allclose(weight[0::2][first], (0.5 / p / lengths / B * first)[first], rtol=1e-5)
    np.testing.assert_allclose(weight[1::2][second], (0.5 / (1 - p) / lengths / B * second)[second], rtol=1e-5)


def test_means_that_others_take():
    """dllm's over all answer tokens, and the plain one over noised tokens, which weighs them alike."""
    batch = batch_of("sft")
    for normalization, weight in (("tokens", "reference"), ("noised", "none")):
        config = configured("sft", **{"training.normalization": normalization, "training.noise.weight": weight})
        example = objective_of(config, MASK, MASK)(batch, jax.random.key(0), jnp.int32(0))
        asked, found = np.asarray(example.where), np.asarray(example.weight)
        p = 0.9 * np.asarray(example.t) + 0.1
        answers = (np.asarray(batch.real_length) - np.asarray(batch.prompt_length)).sum()
        wanted = 1 / p / answers if weight == "reference" else np.full_like(p, 1 / asked.sum())
        np.testing.assert_allclose(found[asked], wanted[asked], rtol=1e-5)


# ---- what changes while training -----------------------------------------------------------------------------


def test_a_causal_mask_opens_little_by_little():
    config = configured(**{"training.causal_annealing": 0.5, "dataset.pack_to_max_length": False})
    objective = objective_of(config, MASK, MASK, updates=100)
    real = np.arange(L) < np.asarray(batch_of().real_length)[:, None]
    pairs = real[:, :, None] & real[:, None]
    behind = np.triu(np.ones((L, L), bool), 1)
    for step, share in ((0, 0.0), (10, 0.2), (25, 0.5), (50, 1.0), (99, 1.0)):
        allowed = np.asarray(objective(batch_of(), jax.random.key(0), jnp.int32(step)).mask)
        assert (allowed | ~pairs)[:, ~behind].all()
        assert not (allowed & (real[:, :, None] != real[:, None])).any()
        opened = allowed[0][behind[:, :] & pairs[0]].mean()
        assert abs(opened - share) < 4 * np.sqrt(share * (1 - share) / 276) + 1e-9


def test_a_schedule_is_read_and_followed():
    assert read_schedule("1@0.2, 4@0.5, 32") == ((1, 0.2), (4, 0.5), (32, 1.0))
    for wrong in ("1@0.2", "1, 2", "a@0.2, 4", "4@0.5, 8@0.5, 2", "4@0, 8", "4@x, 8", "0@0.5, 4", "4@1, 8"):
        with pytest.raises(q.InputError, match="schedule"):
            read_schedule(wrong)
    config = configured(
        **{"training.objective": "block_diffusion", "training.block_attention.schedule": "1@0.2, 4@0.5, 6"}
    )
    blocks = dataclasses.replace(settled(config), block_length=6)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, block_attention=blocks))
    objective = jax.jit(objective_of(config, MASK, MASK, updates=50))
    for step, length in ((0, 1), (9, 1), (10, 4), (24, 4), (25, 6), (49, 6)):
        example = objective(batch_of(), jax.random.key(0), jnp.int32(step))
        noisy = np.asarray(dense(example.mask, 2 * L))[0, :L, :L]
        np.testing.assert_array_equal(noisy, np.arange(L)[:, None] // length == np.arange(L) // length)
    assert objective._cache_size() == 1
    last = objective_of(config, MASK, MASK, for_evaluation=True)(batch_of(), jax.random.key(0), jnp.int32(0))
    np.testing.assert_array_equal(np.asarray(dense(last.mask, 2 * L))[0, 0, :L], np.arange(L) < 6)


# ---- what cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"training.objective": "blocks"}, "choose one of masked, block_diffusion"),
        (DIFFUSION | {"training.block_attention.visibility": "block_bias"}, "block_attention.visibility block_causal"),
        (DIFFUSION | {"training.block_attention.enabled": False}, "block_attention.enabled true"),
        (DIFFUSION | {"training.noise.mask_contiguous_region_prob": 0.5}, "mask_contiguous_region_prob"),
        (DIFFUSION | {"training.causal_annealing": 0.5}, "no effect"),
        (DIFFUSION | {"training.clean_loss": 0.5}, "no effect"),
        ({"training.place_bias": 1}, "no effect"),
        ({"training.complementary": True, "training.noise.min_masking_rate": 0.5}, "min_masking_rate"),
        ({"training.noise.weight": "none", "training.noise.reweight_cap": 2}, "reweight_cap"),
        ({"training.normalization": "mean"}, "choose one of tokens, rows, noised"),
        (DIFFUSION | {"training.block_attention.schedule": "1@0.5, 8"}, "leave block_length out"),
        ({"training.block_attention.causal_context": True}, "no effect"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(keys, words):
    with pytest.raises(q.InputError, match=words):
        configured(**keys)
