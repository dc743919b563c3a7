"""Optimizers against numpy and torch, 8-bit moments, schedules, frozen parameters, and where state lies."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import DATA, TINY, on_devices
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import qwen3llada_jax as q
from qwen3llada_jax import sharding
from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.model import model
from train import step as training
from train.config.parse import read_config
from train.monitor.jsonl import read_lines
from train.objective import objective_of
from train.objectives.example import DeviceBatch
from train.optim import eight_bit, optimizer
from train.optim import freeze as freezing
from train.run import train

SHAPE = q.ModelConfig(64, 32, 48, 2, 4, 2, 16, mask_token_id=63, tie_word_embeddings=False, attention_bias=True)
ROLES = model.abstract(SHAPE)[2]
PLAIN = {  # nothing but the rule and its decay
    "training.lr": 1e-2, "training.weight_decay": 0.5, "training.grad_clip": 0, "training.warmup_ratio": 0,
    "optim.scheduler": "constant",
}  # fmt: skip
NAMES = ("adamw", "adamw8bit", "lion", "lion8bit", "adafactor", "muon")


def settings(**more):
    values = {"dataset.name": "unused", "model.base_model_path": "unused", **more}
    return read_config(None, [(k, str(v)) for k, v in values.items()])


def draw_like(shapes, seed: int, size: float = 0.1):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(size * draw.normal(size=x.shape), np.float32), shapes)


@pytest.fixture(scope="module")
def shapes():
    return model.abstract(SHAPE)[1]


def follow(tx, params, gradients):
    """Parameters after each update, and the last state; one compile."""

    @jax.jit
    def update(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = jax.jit(tx.init)(params), []
    for gradient in gradients:
        params, state = update(params, state, gradient)
        seen.append(jax.device_get(params))
    return seen, state


# ---- 8-bit codes ---------------------------------------------------------------------------------------------


def paper_code(signed: bool) -> np.ndarray:
    """The dynamic tree of arXiv 2110.02861: 7 powers of ten, twice as many values in each as in the one below."""
    values = [0.0, 1.0]
    for power in range(7):
        ends = np.linspace(0.1, 1, 2 ** (power if signed else power + 1) + 1)
        of_power = 10.0 ** (power - 6) * (ends[:-1] + ends[1:]) / 2
        values += [*of_power, *(-of_power if signed else [])]
    return np.sort(values)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_codes_follow_their_formula_and_lose_no_more_than_the_papers(dtype):
    signed = dtype == jnp.int8
    x = np.random.default_rng(0).normal(size=(3, 5, 96)).astype(np.float32) * np.logspace(-9, 3, 5)[:, None]
    x = (x if signed else x**2).astype(np.float32)
    x[0, 0, :32] = 0  # a block without a scale
    codes, scales = map(np.asarray, eight_bit.encode(jnp.asarray(x), dtype))
    assert (codes.shape, codes.dtype, scales.shape, scales.dtype) == (x.shape, dtype, (3, 5, 3), np.float32)
    back = np.asarray(eight_bit.decode(codes, scales))
    largest, table, theirs = (127 if signed else 255), paper_code(signed), np.zeros_like(x)
    for i in np.ndindex(3, 5):
        for b in range(3):
            block, scale = x[i][32 * b : 32 * b + 32], scales[i][b]
            assert scale == np.abs(block).max()
            c = codes[i][32 * b : 32 * b + 32].astype(float)
            np.testing.assert_allclose(
                back[i][32 * b : 32 * b + 32], np.sign(c) * (np.abs(c) / largest) ** 4 * scale, rtol=1e-5
            )
            if scale == 0:
                assert not c.any()
                continue
            exact = np.sign(block) * largest * (np.abs(block) / scale) ** 0.25
            assert np.abs(c - exact).max() <= (0.5 if signed else 1.0) + 1e-3
            nearest = np.abs(table - (block / scale)[:, None]).argmin(axis=1)
            theirs[i][32 * b : 32 * b + 32] = table[nearest] * scale
    seen = x != 0
    relative = lambda y: np.median(np.abs(y - x)[seen] / np.abs(x)[seen])  # noqa: E731
    assert relative(back) <= 1.1 * relative(theirs)


def test_a_second_moment_never_becomes_zero():
    """Under the paper's code it does, and a first moment that is not zero is then divided by eps alone."""
    x = jnp.asarray([[1.0, 1e-12, 1e-20, 0.0] * 8])
    back = np.asarray(eight_bit.decode(*eight_bit.encode(x, jnp.uint8)))
    np.testing.assert_array_equal(back > 0, np.asarray(x) > 0)
    assert (back[np.asarray(x) > 0] >= np.asarray(x)[np.asarray(x) > 0] * 0.2).all()


