"""Training: the losses it computes, what it keeps, how it stops and goes on, and what bad input gets."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import DATA, assert_one_line_error, on_devices, run_program
from torch_twins import torch_model

import qwen3llada_jax as q
from qwen3llada_jax import cli, sharding
from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.checkpoint.model_folder import read_model_config
from qwen3llada_jax.model import model
from qwen3llada_jax.model.roles import by_role
from train import step as training
from train.checkpoint.base_model import blocks_of, settled
from train.config.parse import as_yaml, read_config
from train.config.schema import Config, flat
from train.data import loader
from train.data.loader import Row
from train.evaluate import evaluate
from train.monitor.jsonl import read_lines
from train.monitor.throughput import MEASURED
from train.objective import DeviceBatch, objective_of
from train.optim.optimizer import is_matrix, optimizer
from train.optim.schedule import schedule
from train.run import Flags, train


def settings(start: Path, out: Path, **more) -> list[tuple[str, str]]:
    values = {
        "project.output_dir": out, "model.base_model_path": start, "model.mask_token_id": "auto",
        "dataset.name": start / "text.txt", "training.max_length": 32, "training.batch_size": 8,
        "training.max_steps": 6, "training.lr": 1e-3, "training.save_steps": 2, "evaluation.steps": 1,
        "evaluation.eval_every_steps": 3, "evaluation.eval_max_batches": 2, "evaluation.eval_name": start / "text.txt",
    }  # fmt: skip
    if more.get("evaluation.do_eval_loss") is False:
        del values["evaluation.eval_name"]
    return [(k, str(v)) for k, v in {**values, **more}.items()]


def run(start: Path, out: Path, *, devices: int = 1, **more) -> dict[str, np.ndarray]:
    """Train in this process on the first of the simulated devices and return the final parameters."""
    with on_devices(devices):
        train(read_config(None, settings(start, out, **more)))
    return params_of(out)


def params_of(folder: Path) -> dict[str, np.ndarray]:
    config = model_folder.read_model_config(folder)
    return {k: np.asarray(v) for k, v in flatten(model_folder.load_params(folder, config)).items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


# ---- the step ------------------------------------------------------------------------------------------------


def example_and_loss(start: Path, **more):
    config = read_config(None, settings(start, Path("unused"), **more))
    config = settled(config, blocks_of(config, read_model_config(start))[0])
    network = q.load(start, "float32")
    draw = np.random.default_rng(0)
    B, L = 8, 32
    is_sft = config.training.mode == "sft"
    tokens, prompts = draw.integers(0, 1000, (B, L)), draw.integers(3, 9, B) if is_sft else np.zeros(B)
    sizes = draw.integers(12, L - 4, B) if is_sft else np.full(B, L)
    if config.pads_answers:  # with EOS to the longest row; what lies behind that only fills the bucket
        sizes = np.full(B, sizes.max())
    batch = DeviceBatch(*(jnp.asarray(x, jnp.int32) for x in (tokens, prompts, sizes, np.arange(B))))
    example = objective_of(config, 1050, 1050)(batch, jax.random.key(1), jnp.int32(3))
    smoothing = config.training.loss_smoothing if config.training.loss_impl == "soft_ce" else 0.0
    loss, _ = training.loss_and_sums(network, example, smoothing=smoothing)
    return batch, example, float(loss)


@pytest.mark.parametrize("mode", ["pretrain", "sft", "sft-no-eos-padding"])
def test_loss_equals_torch_on_the_same_noise(start, mode):
    """The formulas of LLaDA written out with transformers' logits."""
    more = {"training.mode": "pretrain" if mode == "pretrain" else "sft", "training.noise.random_length_prob": 0}
    if mode.endswith("padding"):
        more["training.eos_padding"] = False
    batch, p, loss = example_and_loss(start, **more)
    reference = torch_model(0, vocab_size=1088, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    B, L = batch.tokens.shape
    real = np.asarray(batch.real_length)
    allowed = np.repeat((np.arange(L)[None] < real[:, None])[:, None], L, axis=1)
    mask = torch.where(torch.tensor(allowed)[:, None], 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = reference(torch.tensor(np.asarray(p.inputs)).long(), attention_mask=mask).logits.double()
    ce = -logits.log_softmax(-1).gather(-1, torch.tensor(np.asarray(batch.tokens)).long()[..., None])[..., 0].numpy()
    prob = (1 - 1e-3) * np.asarray(p.t, np.float64) + 1e-3
    m = np.asarray(p.where)
    if mode == "pretrain":
        expected = (m * ce / prob).sum() / (B * L)
    else:
        answer = real - np.asarray(batch.prompt_length)
        assert not (m & (np.arange(L)[None] < np.asarray(batch.prompt_length)[:, None])).any()
        assert not (m & (np.arange(L)[None] >= real[:, None])).any()
        expected = ((m * ce / prob).sum(axis=1) / answer).mean()
    assert abs(loss - expected) <= 2e-6 * expected


@pytest.mark.slow
def test_block_bias_reaches_the_attention(start):
    """Defect of the PyTorch system: `forward` passed no mask, so its block bias never acted."""
    plain = example_and_loss(start)[2]
    blocks = {"training.block_attention.enabled": True, "training.block_attention.block_length": 4}
    losses = [plain]
    for visibility in ("block_bias", "block_causal"):
        losses.append(example_and_loss(start, **blocks, **{"training.block_attention.visibility": visibility})[2])
    assert len({round(x, 4) for x in losses}) == 3
    _, p, _ = example_and_loss(start, **blocks)
    hidden = lambda tokens: q.load(start).hidden(tokens, p.mask)  # noqa: E731
    changed = np.asarray(hidden(p.inputs) != hidden(p.inputs.at[:, 9].set(77))).any(axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(changed), [8, 9, 10, 11])


@pytest.mark.slow
def test_soft_ce_and_every_noise_option_change_the_loss(start):
    base = example_and_loss(start)[2]
    options = {
        "training.loss_impl": "soft_ce", "training.noise.schedule": "cosine", "training.noise.min_masking_rate": 0.7,
        "training.noise.reweight_cap": 1.1, "training.noise.mask_contiguous_region_prob": 1.0,
        "training.noise.noise_type": "random_replace", "training.noise.random_length_prob": 1.0,
        "training.noise.antithetic": True, "training.noise.eps": 0.5,
    }  # fmt: skip
    for name, value in options.items():
        assert abs(example_and_loss(start, **{name: value})[2] - base) > 1e-4, name
    assert example_and_loss(start, **{"training.loss_impl": "dllm"})[2] == base


@pytest.mark.slow
def test_moments_lie_where_their_parameters_do_and_the_step_compiles_once(start):
    config = read_config(None, settings(start, Path("unused")))
    architecture = model_folder.read_model_config(start)
    mesh = sharding.make_mesh(2, 2, 2)
    graphdef, _, roles = model.abstract(architecture)
    tx = optimizer(config, 10, roles)
    _, shardings = training.state_shardings(architecture, tx, mesh)
    with jax.set_mesh(mesh):
        params = model_folder.load_params(start, architecture, "float32", mesh)
        opt = jax.jit(tx.init, out_shardings=shardings["opt"])(params)
        state = {"params": params, "opt": opt, "step": jax.device_put(jnp.int32(0), shardings["step"])}
        step_fn = training.make_train_step(
            graphdef, config, tx, shardings, jax.random.key(0), objective_of(config, 1050, 1050)
        )
        spread = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
        zeros = jnp.zeros(8, jnp.int32)
        batch = DeviceBatch(jnp.zeros((8, 32), jnp.int32), zeros, zeros + 32, jnp.arange(8))
        batch = jax.tree.map(lambda x: jax.device_put(x, spread), batch)
        for _ in range(3):
            state, _ = step_fn(state, batch)
    assert step_fn._cache_size() == 1
    adam = next(s for s in jax.tree.leaves(state["opt"], is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    for moments in (adam.mu, adam.nu):
        for moment, param in zip(jax.tree.leaves(moments), jax.tree.leaves(state["params"]), strict=True):
            assert moment.sharding == param.sharding
            assert moment.dtype == jnp.float32


def test_only_matrices_are_decayed():
    _, shapes, roles = model.abstract(q.ModelConfig(64, 16, 32, 2, 2, 1, 8, attention_bias=True))
    decayed = {name for name, yes in flatten(by_role(roles, is_matrix)(shapes)).items() if yes}
    assert decayed == {"embed_tokens", "lm_head"} | {
        f"layers.{n}_proj" for n in ["q", "k", "v", "o", "gate", "up", "down"]
    }


@pytest.mark.parametrize(("shape", "middle", "last"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)])
def test_schedules(start, shape, middle, last):
    more = {"optim.scheduler": shape, "training.warmup_ratio": 0.1, "training.lr": 2.0}
    rate = schedule(read_config(None, settings(start, Path("unused"), **more)), 110)
    assert float(rate(0)) == pytest.approx(2.0 / 11)
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(11 + 99 / 2)) == pytest.approx(2.0 * middle, abs=1e-6)
    assert float(rate(110)) == pytest.approx(2.0 * last, abs=1e-6)


# ---- whole runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """A run of six updates and its final parameters."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, run(start, out)


@pytest.mark.slow
def test_run_folder_is_a_model_folder(finished):
    out, _ = finished
    network = q.load(out)
    assert network.config.mask_token_id == 1050
    answer = q.generate(network, [[1, 2]], q.SamplerConfig(gen_length=8, steps=4)).answers()[0]
    assert max(answer) < 1050
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["2", "4", "6"]
    records = read_lines(out / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "eval_loss" in r] == [2, 3, 4, 6]


def test_tied_head_stays_one_array_after_training(finished):
    """Defect of the PyTorch system: the head was a copy, so training untied it."""
    out, params = finished
    assert "lm_head" not in params
    network = q.load(out)
    assert network.head is network.embed_tokens[...]


@pytest.mark.slow
def test_held_out_noise_is_the_same_every_time(start, tmp_path):
    run(start, tmp_path / "run", **{"training.lr": 1e-12, "evaluation.eval_every_steps": 1})
    losses = [r["eval_loss"] for r in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in r]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.slow
def test_resume_keeps_schedule_noise_and_order(start, finished, tmp_path, capsys):
    """Defect of the PyTorch system: resuming lost the LR schedule, the random state and the data order."""
    out, params = finished
    shutil.copytree(out, tmp_path / "run")
    for step in ("4", "6"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step)
    again = run(start, tmp_path / "run")
    assert "going on from update 2" in capsys.readouterr().err
    assert_same(again, params)
    whole, resumed = (read_lines(folder / "metrics.jsonl") for folder in (out, tmp_path / "run"))
    assert [{k: v for k, v in r.items() if k not in MEASURED} for r in whole] == [
        {k: v for k, v in r.items() if k not in MEASURED} for r in resumed
    ]
    run(start, tmp_path / "run")
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_held_out_loss_does_not_depend_on_the_micro_batch(start, finished, tmp_path):
    out, _ = finished
    run(start, tmp_path / "run", **{"training.micro_batch_size": 2})
    ours, theirs = (
        [r["eval_loss"] for r in read_lines(folder / "metrics.jsonl") if "eval_loss" in r]
        for folder in (out, tmp_path / "run")
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"training.eos_padding": "false"}])
def test_held_out_loss_of_answers_does_not_depend_on_the_micro_batch(start, more):
    """The EOS that pad a batch are part of its answers."""
    rows = loader.collect([Row(np.arange(size, dtype=np.int32), 3) for size in (5, 6, 7, 9, 12, 18, 24, 30)], "")
    architecture = model_folder.read_model_config(start)
    mesh, found = sharding.make_mesh(devices=jax.devices()[:1]), []
    for size in (8, 4, 2):
        more = {**more, "training.mode": "sft", "training.micro_batch_size": size, "evaluation.eval_max_batches": 1}
        config = read_config(None, settings(start, Path("unused"), **more))
        graphdef, _, _ = model.abstract(architecture, runtime=q.Runtime("float32"))
        eval_fn = training.make_eval_step(graphdef, objective_of(config, 1050, 1050, for_evaluation=True))
        params = model_folder.load_params(start, architecture, "float32", mesh)
        with jax.set_mesh(mesh):
            found.append(evaluate(eval_fn, params, rows, 1024, config, mesh)["eval_loss"])
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


