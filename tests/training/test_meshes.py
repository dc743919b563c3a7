"""Training on meshes: the same noise and losses on any of them, in one process or several; and what travels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, run_program, train_in_two_processes, write
from test_train import run, settings

import qwen3llada_jax as q
from qwen3llada_jax import sharding
from qwen3llada_jax.model import model
from train import step as training
from train.config.parse import read_config
from train.monitor.jsonl import read_lines
from train.objective import objective_of
from train.objectives.example import DeviceBatch
from train.optim.optimizer import optimizer
from train.planning import hlo_analysis
from train.runtime import distributed

STEPS = 20
MORE = {
    "training.max_steps": STEPS, "training.batch_size": 32, "training.save_steps": 100, "optim.scheduler": "constant",
    "training.noise.random_length_prob": 0.3, "evaluation.do_eval_loss": False,
}  # fmt: skip
MESHES = {
    "data=8": {"mesh.data": 8},
    "fsdp=8": {"mesh.fsdp": 8, "mesh.data": 1},
    "tensor=2 fsdp=4": {"mesh.tensor": 2, "mesh.fsdp": 4, "mesh.data": 1},
    "data=2 fsdp=2 tensor=2": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
}


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """Metrics of the run on one device."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run(start, out, **MORE)
    return read_lines(out / "metrics.jsonl")


