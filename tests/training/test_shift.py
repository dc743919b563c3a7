"""Shift (a token is predicted at the position before it) and blocks counted from position 0, in training."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import on_devices, refuses
from flax import nnx
from test_train import run, settings
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import qwen3llada_jax as q
from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.model.config import read_model_config
from qwen3llada_jax.model.masks import dense
from train import step as training
from train.checkpoint.base_model import find_base_model, settled
from train.checkpoint.resume_check import check_fork, check_same_run
from train.config.parse import as_yaml, read_config
from train.config.schema import flat
from train.objective import objective_of
from train.objectives.example import DeviceBatch
from train.objectives.masked import example_of, masked
from train.objectives.noising import Corruption, Learned, has_predecessor
from train.run import Look, train

B, L, V, MASK, S = 5, 24, 97, 96, 5
SIZES, PROMPTS = np.array([24, 17, 24, 9, 20]), np.array([7, 0, 12, 3, 1])  # one has no prompt
SEGMENTS = np.repeat(np.arange(6), [1, 6, 2, 8, 4, 3])[None] * np.ones((B, 1), int)  # one of a token alone
OFF = {"training.noise.random_length_prob": 0}
BLOCKS = {
    "training.block_attention.enabled": True, "training.block_attention.visibility": "block_causal",
    "training.block_attention.block_length": S, "training.block_attention.origin": "start",
}  # fmt: skip


def configured(mode="pretrain", **more):
    values = {"model.base_model_path": "x", "dataset.name": "x", "training.max_length": L, "training.batch_size": B}
    values |= {"training.mode": mode, "training.noise.eps": 0.1, **OFF, **more}
    return read_config(None, [(k, str(v)) for k, v in values.items()])


def batch_of(mode="pretrain", *, divided=False, seed=0) -> DeviceBatch:
    tokens = np.random.default_rng(seed).integers(0, MASK, (B, L))
    prompts, sizes = (PROMPTS, SIZES) if mode == "sft" else (0 * PROMPTS, 0 * SIZES + L if divided else SIZES)
    more = ()
    if divided:
        first = np.argmax(SEGMENTS[0][None] == SEGMENTS[0][:, None], axis=1)
        more = (SEGMENTS, np.arange(L) - first + 0 * SEGMENTS)
    return DeviceBatch(*(jnp.asarray(x, jnp.int32) for x in (tokens, prompts, sizes, np.arange(B), *more)))


# ---- one update of each kind of model, beside PyTorch --------------------------------------------------------


def twin(kind: str, tmp_path: Path):
    """(a model of transformers whose every weight is away from its initial value, the same as ours)."""
    configs = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8, "tie_word_embeddings": True}),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
        "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "tie_word_embeddings": True}),
    }
    config, cls, more = configs[kind]
    torch.manual_seed(3)
    model = cls._from_config(
        config(
            vocab_size=V, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5e4},
            pad_token_id=None, **more,
        ),
        attn_implementation="eager",
    ).eval()  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / kind)
    return model.double(), q.load(tmp_path / kind, "float32")


def by_torch(model, example, batch, mode: str, *, shift: bool, blocks: bool) -> torch.Tensor:
    """LLaDA's losses from transformers' logits, of what our noise left."""
    tokens, inputs = np.asarray(batch.tokens), np.asarray(example.inputs)
    prompts, sizes = np.asarray(batch.prompt_length), np.asarray(batch.real_length)
    segment = np.zeros((B, L), int) if batch.segment_ids is None else np.asarray(batch.segment_ids)
    place = np.tile(np.arange(L), (B, 1)) if batch.positions is None else np.asarray(batch.positions)
    allowed = np.zeros((B, 1, L, L), bool)
    for b in range(B):
        for i in range(L):
            for j in range(L):
                one_block = not blocks or place[b, j] // S <= place[b, i] // S
                is_seen = segment[b, i] == segment[b, j] and (i < sizes[b]) == (j < sizes[b])
                allowed[b, 0, i, j] = is_seen and one_block
    hidden = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(torch.tensor(~allowed), -1e300)
    logits = model(torch.tensor(inputs).long(), attention_mask=hidden, position_ids=torch.tensor(place)).logits
    log_p = logits.log_softmax(-1)
    p = 0.9 * np.asarray(example.t, np.float64)[:, 0] + 0.1
    total = []
    for b in range(B):
        asked = [i for i in range(prompts[b], sizes[b]) if not shift or (i > 0 and segment[b, i] == segment[b, i - 1])]
        noised = np.flatnonzero(inputs[b] == MASK)
        assert set(noised) <= set(asked)
        total.append((-log_p[b, noised - shift, tokens[b, noised]].sum() / p[b], len(asked)))
    if mode == "sft":
        return sum(loss / count for loss, count in total) / B
    return sum(loss for loss, _ in total) / sum(count for _, count in total)


@pytest.mark.parametrize(
    ("kind", "mode", "shift", "blocks", "divided"),
    [
        ("qwen3", "pretrain", True, False, True),
        ("qwen3", "sft", False, True, False),
        ("qwen2", "sft", True, True, False),
        pytest.param("qwen2", "pretrain", False, False, False, marks=pytest.mark.slow),
        pytest.param("llama", "pretrain", True, True, True, marks=pytest.mark.slow),
        pytest.param("llama", "sft", True, False, False, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_of_an_update_are_pytorchs(kind, mode, shift, blocks, divided, tmp_path):
    theirs, ours = twin(kind, tmp_path)
    pack = {"training.shift": shift, "dataset.pack_to_max_length": divided}  # others have padding
    config, batch = configured(mode, **pack, **(BLOCKS if blocks else {})), batch_of(mode, divided=divided)
    example = objective_of(config, MASK, MASK)(batch, jax.random.key(4), jnp.int32(2))
    expected = by_torch(theirs, example, batch, mode, shift=shift, blocks=blocks)
    assert_trained_alike(theirs, ours, example, expected)


def assert_trained_alike(theirs, ours, example, expected: torch.Tensor) -> None:
    """Loss and gradients of our example are those of PyTorch's loss, and of every weight of the layers."""
    expected.backward()
    graphdef, params = nnx.split(ours, nnx.Param)
    step = jax.jit(jax.value_and_grad(lambda p: training.loss_and_sums(nnx.merge(graphdef, p), example)[0]))
    loss, gradient = step(params)
    assert abs(float(loss) / expected.item() - 1) < 1e-5
    reference = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, found in flatten(nnx.to_pure_dict(gradient)).items():
        their = ours.config.family.names[name]
        wanted = torch.stack([reference.pop(their.format(i)) for i in range(2)]) if "{}" in their else reference[their]
        wanted = wanted.numpy().reshape(found.shape)
        assert np.abs(np.asarray(found) - wanted).max() <= 1e-5 * np.abs(wanted).max(), name
    assert not [name for name in reference if ".layers." in name]  # all of them were compared