def test_blocks_divide_the_last_axis():
    lengths = {1024: 32, 2560: 32, 48: 16, 8: 8, 211: None, 12: None}
    assert {n: eight_bit.block_length((3, n)) for n in lengths} == lengths


@pytest.mark.slow
@pytest.mark.parametrize(("name", "within"), [("adamw8bit", 0.15), ("lion8bit", 0.3)])
def test_8_bit_updates_follow_the_exact_ones(shapes, name, within):
    """Gradients of sizes that differ by a factor of ten and more within a block, half of them noise."""
    params, sizes = draw_like(shapes, 0), draw_like(shapes, 1, 1.0)
    noise = [draw_like(shapes, 2 + i, 1.0) for i in range(40)]
    gradients = [jax.tree.map(lambda s, n: np.exp(2 * s) * (1 + n), sizes, n) for n in noise]
    ends, states = {}, {}
    for kind in (name, name.removesuffix("8bit")):
        config = settings(**PLAIN | {"optim.name": kind, "training.weight_decay": 0})
        seen, states[kind] = follow(optimizer.optimizer(config, 40, ROLES), params, gradients)
        ends[kind] = flatten(jax.tree.map(np.subtract, seen[-1], params))
    for weight, exact in ends[name.removesuffix("8bit")].items():
        error = np.linalg.norm(ends[name][weight] - exact) / np.linalg.norm(exact)
        assert (0 < error < within) if weight.endswith(("_proj", "embed_tokens", "lm_head")) else error < 1e-6, weight
    ours, theirs = (sum(x.nbytes for x in jax.tree.leaves(s)) for s in states.values())
    assert ours <= 0.4 * theirs


# ---- update rules --------------------------------------------------------------------------------------------


def test_adamw_equals_torch(shapes):
    """Clipping, warm-up, decay of matrices alone, and both moments, over six updates."""
    more = {"training.lr": 1e-2, "training.weight_decay": 0.3, "training.grad_clip": 0.5, "training.warmup_ratio": 0.3}
    config = settings(**more, **{"optim.betas": "[0.8, 0.9]", "optim.eps": 1e-4, "optim.scheduler": "linear"})
    params, gradients = draw_like(shapes, 0), [draw_like(shapes, i, 1.0) for i in range(1, 7)]
    seen, _ = follow(optimizer.optimizer(config, 6, ROLES), params, gradients)
    weights = {k: torch.nn.Parameter(torch.tensor(np.asarray(v))) for k, v in flatten(params).items()}
    matrices = [w for k, w in weights.items() if k.endswith(("_proj", "embed_tokens", "lm_head"))]
    others = [w for k, w in weights.items() if not k.endswith(("_proj", "embed_tokens", "lm_head"))]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0}], betas=(0.8, 0.9), eps=1e-4
    )
    rates = [0.5e-2, 1e-2, 1e-2, 0.75e-2, 0.5e-2, 0.25e-2]  # two updates of warm-up, then from the peak to 0
    for gradient, rate in zip(gradients, rates, strict=True):
        for group in reference.param_groups:
            group["lr"] = rate
        for k, g in flatten(gradient).items():
            weights[k].grad = torch.tensor(np.asarray(g))
        torch.nn.utils.clip_grad_norm_(weights.values(), 0.5)
        reference.step()
    for k, end in flatten(seen[-1]).items():
        np.testing.assert_allclose(end, weights[k].detach().numpy(), rtol=1e-4, atol=1e-6, err_msg=k)


