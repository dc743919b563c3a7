"""Objectives mixed by weight: which one an update draws, that it trains that one alone, and what is told of it."""

import dataclasses
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import refuses
from flax import nnx
from test_objective import LIVE, MASK, batch_of, config_of
from test_run_numbers import lines
from test_shift import configured
from test_train import assert_same, run

import qwen3llada_jax as q
from qwen3llada_jax import sharding
from qwen3llada_jax.model import model
from train import plan
from train import step as training
from train.checkpoint.base_model import blocks_of, settled
from train.checkpoint.resume_check import check_same_run
from train.config.mix import read_mix
from train.config.schema import flat
from train.monitor import interval, model_flops
from train.objective import objective_of, readings_of, trained_objective
from train.objectives.masked import masked
from train.objectives.mixture import Mixture
from train.planning import hlo_analysis
from train.planning.hardware import hardware_of
from train.planning.jaxpr_analysis import traced
from train.reporting.plots import draw

MIX = {
    "training.mix": "masked@0.3, block_diffusion@0.7", "training.objective": "block_diffusion", "training.shift": True,
}  # fmt: skip


SHAPE = q.ModelConfig(64, 16, 24, 1, 2, 1, 8)


def of_run(**more):
    """A configuration as a run of a model without blocks has it."""
    config = config_of(**MIX, **more)
    return settled(config, blocks_of(config, SHAPE)[0], shift=True)


def alone(config, objective, **more):
    t = dataclasses.replace(config.training, objective=objective, mix=None, **more)
    return dataclasses.replace(config, training=t)


# ---- the key -------------------------------------------------------------------------------------------------


def test_a_mix_is_read():
    assert read_mix("block_diffusion@0.7, masked@0.3") == (("block_diffusion", 0.7), ("masked", 0.3))
    assert read_mix(" masked @ .25,block_diffusion@ 75e-2") == (("masked", 0.25), ("block_diffusion", 0.75))
    assert read_mix("masked@0.3333333, block_diffusion@0.6666666")  # by hand, so to 1e-6


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"training.mix": "masked, block_diffusion"}, ("as in block_diffusion@0.7, masked@0.3", "'masked, block_dif")),
        ({"training.mix": "masked@0.5, blocks@0.5"}, ("'blocks' is unknown", "masked, block_diffusion")),
        ({"training.mix": "masked@0.5, masked@0.5"}, ("masked twice",)),
        ({"training.mix": "masked@0.5,"}, ("not 'masked@0.5,'",)),
        ({"training.mix": "masked@1"}, ("leave it out to train masked alone",)),
        ({"training.mix": "masked@0.3, block_diffusion@0.6"}, ("sum to 1, not to 0.9",)),
        ({"training.mix": "masked@0, block_diffusion@1"}, ("above 0, not '0'",)),
        ({"training.mix": "masked@-1, block_diffusion@2"}, ("above 0, not '-1'",)),
        ({"training.mix": "masked@nan, block_diffusion@1"}, ("above 0, not 'nan'",)),
        ({"training.mix": "masked@x, block_diffusion@1"}, ("above 0, not 'x'",)),
        (MIX | {"training.objective": "blocks"}, ("choose one of",)),
        (MIX | {"training.block_attention.causal_context": True}, ("training.block_attention.causal_context", "mix")),
        (MIX | {"training.clean_loss": 0.5}, ("training.clean_loss", "mix")),
        (MIX | {"training.objective": "masked", "training.causal_annealing": 0.5}, ("causal_annealing", "mix")),
        (MIX | {"training.objective": "masked", "training.block_attention.visibility": "block_bias"},
         ("training.mix with block_diffusion", "visibility block_causal")),
        (MIX | {"training.noise.mask_contiguous_region_prob": 0.5}, ("training.mix with block_diffusion noises",)),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused(keys, words):
    refuses(lambda: configured(**keys), *words)


def test_what_the_model_reads_from_left_to_right_is_not_mixed():
    reads = dataclasses.replace(SHAPE, mask_token_id=MASK, visibility="block_causal", block_length=4,
                                causal_context=True)  # fmt: skip
    refuses(lambda: blocks_of(config_of(**MIX), reads), "causal_context: false", "training.mix")
    given_up = config_of(**MIX, **{"training.block_attention.causal_context": False})
    assert blocks_of(given_up, reads)[0].causal_context is False