# ---- the objective, by the library's pieces ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pretrain", "divided", "sft"])
def test_logits_moved_by_hand_give_the_same_loss(mode):
    """`q.shift_right` before the published losses, as in a loop of one's own, is the objective behind the network."""
    divided, mode = mode == "divided", "sft" if mode == "sft" else "pretrain"
    objective = objective_of(configured(mode, **{"training.shift": True}), MASK, MASK)
    shares = 0
    for seed in range(5):
        batch = batch_of(mode, divided=divided, seed=seed)
        example = objective(batch, jax.random.key(seed), jnp.int32(seed))
        logits = np.random.default_rng(seed).normal(size=(B, L, V)).astype(np.float32) * 3
        can = np.asarray(has_predecessor(batch)) & (np.arange(L) < np.asarray(batch.real_length)[:, None])
        can = can & (np.arange(L) >= np.asarray(batch.prompt_length)[:, None])
        noised = np.asarray(example.inputs == MASK)
        assert not (noised & ~can).any()
        assert not can[:, 0].any()
        ce = -jax.nn.log_softmax(q.shift_right(logits))[np.arange(B)[:, None], np.arange(L), batch.tokens]
        p = np.broadcast_to(0.9 * np.asarray(example.t)[:, :1] + 0.1, (B, L))
        if mode == "sft":
            expected = q.sft_loss(ce, noised, p, can.sum(axis=1))
        else:
            expected = q.pretrain_loss(ce, noised, p, is_real=can)
        here = -jax.nn.log_softmax(logits)[np.arange(B)[:, None], np.arange(L), example.targets]
        np.testing.assert_allclose((here * example.weight).sum(), expected, rtol=2e-6)
        assert not np.asarray(example.where)[:, -1].any()
        np.testing.assert_array_equal(np.asarray(example.where)[:, :-1], noised[:, 1:])
        assert example.share.tolist() == ([1] * B if mode == "sft" else can.sum(axis=1).tolist())
        assert example.tokens.tolist() == batch.real_length.tolist()
        shares += noised.sum() / can.sum()
    assert 0.3 < shares / 5 < 0.8