def test_lion_equals_its_definition(shapes):
    """Algorithm 2 of arXiv 2302.06675."""
    config = settings(**PLAIN, **{"optim.name": "lion"})
    params, gradients = draw_like(shapes, 0), [draw_like(shapes, i) for i in range(1, 5)]
    seen, _ = follow(optimizer.optimizer(config, 4, ROLES), params, gradients)
    for k, start in flatten(params).items():
        w, m = np.asarray(start, np.float64), 0.0
        decay = 0.5 if k.endswith(("_proj", "embed_tokens", "lm_head")) else 0.0
        for gradient in gradients:
            g = np.asarray(flatten(gradient)[k], np.float64)
            w = w - 1e-2 * (np.sign(0.9 * m + 0.1 * g) + decay * w)
            m = 0.99 * m + 0.01 * g
        np.testing.assert_allclose(flatten(seen[-1])[k], w, atol=1e-6, err_msg=k)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five steps of the quintic iteration on one [out, in] matrix."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_orthogonalizes_each_layer_as_one_matrix(shapes):
    config = settings(**PLAIN, **{"optim.name": "muon"})
    params, gradients = draw_like(shapes, 0), [draw_like(shapes, i) for i in range(1, 4)]
    seen, state = follow(optimizer.optimizer(config, 3, ROLES), params, gradients)
    inputs = {"o_proj": 2, **dict.fromkeys(["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"], 1)}
    for name, axes in inputs.items():
        whole = np.asarray(params["layers"][name], np.float64)
        for layer in range(2):
            outputs = int(np.prod(whole.shape[1 : whole.ndim - axes]))
            w, m = whole[layer].reshape(outputs, -1), 0.0
            for t, gradient in enumerate(gradients, 1):
                g = np.asarray(gradient["layers"][name][layer], np.float64).reshape(outputs, -1)
                m = 0.95 * m + 0.05 * g
                nesterov = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
                w = w - 1e-2 * (0.2 * np.sqrt(max(w.shape)) * newton_schulz(nesterov) + 0.5 * w)
            ours = np.asarray(seen[-1]["layers"][name][layer]).reshape(outputs, -1)
            np.testing.assert_allclose(ours, w, atol=2e-5, err_msg=name)
    adamw, _ = follow(optimizer.optimizer(settings(**PLAIN), 3, ROLES), params, gradients)
    for k, end in flatten(seen[-1]).items():
        if k.split(".")[-1] not in inputs:  # embedding, head, norms and biases are AdamW's
            np.testing.assert_allclose(end, flatten(adamw[-1])[k], atol=1e-7, err_msg=k)
    moments = [s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    assert sum(x.size for s in moments for x in jax.tree.leaves(s.mu)) == sum(x.size for x in jax.tree.leaves(shapes))


def test_adafactor_equals_its_definition_layer_by_layer():
    """arXiv 1804.04235: factored second moment (algorithm 4), decay 1 − t^−0.8, update clipped to an RMS of 1."""
    config = settings(**PLAIN, **{"optim.name": "adafactor"})
    shapes = {"layers": {"gate_proj": jnp.zeros((2, 160, 128)), "mlp_norm": jnp.zeros((2, 128))}}
    params = draw_like(shapes, 0)
    loud = np.float32([1.0, 50.0])  # one layer's size must not touch the other's
    gradients = [
        jax.tree.map(lambda g: g * loud.reshape(2, *(1,) * (g.ndim - 1)), draw_like(shapes, i)) for i in range(1, 5)
    ]
    gradients[-1] = jax.tree.map(lambda g: 9 * g, gradients[-1])  # makes the clipping act
    seen, state = follow(optimizer.optimizer(config, 4, ROLES), params, gradients)
    clipped = 0
    for layer in range(2):
        w, r, c = np.asarray(params["layers"]["gate_proj"][layer], np.float64), 0.0, 0.0
        n, v = np.asarray(params["layers"]["mlp_norm"][layer], np.float64), 0.0
        for t, gradient in enumerate(gradients, 1):
            keep = 1 - t**-0.8
            g = np.asarray(gradient["layers"]["gate_proj"][layer], np.float64)
            r, c = keep * r + (1 - keep) * (g * g).mean(axis=1), keep * c + (1 - keep) * (g * g).mean(axis=0)
            u = g / np.sqrt(np.outer(r, c) / r.mean())
            clipped += np.sqrt((u * u).mean()) > 1.1
            w = w - 1e-2 * (u / max(1.0, np.sqrt((u * u).mean())) + 0.5 * w)
            h = np.asarray(gradient["layers"]["mlp_norm"][layer], np.float64)
            v = keep * v + (1 - keep) * h * h
            n = n - 1e-2 * h / np.sqrt(v) / max(1.0, np.sqrt((h * h / v).mean()))
        np.testing.assert_allclose(seen[-1]["layers"]["gate_proj"][layer], w, atol=2e-6)
        np.testing.assert_allclose(seen[-1]["layers"]["mlp_norm"][layer], n, atol=2e-6)
    assert clipped
    assert sum(x.size for x in jax.tree.leaves(state)) < 0.05 * params["layers"]["gate_proj"].size


def test_moment_dtype_acts_on_the_first_moment(shapes):
    for name in ("adamw", "lion", "muon"):
        tx = optimizer.optimizer(settings(**{"optim.name": name, "optim.moment_dtype": "bfloat16"}), 4, ROLES)
        state = jax.eval_shape(tx.init, shapes)
        for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")):
            if hasattr(s, "mu"):
                assert {x.dtype for x in jax.tree.leaves(s.mu)} == {jnp.dtype("bfloat16")}, name
                assert {x.dtype for x in jax.tree.leaves(getattr(s, "nu", {}))} <= {jnp.dtype("float32")}


# ---- schedules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "more", "expected"),
    [
        ("constant", {}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", {}, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("linear", {"min_lr_ratio": 0.2}, [0.5, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        ("cosine", {}, [0.5, 1, *(0.5 + 0.5 * np.cos(np.pi * np.arange(8) / 8))]),
        ("cosine", {"min_lr_ratio": 0.2}, [0.5, 1, *(0.6 + 0.4 * np.cos(np.pi * np.arange(8) / 8))]),
        ("wsd", {"decay_ratio": 0.4}, [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ("wsd", {"decay_ratio": 0.4, "min_lr_ratio": 0.2}, [0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]),
        ("wsd", {}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),  # the last tenth: one update, from the peak
    ],
)
def test_every_schedule_sets_the_size_of_the_updates(scheduler, more, expected):
    """Lion's updates are ± the rate: read it off them."""
    more = {f"optim.{k}": v for k, v in more.items()}
    config = settings(**{"optim.name": "lion", "optim.scheduler": scheduler, "training.lr": 1e-2,
                         "training.warmup_ratio": 0.2, **more})  # fmt: skip
    tx, params = optimizer.optimizer(config, 10, ROLES), {"norm": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(tx.update)
    for i, rate in enumerate(expected):
        updates, state = update({"norm": jnp.ones(3)}, state, params)
        np.testing.assert_allclose(updates["norm"], -1e-2 * rate, rtol=1e-5)
        assert float(optimizer.schedule(config, 10)(i)) == pytest.approx(1e-2 * rate, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"optim.name": "adafactor", "optim.betas": "[0.9, 0.95]"}, "optim.betas has no effect with optim.name adafac"),
        ({"optim.name": "lion", "optim.eps": 1e-8}, "optim.eps has no effect with optim.name lion; leave it out"),
        ({"optim.name": "adamw8bit", "optim.moment_dtype": "bfloat16"}, "optim.moment_dtype has no effect"),
        ({"optim.moment_dtype": "float16"}, "optim.moment_dtype 'float16' is unknown"),
        ({"optim.decay_ratio": 0.1}, "optim.decay_ratio has no effect with optim.scheduler cosine"),
        ({"optim.scheduler": "constant", "optim.min_lr_ratio": 0.1}, "optim.min_lr_ratio has no effect"),
        ({"optim.min_lr_ratio": 2}, "optim.min_lr_ratio must lie in [0, 1]"),
        ({"optim.scheduler": "wsd", "optim.decay_ratio": 0}, "optim.decay_ratio must lie in (0, 1]"),
        ({"optim.scheduler": "wsd", "training.warmup_ratio": 0.95}, "exceed 1 together"),
        ({"optim.name": "adam8bit"}, "optim.name 'adam8bit' is unknown; choose one of adamw, adamw8bit"),
        ({"optim.eps": 0}, "optim.eps must be above 0"),
    ],
)
def test_keys_without_effect_are_refused(changes, part):
    with pytest.raises(q.InputError) as caught:
        settings(**changes)
    assert part in str(caught.value)


# ---- frozen parameters ---------------------------------------------------------------------------------------


def test_freeze_patterns(shapes):
    marks = flatten(
        freezing.frozen(shapes, ROLES, ["embed_tokens", "layers.0-1.k_*", "layers.1.*_proj", "layers.*_norm"])
    )
    whole = {k for k, mark in marks.items() if mark is True}
    norms = {"layers.input_norm", "layers.q_norm", "layers.k_norm", "layers.mlp_norm"}
    assert whole == {"embed_tokens", "layers.k_proj", "layers.k_bias", *norms}  # both layers are the whole array
    single = {k: mark.tolist() for k, mark in marks.items() if not isinstance(mark, bool)}
    assert single == {f"layers.{k}_proj": [False, True] for k in ("q", "v", "o", "gate", "up", "down")}


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("layer.0.*", "'layer.0.*' matches no parameter; there are embed_tokens, "),
        ("layers.0.x_proj", "'layers.0.x_proj' matches no parameter"),
        ("layers.1-2.*", "'layers.1-2.*': the model's layers are 0 to 1"),
        ("layers.1-0.*", "the model's layers are 0 to 1"),
        ("*", "leaves nothing to train"),
    ],
)
def test_freeze_patterns_that_cannot_be(shapes, pattern, part):
    tx = optimizer.optimizer(settings(**{"training.freeze": f'["{pattern}"]'}), 4, ROLES)
    with pytest.raises(q.InputError) as caught:
        training.state_shardings(SHAPE, tx, sharding.make_mesh())
    assert part in str(caught.value)