def test_a_run_goes_on_with_its_mix_alone(tmp_path):
    config = config_of()
    meta = {"config": flat(config), "model": SHAPE.to_hf()}
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, mix=MIX["training.mix"]))
    refuses(lambda: check_same_run(tmp_path, meta, other, SHAPE), "training.mix None → 'masked@0.3, block_dif")
    del meta["config"]["training.mix"]  # of a version that had none
    check_same_run(tmp_path, meta, config, SHAPE)


# ---- which objective an update draws -------------------------------------------------------------------------


def drawn_of(shares, seed, steps):
    mixture = Mixture(tuple("abc"[: len(shares)]), shares, (masked,) * len(shares))
    return np.asarray(jax.vmap(lambda step: mixture.drawn(jax.random.key(seed), step))(jnp.arange(steps)))


@pytest.mark.parametrize("shares", [(0.3, 0.7), (0.5, 0.2, 0.3)])
def test_draws_have_their_shares_and_are_those_of_the_seed(shares):
    steps, found = 4000, drawn_of(shares, 5, 4000)
    for number, share in enumerate(shares):
        assert abs((found == number).mean() - share) < 4 * math.sqrt(share * (1 - share) / steps)
    np.testing.assert_array_equal(drawn_of(shares, 5, 900), found[:900])
    assert (drawn_of(shares, 6, steps) != found).mean() > 0.3
    # Nor does an update depend on the one before.
    pairs = np.corrcoef(found[1:], found[:-1])[0, 1]
    assert abs(pairs) < 4 / math.sqrt(steps)


# ---- the step ------------------------------------------------------------------------------------------------


def step_of(objective, config):
    """The compiled step, under a key, with plain gradient descent: its new parameters tell the gradient."""
    mesh, tx = sharding.make_mesh(devices=jax.devices()[:1]), optax.sgd(0.5)
    _, shardings = training.state_shardings(SHAPE, tx, mesh)
    graphdef = model.abstract(SHAPE)[0]
    return mesh, training.make_train_step(graphdef, config, tx, shardings, jax.random.key(1), objective), tx, shardings


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("pretrain", {"training.block_attention.block_length": 4}),
        pytest.param("sft", {"training.gradient_accumulation_steps": 2, "training.place_bias": 2.0,
                             "training.block_attention.schedule": "2@0.5, 4"}),
    ],
)  # fmt: skip
def test_each_update_is_that_of_the_objective_it_draws(mode, more):
    """Loss, sums and gradient, as if that objective were trained alone; in one program."""
    config = of_run(**{"training.mode": mode, "training.noise.eps": 0.05, **more})
    mixture = trained_objective(config, MASK, LIVE, updates=8)
    assert isinstance(mixture, Mixture)
    assert mixture.names == ("masked", "block_diffusion")
    singles = [objective_of(alone(config, "masked", place_bias=0.0), MASK, LIVE, updates=8),
               objective_of(alone(config, "block_diffusion"), MASK, LIVE, updates=8)]  # fmt: skip
    mesh, mixed, tx, shardings = step_of(mixture, config)
    steps = [step_of(objective, config)[1] for objective in singles]
    batch = batch_of((3, 0, 7, 1), (16, 12, 9, 14)) if mode == "sft" else batch_of()
    with jax.set_mesh(mesh):
        params = nnx.to_pure_dict(nnx.state(q.Qwen3LLaDA(SHAPE, rngs=nnx.Rngs(0)), nnx.Param))

        def result(step_fn, number):
            state = {"params": params, "opt": tx.init(params), "step": jnp.int32(number)}
            return jax.device_get(step_fn(jax.device_put(jax.tree.map(jnp.copy, state), shardings), batch))

        drawn = []
        for number in range(8):
            (state, metrics), others = result(mixed, number), [result(step, number) for step in steps]
            drawn.append(int(metrics["sums"]["updates_of"].argmax()))
            u = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.key(1), number), 2**31 - 1))
            assert drawn[-1] == (u >= 0.3)
            assert metrics["sums"].pop("updates_of").sum() == 1
            alike = others[drawn[-1]]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state, alike[0])
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics, alike[1])
            assert abs(metrics["loss"] / others[1 - drawn[-1]][1]["loss"] - 1) > 1e-3
    assert {*drawn} == {0, 1}
    assert mixed._cache_size() == 1