def test_levels_move_with_their_tokens():
    """So that the loss by noise level is that of the tokens that were asked."""
    batch, t = batch_of(), np.linspace(0, 1, B * L, dtype=np.float32).reshape(B, L)
    noised = q.forward_process(3, batch.tokens, MASK, can_noise=np.tile(np.arange(L) > 0, (B, 1)), t=t)
    everything = Learned(*[jnp.ones((B, L), bool)] * 2, *[jnp.full(B, L)] * 2, None)
    how = Corruption(q.NoiseConfig(), MASK, MASK, shift=True)
    example = example_of(batch, noised, everything, q.Mask("full"), how)
    b, i = np.nonzero(np.asarray(noised.is_noised))
    assert len(i)
    for found, wanted in ((example.t, t), (example.targets, batch.tokens), (example.weight, noised.weight / (B * L))):
        np.testing.assert_array_equal(np.asarray(found)[b, i - 1], np.asarray(wanted)[b, i])
    asked = np.asarray(example.where)
    assert asked.sum() == len(i)
    assert not np.asarray(example.weight)[~asked].any()


def test_rows_that_ask_nothing_do_not_count():
    """A document, or an answer without a prompt, of a single token."""
    one = batch_of("sft")._replace(real_length=jnp.asarray([24, 1, 24, 9, 20], jnp.int32))
    example = objective_of(configured("sft", **{"training.shift": True}), MASK, MASK)(
        one, jax.random.key(0), jnp.int32(0)
    )
    assert example.share.tolist() == [1, 0, 1, 1, 1]
    weight = np.asarray(example.weight).sum(axis=1)
    assert np.isfinite(weight).all()
    assert weight[1] == 0
    answers = np.array([17, 21, 12, 6, 19])
    most = 1 / (0.9 * np.asarray(example.t)[:, 0] + 0.1) / answers / 4  # of four rows, not five
    np.testing.assert_allclose(np.asarray(example.weight).max(axis=1)[[0, 2, 3, 4]], most[[0, 2, 3, 4]], rtol=1e-5)
    how = Corruption(q.NoiseConfig(random_length_prob=0), MASK, MASK, shift=True)
    alone = one._replace(real_length=jnp.ones(B, jnp.int32), prompt_length=jnp.zeros(B, jnp.int32))
    empty = masked(alone, jax.random.key(0), jnp.int32(0), how)
    assert not np.asarray(empty.where).any()
    assert not np.asarray(empty.weight).any()