def test_frozen_parts_have_no_gradient_no_decay_and_no_state():
    """On ½ Σ w²; the norm that clipping sees is that of the one layer that is trained."""
    patterns = ["embed_tokens", "layers.0.*"]
    params = {"embed_tokens": jnp.full((4, 8), 3.0), "layers": {"up_proj": jnp.full((2, 4, 4), 2.0)}}
    gradient = jax.grad(lambda p: optax.tree.norm(freezing.stop_gradients(p, ROLES, patterns), squared=True) / 2)(
        params
    )
    trained = np.float32([0, 1]).reshape(2, 1, 1) * np.ones((2, 4, 4))
    np.testing.assert_array_equal(gradient["embed_tokens"], 0)
    np.testing.assert_array_equal(gradient["layers"]["up_proj"], 2 * trained)
    config = settings(**PLAIN | {"training.freeze": str(patterns), "training.grad_clip": 1.0, "optim.betas": "[0, 0]",
                                 "optim.eps": 1.0})  # fmt: skip
    seen, state = follow(optimizer.optimizer(config, 4, ROLES), params, [gradient])
    clipped = 2 / 8  # 16 twos have a norm of 8
    end = 2 - 1e-2 * (clipped / (clipped + 1) + 0.5 * 2)
    np.testing.assert_array_equal(seen[0]["embed_tokens"], params["embed_tokens"])
    np.testing.assert_array_equal(seen[0]["layers"]["up_proj"][0], params["layers"]["up_proj"][0])
    np.testing.assert_allclose(seen[0]["layers"]["up_proj"][1], end, rtol=1e-6)
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * 32 + 2  # two moments, two counters


