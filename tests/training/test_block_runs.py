"""Runs of block diffusion: any mesh and accumulation, going on, and what their model hands on."""

import json

import jax
import numpy as np
import pytest
from conftest import refuses
from test_train import assert_same, run

import qwen3llada_jax as q
from qwen3llada_jax.checkpoint import model_folder
from train.checkpoint.base_model import blocks_of, settled
from train.config.parse import read_config
from train.monitor.jsonl import read_lines
from train.monitor.model_flops import training_flops_of_row, training_flops_per_token
from train.objective import reading_of
from train.plan import traced_step
from train.planning import hlo_analysis

JOINT = {
    "training.objective": "block_diffusion", "training.shift": True, "training.clean_loss": 0.2,
    "training.block_attention.causal_context": True, "training.block_attention.schedule": "1@0.4, 2@0.7, 8",
    "training.complementary": True, "dataset.pack_boundaries": True, "optim.scheduler": "constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run of one device in one go."""
    out = tmp_path_factory.mktemp("blocks") / "run"
    return out, run(start, out, **JOINT)


def losses(folder):
    return [(r["loss"], r["next_ce"]) for r in read_lines(folder / "metrics.jsonl") if "loss" in r]


@pytest.mark.soak
@pytest.mark.slow
def test_any_mesh_and_accumulation_trains_alike(start, whole, tmp_path):
    spread = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "training.gradient_accumulation_steps": 2}
    run(start, tmp_path / "run", devices=8, **JOINT, **spread)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole[0]), rtol=1e-4)


@pytest.mark.soak
@pytest.mark.slow
def test_what_goes_on_is_what_was_never_stopped(start, whole, tmp_path):
    """Amid a schedule of block lengths, which is one of the whole run."""
    out = tmp_path / "run"
    run(start, out, **JOINT)
    for number in (4, 6):
        for path in sorted((out / "checkpoints" / str(number)).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (out / "checkpoints" / str(number)).rmdir()
    assert_same(run(start, out, **JOINT), whole[1])


@pytest.mark.soak
@pytest.mark.slow
def test_the_model_carries_what_it_was_trained_with(start, whole, tmp_path):
    out = whole[0]
    config = model_folder.read_config(out)
    assert (config.visibility, config.block_length, config.shift, config.causal_context) == (
        "block_causal",
        8,
        True,
        True,
    )
    held_out = [r for r in read_lines(out / "metrics.jsonl") if "eval_loss" in r]
    assert held_out
    assert all(np.isfinite([r["eval_loss"], r["eval_next_ce"], r["eval_ce_t3"]]).all() for r in held_out)
    written = q.generate(q.load(out), [[1, 2, 3]], q.SamplerConfig(gen_length=8)).answers()
    assert len(written[0]) <= 8
    # A run that goes on from it takes it over, where its objective can.
    more = {"model.base_model_path": out, "training.max_steps": 1}
    run(start, tmp_path / "next", **more, **{"training.objective": "block_diffusion"})
    assert json.loads((tmp_path / "next" / "config.json").read_text())["causal_context"] is True
    refuses(lambda: run(start, tmp_path / "other", **more), "causal_context", "training.objective block_diffusion")


@pytest.mark.slow
@pytest.mark.parametrize("shift", [pytest.param(False, marks=pytest.mark.soak), True])
def test_answers_padded_with_ends_are_learned_in_blocks(start, tmp_path, shift):
    """SFT: prompts of any length are one clean block, answers are padded with EOS to the longest."""
    rows = [{"prompt": "a" * n, "response": "b" * m} for n, m in ((1, 9), (20, 3), (5, 14), (2, 1)) * 3]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {
        "training.mode": "sft", "dataset.name": tmp_path / "rows.jsonl", "training.objective": "block_diffusion",
        "training.block_attention.block_length": 4, "training.shift": shift, "training.max_steps": 4,
        "training.max_length": 64, "evaluation.do_eval_loss": False, "dataset.template": "plain",
    }  # fmt: skip
    run(start, tmp_path / "run", **more)
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite([r["loss"] for r in records]).all()
    assert records[-1]["loss"] < records[0]["loss"]


# ---- what it costs -------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.slow
def test_the_compiled_step_computes_little_that_nobody_needs():
    """At most 1.05 times 2 L tokens through the layers, less the clean half's last layer and head, and pairs of
    attention counted as they are seen, rounded up to blocks."""
    L, V = 512, 1024
    config = read_config(None, [(k, str(v)) for k, v in {
        "model.base_model_path": "x", "dataset.name": "x", "training.max_length": L, "training.batch_size": 2,
        "training.objective": "block_diffusion", "training.block_attention.block_length": 8,
    }.items()])  # fmt: skip
    architecture = q.ModelConfig(V, 128, 384, 4, 4, 2, 32, mask_token_id=V - 1, live_vocab_size=V - 1)
    config = settled(config, blocks_of(config, architecture)[0])
    traced, _ = traced_step(config, architecture, q.make_mesh(devices=jax.devices()[:1]))
    compiled = traced.lower().compile()
    found = hlo_analysis.matmul_flops(compiled.as_text(), {"cross_entropy": 0})  # as many positions as are noised
    head = 6 * V * 128 * L
    ideal = 2 * (training_flops_of_row(architecture, L, reading_of(config)) - head)
    assert 0.95 * ideal < found <= 1.05 * ideal
    whole = 2 * (2 * L * training_flops_per_token(architecture, 2 * L) - 2 * head)
    assert found < 0.75 * whole  # what reading twice as long a row would cost