@pytest.mark.parametrize("origin", ["prompt", "start", "aligned"])
def test_where_blocks_of_answers_are_counted_from(origin):
    config = configured("sft", **BLOCKS | {"training.block_attention.origin": origin})
    for evaluation in (False, True):
        objective = objective_of(config, MASK, MASK, for_evaluation=evaluation)
        found = np.asarray(dense(objective(batch_of("sft"), jax.random.key(0), jnp.int32(0)).mask, L))
        for b, (prompt, size) in enumerate(zip(PROMPTS, SIZES, strict=True)):
            block = np.arange(L) // S if origin != "prompt" else np.maximum((np.arange(L) - prompt) // S, -1)
            expected = block[None] <= block[:, None]
            np.testing.assert_array_equal(found[b, :size, :size], expected[:size, :size])
            assert not found[b, :size, size:].any()


# ---- what a run takes from its model, and hands on -----------------------------------------------------------


def changed(source: Path, target: Path, **keys) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | keys))
    return target


def found_of(folder: Path, **changes):
    names = {"shift": "training.shift"}
    more = {names.get(k, f"training.block_attention.{k}"): v for k, v in changes.items()}
    config = read_config(None, settings(folder, Path("unused"), **more))
    return config, find_base_model(config)


def test_a_run_takes_shift_and_origin_from_its_model_or_is_told(start, tmp_path):
    causal = changed(start, tmp_path / "causal", is_causal=True)
    dream = changed(start, tmp_path / "dream", visibility="full", shift=True)
    sdar = changed(start, tmp_path / "sdar", visibility="block_causal", block_length=4, block_origin="start")
    assert read_model_config(causal).is_autoregressive
    ar, own = "the model was autoregressive", "the model's own"
    blocks = {"enabled": True, "visibility": "block_causal"}
    full, first = ("full", None), ("block_causal", 4)
    for folder, asked, expected, said in (
        (start, {}, (*full, False, "prompt"), (f"full ({own})", f"off ({own})")),
        (causal, {}, (*full, False, "prompt"), (f"full ({ar})", f"off ({ar})")),
        (causal, {"shift": "false"}, (*full, False, "prompt"), (f"full ({ar})", f"off (training.shift; {ar})")),
        (causal, {"shift": True}, (*full, True, "prompt"), (f"full ({ar})", f"on (training.shift; {ar})")),
        (causal, {**blocks, "block_length": 4, "origin": "start"}, (*first, False, "start"),
         (f"block_causal in blocks of 4 from position 0 (training.block_attention; {ar})", f"off ({ar})")),
        (causal, {"enabled": "false"}, (*full, False, "prompt"), (f"full ({ar})", f"off ({ar})")),
        (dream, {}, (*full, True, "prompt"), (f"full ({own})", f"on ({own})")),
        (dream, {"shift": True}, (*full, True, "prompt"), (f"full ({own})", f"on ({own})")),
        (dream, {"shift": "false"}, (*full, False, "prompt"),
         (f"full ({own})", f"off (training.shift; {own} was on)")),
        (sdar, {}, (*first, False, "start"), (f"block_causal in blocks of 4 from position 0 ({own})", f"off ({own})")),
        (sdar, {"block_length": 8}, ("block_causal", 8, False, "start"),
         (f"of 8 from position 0 (training.block_attention; {own} was block_causal in blocks of 4 from", "off")),
        (sdar, {"origin": "prompt"}, (*first, False, "prompt"), ("blocks of 4 (training.block_attention; ", "off")),
        (sdar, {"origin": "aligned"}, (*first, False, "aligned"), ("4 from the prompt's end, backward too (", "off")),
        (sdar, {"enabled": True, "visibility": "block_bias"}, ("block_bias", 4, False, "prompt"), ("of 4", "off")),
        (sdar, {"enabled": "false"}, ("full", 4, False, "prompt"), ("enabled is false; the model's own was", "off")),
    ):  # fmt: skip
        config, base = found_of(folder, **asked)
        c = base.config
        assert (c.visibility, c.block_length, c.shift, c.block_origin) == expected, asked
        assert said[0] in base.visibility, asked
        assert base.shift.startswith(said[1]), asked
        config = settled(config, base.blocks, shift=c.shift)
        assert (config.training.shift, config.training.block_attention.origin) == expected[2:], asked
        (tmp_path / "again.yaml").write_text(as_yaml(config))
        assert read_config(tmp_path / "again.yaml") == config  # what a run writes down can be run again
    origin = "training.block_attention.origin"
    for folder, asked, parts in (
        (start, {"origin": "start"}, (f"{origin} has no effect on a model of visibility full", "set enabled: true")),
        (causal, {"origin": "prompt"}, (f"{origin} has no effect on a model of visibility full",)),
        (causal, {"enabled": True, "origin": "start"}, ("no effect with visibility block_bias", "block_causal")),
        (sdar, {**blocks, "visibility": "block_bias", "origin": "start"}, (f"{origin} has no effect", "block_bias")),
        (sdar, {"enabled": "false", "origin": "start"}, (f"{origin} has no effect", "leave it out, or set enabled")),
        (start, {**blocks, "origin": "middle"}, (f"{origin} 'middle' is unknown", "prompt, start, aligned")),
        (start, {"shift": "maybe"}, ("training.shift", "maybe")),
    ):
        refuses(lambda f=folder, a=asked: found_of(f, **a), *parts)