def test_held_out_losses_are_of_the_one_objective():
    config = of_run()
    ours, its = (objective_of(c, MASK, LIVE, for_evaluation=True) for c in (config, alone(config, "block_diffusion")))
    assert (ours.func, ours.keywords) == (its.func, its.keywords)


# ---- what is told --------------------------------------------------------------------------------------------


def test_means_of_an_interval_are_told_by_objective():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])

    def metrics(loss, weight, drawn, *, taken=True):
        one = jnp.float32(1)
        sums = dict.fromkeys(("ce", "noised", "tokens", "next_ce", "next"), one)
        sums |= {"band_ce": jnp.ones(4), "band_noised": jnp.ones(4), "weight": jnp.float32(weight)}
        sums |= {"updates_of": jax.nn.one_hot(drawn, 2)}
        norms = {"grad_norm": one, "update_norm": one, "param_norm": one}
        return {"sums": sums, "taken": jnp.bool_(taken), "loss": jnp.float32(loss), **norms}

    names = ("masked", "block_diffusion")
    total = interval.fresh(mesh, objectives=2)
    total = interval.add(total, metrics(2.0, 6, 1))
    total = interval.add(total, metrics(math.nan, 6, 0, taken=False))
    total = interval.fresh(mesh, json.loads(json.dumps(interval.to_json(total))), objectives=2)  # a stop in between
    total = interval.add(total, metrics(5.0, 3, 1))
    line = interval.read(total, names)
    assert line["loss_block_diffusion"] == line["loss"] == pytest.approx(27 / 9)
    assert (line["updates_block_diffusion"], line["updates_masked"]) == (2, 0)
    assert "loss_masked" not in line
    line = interval.read(interval.add(total, metrics(8.0, 9, 0)), names)
    assert (line["loss_masked"], line["loss_block_diffusion"]) == pytest.approx((8.0, 3.0))
    assert line["loss"] == pytest.approx((27 + 72) / 18)