def assert_same_run(ours: list[dict], theirs: list[dict]) -> None:
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] == [*range(1, STEPS + 1)]
    for x, y in zip(ours, theirs, strict=True):
        assert y["noised_share"] == x["noised_share"]
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-6 if x["step"] == 1 else 1e-4)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize(
    ("mesh", "pieces"), [("one device", 4), *((mesh, pieces) for mesh in MESHES for pieces in (1, 4))]
)
def test_every_mesh_and_accumulation_trains_alike(start, alone, tmp_path, mesh, pieces):
    more = {**MORE, **MESHES.get(mesh, {}), "training.gradient_accumulation_steps": pieces}
    run(start, tmp_path / "run", devices=8 if mesh in MESHES else 1, **more)
    assert_same_run(alone, read_lines(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.slow
def test_noise_is_bitwise_the_same_on_any_mesh(start):
    """Masks, noised ids and weights, and how a batch is cut for accumulation does not reach them."""
    more = {
        "training.batch_size": 32,
        "training.noise.random_length_prob": 0.3,
        "training.noise.noise_type": "random_replace",
    }
    config = read_config(None, settings(start, ROOT / "unused", **more))
    rows = np.zeros(32, np.int32)
    tokens = np.random.default_rng(0).integers(0, 1000, (32, 64), np.int32)
    batch = DeviceBatch(*map(jnp.asarray, (tokens, rows, rows + 64, np.arange(32, dtype=np.int32))))

    def noised(mesh):
        there = jax.tree.map(lambda x: jax.device_put(x, training.rows_sharding(mesh)), batch)
        with jax.set_mesh(mesh):
            objective = jax.jit(objective_of(config, 1050, 1050))
            return jax.tree.map(np.asarray, objective(there, jax.random.key(1), jnp.int32(3)))

    alone = noised(sharding.make_mesh(devices=jax.devices()[:1]))
    assert 0 < alone.where.mean() < 1
    for sizes in MESHES.values():
        found = noised(sharding.make_mesh(**{name.removeprefix("mesh."): size for name, size in sizes.items()}))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("pieces", [1, 4])
def test_two_processes_train_as_one(start, alone, tmp_path, pieces):
    """Two processes of four devices each over jax.distributed; evaluation, samples and checkpoints included."""
    more = {
        **MORE, **MESHES["tensor=2 fsdp=4"], "evaluation.prompts": '["My lord", "O"]', "evaluation.max_new_tokens": 8,
        "evaluation.sampling_steps": 4, "evaluation.do_eval_loss": True, "evaluation.eval_every_steps": STEPS,
        "evaluation.eval_max_batches": 1, "training.gradient_accumulation_steps": pieces,
    }  # fmt: skip
    flags = [f"--{k}={v}" for k, v in settings(start, tmp_path / "run", **more)]
    ends = train_in_two_processes(flags)
    assert "20 updates" in ends[0][0]
    assert "updates" not in ends[1][0]  # only the first process speaks
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert_same_run(alone, [r for r in records if "loss" in r])
    assert np.isfinite([r["eval_loss"] for r in records if "eval_loss" in r]).all()
    assert len(read_lines(tmp_path / "run" / "samples.jsonl")) == 2
    assert len(q.generate(q.load(tmp_path / "run"), [[1]], q.SamplerConfig(gen_length=4, steps=4)).answers()) == 1
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert "jax" in versions


@pytest.mark.slow
@pytest.mark.soak
def test_two_processes_read_a_stream_in_lanes_and_one_goes_on_with_both(start, tmp_path):
    lines = (start / "text.txt").read_text().split("\n\n")
    data = tmp_path / "data"
    data.mkdir()
    for file in range(4):
        write(data / f"train-{file}.jsonl", [{"text": text} for text in lines[file::4]])
    more = {
        **MORE, **MESHES["data=8"], "training.max_steps": 8, "training.save_steps": 4, "dataset.name": data,
        "dataset.streaming": True, "dataset.shuffle_buffer": 50, "evaluation.steps": 1,
    }  # fmt: skip
    ends = train_in_two_processes([f"--{k}={v}" for k, v in settings(start, tmp_path / "two", **more)])
    assert f"{data}: 4 files, 2 in each" in ends[0][0]
    assert f"data read: {data}: " in ends[0][0]
    meta = json.loads((tmp_path / "two" / "checkpoints" / "4" / "meta" / "metadata").read_text())
    assert [*meta["data"]["state"]["lanes"]] == ["0", "1"]
    begun = tmp_path / "two" / "checkpoints" / "4"
    run(start, tmp_path / "one", devices=8, **{**more, "training.resume_from": begun})
    two = [record for record in read_lines(tmp_path / "two" / "metrics.jsonl") if record["step"] > 4]
    one = read_lines(tmp_path / "one" / "metrics.jsonl")
    assert [record["step"] for record in one] == [5, 6, 7, 8]
    for ours, theirs in zip(one, two, strict=True):
        assert ours["noised_share"] == theirs["noised_share"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.soak
def test_what_one_process_cannot_read_ends_both(start, tmp_path):
    for file in range(2):
        rows = [{"text": "word " * 40 if file == 0 or row != 300 else 5} for row in range(600)]
        write(tmp_path / f"train-{file}.jsonl", rows)
    more = {
        **MORE, **MESHES["data=8"], "training.max_steps": 100, "dataset.name": tmp_path, "dataset.streaming": True,
        "dataset.shuffle_buffer": 32, "dataset.on_bad_row": "stop",
    }  # fmt: skip
    # By itself jax.distributed has each wait five minutes for the other, and aborts both then.
    ends = train_in_two_processes([f"--{k}={v}" for k, v in settings(start, tmp_path / "out", **more)], second=2)
    lines = [line for line in ends[1][1].splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert f"{tmp_path / 'train-1.jsonl'}:301: its text is a number" in lines[0]


# ---- what travels --------------------------------------------------------------------------------------------


def compiled_step(sizes: tuple[int, int, int], layers: int, **more):
    """The training step of a small model, compiled for a mesh; its sizes tell its weights apart."""
    architecture = q.ModelConfig(512, 64, 192, layers, 8, 8, 16, mask_token_id=511)
    values = {"dataset.name": "x", "model.base_model_path": "x", "training.max_length": 64, "training.batch_size": 16}
    config = read_config(None, [(k, str(v)) for k, v in {**values, **more}.items()])
    mesh, tx = sharding.make_mesh(*sizes), optimizer(config, 10, model.abstract(architecture)[2])
    shapes, shardings = training.state_shardings(architecture, tx, mesh)
    graphdef, _, _ = model.abstract(architecture, runtime=model.Runtime("float32", "xla", config.training.remat))
    with jax.set_mesh(mesh):
        step = training.make_train_step(
            graphdef, config, tx, shardings, jax.random.key(0), objective_of(config, 511, 500)
        )
        place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
        ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=training.rows_sharding(mesh))  # noqa: E731
        batch = DeviceBatch(ids(16, 64), ids(16), ids(16), ids(16))
        return step.lower(jax.tree.map(place, shapes, shardings), batch).compile()


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.soak)])
def test_weights_are_gathered_and_gradients_reduced_once_a_layer(remat):
    """Over fsdp: seven weights a layer forward, seven backward, one reduction; nothing of an activation's size."""
    counts = []
    for layers in (2, 4):
        text = compiled_step((1, 8, 1), layers, **{"training.remat": remat}).as_text()
        found = hlo_analysis.find_collectives(text)
        assert not any(c.kind == "all-to-all" for c in found)
        in_layers = [c for c in found if c.times >= layers]
        counts.append(
            {kind: sum(c.times for c in in_layers if c.kind == kind) // layers for kind in hlo_analysis.KINDS}
        )
    assert counts[0] == counts[1]
    assert counts[0]["all-gather"] == 14
    assert counts[0]["all-reduce"] + counts[0]["reduce-scatter"] == 1


@pytest.mark.slow
def test_over_data_only_gradients_travel():
    text = compiled_step((8, 1, 1), 2).as_text()
    found = hlo_analysis.find_collectives(text)
    assert {c.kind for c in found} == {"all-reduce"}
    assert sum(c.times for c in found if c.times == 2) == 2  # one a layer


# ---- several processes ---------------------------------------------------------------------------------------


def test_a_cluster_is_told_from_a_single_machine():
    assert not distributed.is_cluster({})
    assert not distributed.is_cluster({"SLURM_NTASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"})
    for variable, value in {
        "SLURM_NTASKS": "4", "OMPI_COMM_WORLD_SIZE": "2", "TPU_WORKER_HOSTNAMES": "a,b", "JAX_COORDINATOR_ADDRESS": "a",
    }.items():  # fmt: skip
        assert distributed.is_cluster({variable: value})


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"distributed.coordinator_address": "localhost:1"}, "go together"),
        ({"distributed.num_processes": 2}, "go together"),
        ({"distributed.initialize": "maybe"}, "distributed.initialize 'maybe' is unknown"),
        (
            {
                "distributed.coordinator_address": "localhost:1", "distributed.num_processes": 2,
                "distributed.process_id": 2,
            },
            "process_id 2 is not below num_processes 2",
        ),
    ],
)  # fmt: skip
def test_impossible_processes_are_refused(start, tmp_path, changes, part):
    with pytest.raises(q.InputError) as caught:
        read_config(None, settings(start, tmp_path, **changes))
    assert part in str(caught.value)


@pytest.mark.slow
def test_processes_that_do_not_meet_are_one_line(start, tmp_path):
    flags = [f"--{k}={v}" for k, v in settings(start, tmp_path / "run")]
    join = ["--coordinator_address", "localhost:1", "--num_processes", "2", "--process_id", "1", "--timeout", "3"]
    done = run_program("train.run", *flags, *join, check=None)
    assert_one_line_error(done, "nobody answers at distributed.coordinator_address localhost:1", "start process 0")