def test_a_changed_shift_or_origin_is_another_run(start, tmp_path):
    """In the same folder; a fork may be taught it. Runs of before this choice had neither."""
    sdar = changed(start, tmp_path / "sdar", visibility="block_causal", block_length=4)

    def meta_of(**asked):
        config, base = found_of(sdar, **asked)
        config = settled(config, base.blocks, shift=base.config.shift)
        return {"config": flat(config), "model": base.config.to_hf()}, config, base.config

    meta, config, model = meta_of(shift="false")
    for asked, names in (
        ({"shift": True}, ("training.shift False → True", "model's shift False → True")),
        (
            {"origin": "start"},
            ("training.block_attention.origin 'prompt' → 'start'", "block_origin 'prompt' → 'start'"),
        ),
    ):
        _, other, taught = meta_of(**asked)
        refuses(lambda o=other, t=taught: check_same_run(tmp_path, meta, o, t), *names)
        check_fork(tmp_path, meta, other, taught)
    check_same_run(tmp_path, meta, config, model)
    before = {
        "config": {k: v for k, v in meta["config"].items() if k.split(".")[-1] not in ("shift", "origin")},
        "model": {k: v for k, v in meta["model"].items() if k not in ("shift", "block_origin")},
    }
    assert before != meta
    check_same_run(tmp_path, before, config, model)


@pytest.mark.slow
def test_a_run_with_shift_says_so_and_hands_it_on(start, tmp_path, capsys):
    more = {
        "training.shift": True, **BLOCKS, "training.max_steps": 1, "training.max_length": 16,
        "training.batch_size": 4, "dataset.pack_boundaries": True, "evaluation.eval_max_batches": 1,
    }  # fmt: skip
    with on_devices(1):
        train(read_config(None, settings(start, tmp_path / "run", **more)), Look(1, only=True))
    said = capsys.readouterr().out
    assert (
        "blocks of 5 from position 0 (training.block_attention; the model's own was full), shift on (training.shift"
        in said
    )
    documents = len(re.findall("next document", said)) + 1
    assert f"┌ learned, {16 - documents} tokens, all but the first of each document" in said
    run(start, tmp_path / "run", **more)
    config = q.load(tmp_path / "run").config
    assert (config.shift, config.block_origin, config.visibility, config.block_length) == (
        True,
        "start",
        "block_causal",
        5,
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line.get("loss", line.get("eval_loss"))) for line in lines)
    config, base = found_of(tmp_path / "run")
    assert base.shift == "on (the model's own)"  # of the next stage
    with pytest.raises(q.InputError, match=r"training.shift True → False"):
        run(start, tmp_path / "run", **more | {"training.shift": "false"})