def test_the_report_draws_a_curve_of_each_objective():
    records = [{"step": i, "loss": 2.0, **({"loss_masked": 3.0} if i % 2 else {"loss_block_diffusion": 1.0})}
               for i in range(40)]  # fmt: skip
    (axis,) = [
        axis for axis in draw({"run": records}).axes if axis.get_title(loc="left") == "Training loss by objective"
    ]
    assert sorted({line.get_ydata()[0] for line in axis.lines if len(line.get_ydata())}) == [1.0, 3.0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["masked", "block_diffusion"]
    plain = draw({"run": [{"step": i, "loss": 2.0} for i in range(3)]})
    assert not [axis for axis in plain.axes if axis.get_title(loc="left") == "Training loss by objective"]


# ---- whole runs ----------------------------------------------------------------------------------------------

RUN = MIX | {
    "training.block_attention.block_length": 4, "training.objective": "masked", "training.max_steps": 4,
    "evaluation.do_eval_loss": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run of one device in one go."""
    out = tmp_path_factory.mktemp("mix") / "run"
    return out, run(start, out, **RUN)


@pytest.mark.slow
def test_a_run_says_which_objective_it_trained(whole):
    config = q.load(whole[0]).config
    assert (config.visibility, config.block_length, config.shift) == ("block_causal", 4, True)
    drawn = drawn_of((0.3, 0.7), 0, 4)
    assert {*drawn} == {0, 1}
    for record, which in zip(lines(whole[0]), drawn, strict=True):
        name, other = ("masked", "block_diffusion") if which == 0 else ("block_diffusion", "masked")
        assert record[f"loss_{name}"] == record["loss"]
        assert f"loss_{other}" not in record
        assert (record[f"updates_{name}"], record[f"updates_{other}"]) == (1, 0)


@pytest.mark.soak
@pytest.mark.slow
def test_what_goes_on_draws_what_it_would_have_drawn(start, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "checkpoints" / "4")
    assert_same(run(start, out, **RUN), whole[1])
    of = lambda folder: [{k: r[k] for k in r if "loss" in k or "updates" in k} for r in lines(folder)]  # noqa: E731
    assert of(out) == of(whole[0])


@pytest.mark.soak
@pytest.mark.slow
def test_any_mesh_and_accumulation_trains_alike(start, whole, tmp_path):
    spread = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "training.gradient_accumulation_steps": 2}
    run(start, tmp_path / "run", devices=8, **RUN, **spread)
    found, expected = (
        [(r["loss"], r["updates_masked"]) for r in lines(folder)] for folder in (tmp_path / "run", whole[0])
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.soak
@pytest.mark.slow
def test_answers_are_learned_by_both(start, tmp_path):
    rows = [{"prompt": "a" * n, "response": "b" * m} for n, m in ((1, 9), (20, 3), (5, 14), (2, 1)) * 3]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {
        "training.mode": "sft", "dataset.name": tmp_path / "rows.jsonl", "training.max_steps": 8,
        "training.max_length": 64, "evaluation.do_eval_loss": False, "dataset.template": "plain",
        "training.block_attention.block_length": 4,
    }  # fmt: skip
    run(start, tmp_path / "run", **MIX, **more)
    records = lines(tmp_path / "run")
    for name in ("masked", "block_diffusion"):
        found = [r[f"loss_{name}"] for r in records if f"loss_{name}" in r]
        assert found
        assert np.isfinite(found).all()
    assert records[-1]["ce"] < records[0]["ce"]


# ---- what it costs -------------------------------------------------------------------------------------------


def test_branches_count_by_their_shares():
    def f(which, w, x):
        with jax.named_scope("kind"):
            return jax.lax.switch(which, [lambda w, x: jnp.tanh(x @ w), lambda w, x: jnp.tanh(x @ w) @ w], w, x)

    square = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    program = jax.jit(f).trace(jax.ShapeDtypeStruct((), jnp.int32), square, square)
    text, once = program.lower().compile().as_text(), 2 * 16**3
    shares = {"kind/cond": (0.75, 0.25)}
    assert hlo_analysis.matmul_flops(text, {}, shares) == traced(program.jaxpr, {}, shares).total == 1.25 * once
    assert hlo_analysis.hbm_bytes(text, {}, shares) < 0.8 * hlo_analysis.hbm_bytes(text)
    # The compiler may write a conditional anew, without its name: its branches say it.
    nameless = re.sub(r"( conditional\(.*), metadata=\{[^}]*\}", r"\1", text)
    assert nameless != text
    assert hlo_analysis.matmul_flops(nameless, {}, shares) == 1.25 * once
    assert hlo_analysis.matmul_flops(nameless, {}, {"other/cond": (0.75, 0.25)}) == 3 * once
    # Of others every branch, and the dearest.
    assert (hlo_analysis.matmul_flops(text), traced(program.jaxpr, {}).total) == (3 * once, 2 * once)


@pytest.mark.soak
@pytest.mark.slow
def test_a_plan_counts_each_objective_by_its_share():
    V = 64
    shape = q.ModelConfig(V, 32, 48, 2, 4, 2, 8, mask_token_id=V - 1, live_vocab_size=V - 1)
    mixed = of_run(**{
        "training.batch_size": 4, "training.max_length": 32, "training.block_attention.block_length": 4,
        "mesh.data": 1, "mesh.fsdp": 2,
    })  # fmt: skip
    place = hardware_of("cpu:2")
    plans = {}
    for name, config in (("mixed", mixed), *((n, alone(mixed, n)) for n in ("masked", "block_diffusion"))):
        plans[name] = plan.plan(config, shape, place)
        per_row = plans[name].ideal_flops / 4
        assert per_row == model_flops.mean_training_flops_of_row(shape, 32, readings_of(config))
    both = plans["masked"], plans["block_diffusion"]

    def mean(of):
        return 0.3 * of(both[0]) + 0.7 * of(both[1])

    for of in (lambda p: p.ideal_flops, lambda p: p.traced_flops.total, lambda p: p.compiled_flops):
        assert of(plans["mixed"]) == pytest.approx(mean(of), abs=3)
        assert of(both[1]) > 1.2 * of(both[0])
    for of in (lambda p: p.hbm_bytes, lambda p: p.wire_bytes):
        assert of(plans["mixed"]) == pytest.approx(mean(of), rel=0.1)
    largest = max(one.memory.total for one in both)
    assert 0.95 * largest < plans["mixed"].memory.total < 1.2 * largest
    assert plans["mixed"].memory.activations == max(one.memory.activations for one in both)
    assert min(one.memory.activations for one in both) > 0
    assert "in the compiled program" in plan.as_text(plans["mixed"])
