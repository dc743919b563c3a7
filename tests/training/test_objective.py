"""What is trained on: examples by the formulas, block lengths as data, an objective of one's own in the same step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT
from flax import nnx

import qwen3llada_jax as q
from qwen3llada_jax import diffusion, sharding
from qwen3llada_jax.model import model
from train import step as training
from train.config.parse import read_config
from train.objective import objective_of
from train.objectives.example import DeviceBatch, Example
from train.objectives.masked import example_of, masked
from train.objectives.noising import Corruption, Learned

SHAPE = q.ModelConfig(64, 32, 48, 2, 4, 2, 8)
B, L, MASK, LIVE = 4, 16, 63, 60


def config_of(**more):
    values = {"model.base_model_path": "x", "dataset.name": "x", "training.max_length": L, "training.batch_size": B}
    return read_config(None, [(k, str(v)) for k, v in {**values, **more}.items()])


def batch_of(prompts=(0,) * B, sizes=(L,) * B) -> DeviceBatch:
    tokens = np.random.default_rng(0).integers(0, LIVE, (B, L))
    return DeviceBatch(*(jnp.asarray(x, jnp.int32) for x in (tokens, prompts, sizes, np.arange(B))))


def trained(objective, *, updates: int, pieces: int = 1):
    """(program of the step, metrics of each update, parameters before each), from the same weights on the same rows."""
    config = config_of(**{"training.gradient_accumulation_steps": pieces})
    mesh, tx = sharding.make_mesh(devices=jax.devices()[:1]), optax.sgd(0.5)
    graphdef, _, _ = model.abstract(SHAPE)
    _, shardings = training.state_shardings(SHAPE, tx, mesh)
    metrics, before = [], []
    with jax.set_mesh(mesh):
        step_fn = training.make_train_step(graphdef, config, tx, shardings, jax.random.key(1), objective)
        params = nnx.to_pure_dict(nnx.state(q.Qwen3LLaDA(SHAPE, rngs=nnx.Rngs(0)), nnx.Param))
        state = {"params": params, "opt": tx.init(params), "step": jnp.int32(0)}
        state = jax.device_put(state, shardings)
        for _ in range(updates):
            before.append(jax.tree.map(np.asarray, state["params"]))
            state, seen = step_fn(state, batch_of())
            metrics.append(jax.device_get(seen))
    return step_fn, metrics, before


def network(params):
    return nnx.merge(model.abstract(SHAPE)[0], params)


def test_an_example_has_the_levels_of_its_tokens():
    batch, t = batch_of(), np.linspace(0, 1, B * L, dtype=np.float32).reshape(B, L)
    for levels in (t, t[:, 0]):
        noised = q.forward_process(3, batch.tokens, MASK, q.NoiseConfig(at_least_one=False), t=levels)
        everything = Learned(*[jnp.ones((B, L), bool)] * 2, *[batch.real_length] * 2, None)
        how = Corruption(q.NoiseConfig(), MASK, LIVE)
        example = example_of(batch, noised, everything, q.Mask("full"), how)
        np.testing.assert_array_equal(example.t, levels if levels.ndim == 2 else np.repeat(levels[:, None], L, axis=1))


# ---- those that there are ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pretrain", "sft"])
def test_weights_make_the_published_losses(mode):
    config = config_of(**{"training.mode": mode, "training.noise.random_length_prob": 0})
    prompts, sizes = ((3, 5, 1, 8), (16, 12, 9, 10)) if mode == "sft" else ((0,) * B, (16, 12, 9, 10))
    batch = batch_of(prompts, sizes)
    example = objective_of(config, MASK, LIVE)(batch, jax.random.key(1), jnp.int32(3))
    ce = np.random.default_rng(1).exponential(3, (B, L)).astype(np.float32)
    p = diffusion.noise_probability(example.t, config.training.noise)
    is_real = np.arange(L)[None] < np.array(sizes)[:, None]
    if mode == "sft":
        expected = q.sft_loss(ce, example.where, p, np.array(sizes) - prompts)
        assert example.share.tolist() == [1] * B
    else:
        expected = q.pretrain_loss(ce, example.where, p, is_real=is_real)
        assert example.share.tolist() == list(sizes)
    np.testing.assert_allclose((ce * np.asarray(example.weight)).sum(), expected, rtol=1e-6)
    assert example.tokens.tolist() == list(sizes)
    assert not (np.asarray(example.where) & ~is_real).any()
    np.testing.assert_array_equal(example.inputs == example.targets, ~example.where)


def test_evaluation_is_the_same_every_time_and_spreads_its_levels():
    config = config_of(**{"training.noise.reweight_cap": 2, "training.noise.random_length_prob": 1})
    objective = objective_of(config, MASK, LIVE, for_evaluation=True)
    batch = batch_of()._replace(row_ids=jnp.arange(7, 7 + B))
    example = objective(batch, jax.random.key(0), jnp.int32(0))
    levels = (np.arange(7.5, 7.5 + B) * (np.sqrt(5) - 1) / 2) % 1
    np.testing.assert_allclose(example.t, np.repeat(levels[:, None], L, axis=1), atol=1e-6)
    assert example.tokens.tolist() == [L] * B  # no row is cut
    weight = np.asarray(example.weight)[np.asarray(example.where)] * B * L
    assert weight.max() > 2  # nor capped


def test_the_steps_know_no_mode():
    for name in ("step", "evaluate", "loop"):
        assert "training.mode" not in (ROOT / "train" / f"{name}.py").read_text(), name


# ---- block lengths as data -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_schedule_of_block_lengths_is_one_program(pieces):
    """And each of its updates has the loss under that length's mask, written out."""
    lengths = (1, 2, 4, 8, 16)
    how = Corruption(q.NoiseConfig(), MASK, LIVE, q.Mask("block_causal", 1), is_ragged=False)

    def scheduled(batch, key, step):
        rule = dataclasses.replace(how.rule, block_length=jnp.array(lengths)[step])
        return masked(batch, key, step, how._replace(rule=rule))

    loss_of = jax.jit(lambda params, example: training.loss_and_sums(network(params), example)[0])
    step_fn, metrics, before = trained(scheduled, updates=len(lengths), pieces=pieces)
    assert step_fn._cache_size() == 1
    for number, length in enumerate(lengths):
        example = scheduled(batch_of(), jax.random.key(1), jnp.int32(number))
        block = np.arange(L) // length
        allowed = block[None, :, None] >= block[None, None, :]
        expected = loss_of(before[number], example._replace(mask=allowed))
        np.testing.assert_allclose(metrics[number]["loss"], expected, rtol=1e-5)
        other = loss_of(before[number], example._replace(mask=np.ones_like(allowed)))
        assert length == L or abs(other - expected) > 1e-4 * expected