def test_another_model_is_refused_on_resume(start, finished, tmp_path):
    out, _ = finished
    shutil.copytree(start, tmp_path / "other")
    config = json.loads((start / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e3
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(q.InputError, match=r"model's rope_theta 1000000\.0 → 5000\.0"):
        run(start, out, **{"model.base_model_path": tmp_path / "other"})


def test_a_model_folder_is_not_taken_for_a_run(start, tmp_path):
    (tmp_path / "model" / "params").mkdir(parents=True)
    with pytest.raises(q.InputError, match="is a model folder, not a run"):
        run(start, tmp_path / "model")


def test_changed_settings_are_refused_on_resume(start, finished):
    out, _ = finished
    with pytest.raises(q.InputError, match=r"training.lr 0.001 → 0.5"):
        run(start, out, **{"training.lr": 0.5})
    with pytest.raises(q.InputError, match="holds the checkpoints of another run"):
        run(start, out, **{"training.resume_from": "never"})


@pytest.mark.slow
def test_sft_run_and_samples(start, tmp_path):
    more = {
        "training.mode": "sft", "dataset.name": DATA / "dialogue" / "valid.jsonl", "training.max_length": 64,
        "evaluation.eval_name": DATA / "dialogue" / "valid.jsonl",
        "training.max_steps": 2, "evaluation.prompts": '["Who is it?"]', "evaluation.max_new_tokens": 8,
        "evaluation.sampling_steps": 4, "evaluation.eval_every_steps": 2,
        "training.block_attention.enabled": True, "training.block_attention.block_length": 8,
    }  # fmt: skip
    run(start, tmp_path / "run", **more)
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite([r["loss"] for r in records if "loss" in r]).all()
    samples = read_lines(tmp_path / "run" / "samples.jsonl")
    assert [s["prompt"] for s in samples] == ["Who is it?"]
    config = model_folder.read_model_config(tmp_path / "run")
    assert (config.visibility, config.block_length) == ("block_bias", 8)


# ---- configuration -------------------------------------------------------------------------------------------


def test_yaml_of_the_pytorch_system_is_read(tmp_path):
    (tmp_path / "old.yaml").write_text(
        """
project: {seed: 1, output_dir: out, log_dir: logs, device: cpu}
model: {base_model_path: a, qwen3llada_model_path: b, mask_token_id: 126336}
training:
  mode: sft
  loss_impl: soft_ce
  loss_smoothing: 0.1
  epochs: 1
  max_steps: 10
  batch_size: 8
  micro_batch_size: 2
  max_length: 64
  lr: 1e-4
  weight_decay: 0.1
  warmup_ratio: 0.1
  gradient_accumulation_steps: 4
  fp16: false
  bf16: true
  save_steps: 5
  save_total_limit: 2
  resume_from: null
  noise: {eps: 1e-3, schedule: cosine, random_length_prob: 0.0, noise_type: mask, min_masking_rate: 0.1,
          mask_contiguous_region_prob: 0.1, reweight_cap: 10}
  block_attention: {enabled: true, block_length: 32}
optim: {name: adamw, betas: [0.9, 0.95], eps: 1e-8, scheduler: cosine}
dataset: {name: x, config: main, split: train, text_field: text, streaming: false, num_proc: 1,
          pack_to_max_length: true}
evaluation: {steps: 10, do_eval_loss: true, eval_every_steps: 5, eval_split: test, eval_max_batches: 2,
             max_new_tokens: 32, sampling_steps: 32, block_length: 32, temperature: 0.0, remasking: low_confidence}
"""
    )
    config = read_config(tmp_path / "old.yaml", [("training.lr", "3e-4"), ("max_steps", "7")])
    assert (config.training.lr, config.training.max_steps, config.micro_batches) == (3e-4, 7, 4)
    assert config.training.noise.reweight_cap == 10.0
    (tmp_path / "new.yaml").write_text(as_yaml(config))
    assert flat(read_config(tmp_path / "new.yaml")) == flat(config)
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"training.lrr": 1}, "unknown key 'training.lrr'; did you mean 'training.lr'?"),
        ({"trainin.lr": 1}, "did you mean 'training.lr'?"),
        ({"eps": 1}, "ambiguous: training.noise.eps or optim.eps"),
        ({"training.lr": "fast"}, "training.lr must be a number, not 'fast'"),
        ({"training.max_steps": 0}, "training.max_steps must be at least 1"),
        ({"training.mode": "rl"}, "training.mode 'rl' is unknown; choose one of pretrain, sft"),
        ({"training.micro_batch_size": 3}, "batch_size 8 must be micro_batch_size × gradient_accumulation_steps"),
        ({"training.fp16": "true"}, "set bf16: true"),
        ({"training.lr": ".nan"}, "training.lr must be a number"),
        ({"project.seed": -1}, "project.seed must be 0 or more"),
        ({"optim.betas": "[2, 0.5]"}, "optim.betas must lie in [0, 1)"),
        ({"optim.name": "adamww"}, "optim.name 'adamww' is unknown"),
        ({"training.noise.schedule": "linear"}, "noise schedule 'linear' is unknown"),
        ({"dataset.name": "null"}, "dataset.name is not set"),
        ({"model.base_model_path": "null"}, "no model to start from"),
    ],
)
def test_impossible_configurations_are_refused(start, changes, part):
    with pytest.raises(q.InputError) as caught:
        read_config(None, settings(start, Path("unused"), **changes))
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model.base_model_path": "nowhere/at/all"}, "no such folder"),
        ({"model.mask_token_id": 5000}, "mask_token_id 5000 is outside"),
        ({"model.mask_token_id": "null"}, "no mask token: the model folder names none"),
        ({"mesh.data": 3}, "does not fit 8 device(s)"),
        ({"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 8}, "the mesh does not divide"),
        ({"training.batch_size": 4}, "4 rows of a forward pass do not divide over data × fsdp = 8"),
        ({"dataset.name": "absent.txt"}, "absent.txt: no such file"),
        ({"dataset.text_field": "body"}, "has no column 'body'"),
        ({"training.max_length": 2000}, "beyond the 1024 positions"),
        (
            {"evaluation.sampling_steps": 63, "evaluation.prompts": '["x"]'},
            "steps 63 is not a multiple of the 2 blocks",
        ),
        ({"training.resume_from": "nowhere"}, "no training run with checkpoints there"),
        ({"evaluation.eval_name": "null"}, "nothing is held out"),
        ({"training.attention": "splash"}, "needs a TPU"),
    ],
)
def test_impossible_runs_are_refused_before_anything_is_written(start, tmp_path, changes, part):
    with pytest.raises(q.InputError) as caught:
        run(start, tmp_path / "run", devices=8, **changes)
    assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_flags_and_yaml_errors(tmp_path):
    with pytest.raises(q.InputError, match="needs a value"):
        cli.parse(Flags, ["--mode"]).read()
    with pytest.raises(q.InputError, match="options are --key value"):
        cli.parse(Flags, ["mode"]).read()
    (tmp_path / "a.yaml").write_text("training: [1, 2")
    with pytest.raises(q.InputError, match="not valid YAML"):
        cli.parse(Flags, ["--config", str(tmp_path / "a.yaml")]).read()
    (tmp_path / "a.yaml").write_text("training: {learning_rate: 1}")
    with pytest.raises(q.InputError, match=r"a.yaml: unknown key 'training.learning_rate'"):
        cli.parse(Flags, ["--config", str(tmp_path / "a.yaml")]).read()


@pytest.mark.soak
@pytest.mark.slow
def test_program_as_typed(start, tmp_path):
    help_page = run_program("train.run", "--help").stdout
    assert all(f"--{name} " in help_page for name in flat(Config()))
    typo = run_program("train.run", "--mode", "pretrain", "--training.batchsize", "4", check=None)
    assert_one_line_error(typo, "unknown key 'training.batchsize'", "did you mean")
    flags = [f"--{k}={v}" for k, v in settings(start, tmp_path / "run", **{"training.max_steps": 2, "mesh.data": 1})]
    run_program("train.run", "--mode", "pretrain", *flags, as_users=True)
    run_program("train.report", tmp_path / "run", "--out", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert json.loads((tmp_path / "run" / "config.json").read_text())["mask_token_id"] == 1050