def steps_on_one_batch(config, params, steps: int):
    """(state, metrics of each step) of a small model trained on the same rows again and again."""
    mesh = jax.make_mesh((1, 1, 1), sharding.MESH_AXES, (AxisType.Auto,) * 3, devices=jax.devices()[:1])
    tx = optimizer.optimizer(config, 60, ROLES)  # whatever `steps`, so that a second call finds its program compiled
    graphdef, _, _ = model.abstract(SHAPE)
    _, shardings = training.state_shardings(SHAPE, tx, mesh)
    draw = np.random.default_rng(5)
    tokens = jnp.asarray(draw.integers(0, 60, (8, 1)) + np.arange(16) % 4, jnp.int32)
    batch = DeviceBatch(tokens, jnp.zeros(8, jnp.int32), jnp.full(8, 16, jnp.int32), jnp.arange(8))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings["params"])
        opt = jax.jit(tx.init, out_shardings=shardings["opt"])(placed)
        state = {"params": placed, "opt": opt, "step": jnp.int32(0)}
        step_fn = training.make_train_step(
            graphdef, config, tx, shardings, jax.random.key(0), objective_of(config, 63, 60)
        )
        seen = []
        for _ in range(steps):
            state, metrics = step_fn(state, batch)
            seen.append({k: float(v) for k, v in metrics.items() if k != "sums"})
    assert step_fn._cache_size() == 1
    return state, seen