# ---- one of one's own ----------------------------------------------------------------------------------------

S = 4


def block_diffusion(batch: DeviceBatch, key, step) -> Example:
    """BD3-LM's: [noisy ; clean], a level for each block, and beside it the clean half's own text at a tenth."""
    keys = diffusion.row_keys(key, step, batch.row_ids)
    t = jnp.repeat(jax.vmap(lambda k: jax.random.uniform(k, L // S))(keys), S, axis=1)
    noised = q.forward_process(keys, batch.tokens, MASK, q.NoiseConfig(at_least_one=False), t=t)
    inputs = jnp.concatenate([noised.tokens, batch.tokens], axis=1)
    where = jnp.concatenate([noised.is_noised, jnp.ones((B, L), bool)], axis=1)
    weight = jnp.concatenate([noised.weight, jnp.full((B, L), 0.1)], axis=1) / (B * L)
    return Example(
        inputs, jnp.tile(batch.tokens, (1, 2)), weight, where, jnp.concatenate([t, jnp.zeros((B, L))], axis=1),
        batch.real_length, batch.real_length, q.Mask("block_diffusion", S),
    )  # fmt: skip


def by_hand(params) -> tuple[float, np.ndarray]:
    """(its loss, mean ce by band of t), each noisy block read by itself behind the clean ones before it."""
    batch = batch_of()
    tokens = np.asarray(batch.tokens)
    example = jax.tree.map(np.asarray, block_diffusion(batch, jax.random.key(1), jnp.int32(0)))
    read = jax.jit(lambda params, given: network(params)(given, q.Mask("block_causal", S)))
    ce = np.zeros((B, 2 * L))
    for end in range(S, L + 1, S):
        block = slice(end - S, end)
        for half, text in ((0, example.inputs[:, block]), (L, tokens[:, block])):
            given = np.concatenate([tokens[:, : end - S], text], axis=1)
            logits = read(params, given)[:, -S:]
            found = optax.softmax_cross_entropy_with_integer_labels(logits, batch.tokens[:, block])
            ce[:, half + end - S : half + end] = found
    asked = example.where
    bands = [ce[asked & (example.t * 4 >= i) & (example.t * 4 < i + 1)].mean() for i in range(4)]
    noisy = sum(ce[b, i] / (0.999 * example.t[b, i] + 1e-3) for b in range(B) for i in range(L) if asked[b, i])
    return (noisy + 0.1 * ce[:, L:].sum()) / (B * L), np.array(bands)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_an_objective_of_ones_own_goes_through_the_same_step(pieces):
    """Twice as long as the rows, levels of tokens, weights of positions, under any accumulation."""
    _, (metrics,), (params,) = trained(block_diffusion, updates=1, pieces=pieces)
    loss, bands = by_hand(params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose([metrics[f"ce_t{i}"] for i in range(4)], bands, rtol=1e-5)
    assert metrics["sums"]["weight"] == metrics["sums"]["tokens"] == B * L
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        sums = training.make_eval_step(model.abstract(SHAPE)[0], block_diffusion)(params, batch_of())
    assert float(sums["loss"] / sums["weight"]) > 0