@pytest.mark.slow
def test_frozen_parameters_stay_bit_for_bit_and_are_not_counted(shapes):
    """Decay, moments and the norm that clipping sees leave them out."""
    more = {"training.lr": 1e-2, "training.weight_decay": 0.5, "training.warmup_ratio": 0, "training.max_length": 16,
            "training.noise.random_length_prob": 0}  # fmt: skip
    params = draw_like(shapes, 3)
    patterns = ["embed_tokens", "layers.0.*", "lm_head"]
    config = settings(**more, **{"training.freeze": str(patterns), "training.grad_clip": 1e-3})
    state, metrics = steps_on_one_batch(config, params, 3)
    before, after = flatten(params), flatten(state["params"])
    for k, mark in flatten(freezing.frozen(shapes, ROLES, patterns)).items():
        same = np.asarray(before[k]) == np.asarray(after[k])
        if mark is True:
            assert same.all(), k
        elif mark is False:
            assert not same.all(), k
        else:
            assert same[0].all(), k
            assert not same[1].all(), k
    adam = next(s for s in jax.tree.leaves(state["opt"], is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    trained = {k for k in before if k not in ("embed_tokens", "lm_head")}
    assert len(jax.tree.leaves(adam.mu)) == len(jax.tree.leaves(adam.nu)) == len(trained)
    assert all(not np.asarray(x[0]).any() for x in jax.tree.leaves(adam.mu["layers"]))
    # The first moment after one clipped update is (1 − b1) times a gradient of norm grad_clip.
    state, first = steps_on_one_batch(config, params, 1)
    adam = next(s for s in jax.tree.leaves(state["opt"], is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    assert float(optax.global_norm(adam.mu)) == pytest.approx(0.1 * 1e-3, rel=1e-4)
    assert first[0]["grad_norm"] > 1e-3
    assert first[0]["loss"] == metrics[0]["loss"]


# ---- where state lies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("freeze", [[], ["embed_tokens", "layers.0.q_proj"]])
def test_state_lies_like_its_parameters(sizes, name, freeze):
    wide = q.ModelConfig(64, 256, 384, 2, 4, 2, 128, mask_token_id=63)
    mesh = sharding.make_mesh(*sizes)
    tx = optimizer.optimizer(settings(**{"optim.name": name, "training.freeze": str(freeze)}), 4, ROLES)
    shapes, shardings = training.state_shardings(wide, tx, mesh)
    jax.tree.map(lambda x, s: s.shard_shape(x.shape), shapes["opt"], shardings["opt"])  # raises where it does not fit
    of_params = {k: (x.shape, s) for (k, x), s in zip(flatten(shapes["params"]).items(),
                                                     flatten(shardings["params"]).values(), strict=True)}  # fmt: skip
    moments = [s for s in jax.tree.leaves(shardings["opt"], is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    seen = 0
    for state in moments:
        for moment in (state.mu, getattr(state, "nu", {})):
            codes = moment.codes if isinstance(moment, eight_bit.Moment) else moment
            for k, where in flatten(codes).items():
                if isinstance(where, NamedSharding):
                    assert where == of_params[k][1], k
                    seen += 1
            if isinstance(moment, eight_bit.Moment):
                for k, where in flatten(moment.scales).items():
                    if isinstance(where, NamedSharding):  # 256 / 32 blocks divide by 8 and by 4
                        assert where.spec == of_params[k][1].spec, k
    moments_of_each = {"adamw": 2, "adamw8bit": 2, "lion": 1, "lion8bit": 1, "muon": 1, "adafactor": 0}[name]
    arrays = len(of_params) - ("embed_tokens" in freeze)
    adams = sum(not k.endswith("_proj") for k in of_params) - ("embed_tokens" in freeze) if name == "muon" else 0
    assert seen == moments_of_each * arrays + adams


def test_scales_whose_blocks_do_not_divide_are_everywhere(shapes):
    """hidden_size 32 is one block: its scale cannot be split eight ways, its codes are."""
    tx = optimizer.optimizer(settings(**{"optim.name": "adamw8bit"}), 4, ROLES)
    _, shardings = training.state_shardings(SHAPE, tx, sharding.make_mesh(1, 8, 1))
    state = next(s for s in jax.tree.leaves(shardings["opt"], is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    assert state.mu.codes["layers"]["q_proj"].spec == P(None, "tensor", None, "fsdp")
    assert state.mu.scales["layers"]["q_proj"].spec == P(None, "tensor", None, None)
    assert isinstance(state.nu.scales["norm"], optax.MaskedNode)


def test_factors_of_adafactor_are_split_along_the_axes_they_keep():
    wide = q.ModelConfig(64, 256, 384, 2, 4, 2, 128, mask_token_id=63)
    tx = optimizer.optimizer(settings(**{"optim.name": "adafactor"}), 4, ROLES)
    _, shardings = training.state_shardings(wide, tx, sharding.make_mesh(1, 4, 2))
    state = next(s for s in jax.tree.leaves(shardings["opt"], is_leaf=lambda s: hasattr(s, "v_row"))
                 if hasattr(s, "v_row"))  # fmt: skip
    both = {state.v_row["layers"]["gate_proj"].spec, state.v_col["layers"]["gate_proj"].spec}  # [2, 384] and [2, 256]
    assert both == {P(None, "tensor"), P(None, "fsdp")}
    assert state.v["layers"]["gate_proj"].spec == P()  # a placeholder of one number


def test_8_bit_updates_need_no_communication_where_blocks_are_whole():
    mesh = sharding.make_mesh(1, 4, 2)
    tx = eight_bit.in_8_bits(optax.scale_by_adam(0.9, 0.95), lambda p: jax.tree.map(lambda _: True, p))
    params = {"w": 0.1 * jax.random.normal(jax.random.key(0), (8, 256))}
    of_params = {"w": NamedSharding(mesh, P("tensor", "fsdp"))}
    of_state = optimizer.state_shardings(tx, params, of_params)
    state = jax.device_put(tx.update(params, tx.init(params), params)[1], of_state)
    update = jax.jit(tx.update, out_shardings=(of_params, of_state))
    with jax.set_mesh(mesh):
        text = update.lower(jax.device_put(params, of_params), state).compile().as_text()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in text


# ---- whole runs ----------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_lowers_the_loss(shapes, name):
    more = {"training.lr": 3e-3 if name.startswith("lion") else 1e-2, "optim.name": name, "training.max_length": 16}
    params = draw_like(shapes, 3)
    _, metrics = steps_on_one_batch(settings(**more), params, 60)
    losses = [m["ce"] for m in metrics]
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["adamw8bit", *(pytest.param(name, marks=pytest.mark.soak) for name in ("muon", "adafactor"))]
)
def test_a_run_goes_on_bit_for_bit(tmp_path, name):
    """Codes, scales, factors and frozen parameters through a checkpoint."""
    (tmp_path / "text.txt").write_text((DATA / "shakespeare" / "valid.txt").read_text()[:8000])

    def run(out: Path) -> dict[str, np.ndarray]:
        with on_devices(1):
            train(
                settings(**{
                    "model.base_model_path": TINY, "model.mask_token_id": "auto", "dataset.name": tmp_path / "text.txt",
                    "project.output_dir": out, "training.max_length": 16, "training.batch_size": 2,
                    "training.max_steps": 4, "training.save_steps": 2, "evaluation.do_eval_loss": False,
                    "optim.name": name, "training.freeze": '["embed_tokens", "layers.0-1.*"]', "evaluation.steps": 1,
                })
            )  # fmt: skip
        return flatten(model_folder.load_params(out, model_folder.read_model_config(out)))

    whole = run(tmp_path / "run")
    assert [r["step"] for r in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    (tmp_path / "run" / "checkpoints" / "4").rename(tmp_path / "gone")
    again = run(tmp_path / "run")
    start = flatten(model_folder.load_params(TINY, model_folder.read_model_config(TINY), "float32"))
    for k, value in whole.items():
        assert np.asarray(value).tobytes() == np.asarray(again[k]).tobytes(), k
        frozen = slice(None) if k == "embed_tokens" else slice(0, 2) if k.startswith("layers.") else slice(0, 0)
        np.testing.assert_array_equal(np.asarray(value)[frozen], np.asarray(start[k])[frozen], err_msg=k)
    assert (np.asarray(whole["layers.q_proj"])[2:] != np.asarray(start["layers.q_proj"])[2:]).any()
