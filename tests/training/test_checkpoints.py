"""Checkpoints: what is kept, what a damaged one costs, how a run stops and goes on, and what it refuses."""

import functools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT, SOON_COMPILED
from test_train import assert_same, finished, params_of, run, settings  # noqa: F401

import qwen3llada_jax as q
from benchmarks import interruptions
from converters.to_hf import export
from qwen3llada_jax import sharding
from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.text import tokens
from train.checkpoint import manager as checkpoints
from train.config.parse import read_config
from train.monitor import console
from train.monitor.jsonl import read_lines
from train.monitor.throughput import MEASURED
from train.runtime import run_lock


def steps_of(out: Path) -> list[int]:
    return sorted(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())


def assert_same_lines(out: Path, other: Path) -> None:
    ours, theirs = (
        [{k: v for k, v in r.items() if k not in MEASURED} for r in read_lines(f / "metrics.jsonl")]
        for f in (out, other)
    )
    assert ours == theirs


@pytest.fixture
def at_update(monkeypatch):
    """Have something happen at the end of a run's n-th update from now."""

    def arrange(number: int, what) -> None:
        seen, advance = 0, console.Progress.advance

        def advance_and_act(self) -> None:
            nonlocal seen
            advance(self)
            seen += 1
            if seen == number:
                what()

        monkeypatch.setattr(console.Progress, "advance", advance_and_act)

    return arrange


# ---- writing in the background -------------------------------------------------------------------------------


def tiny_state(step: int, mesh: jax.sharding.Mesh | None = None) -> dict:
    params = {"a": jnp.full((8, 4096), step, jnp.float32)}
    if mesh is not None:
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P("fsdp")))
    return {"params": params, "opt": optax.adam(1.0).init(params), "step": jnp.int32(step)}


@pytest.fixture
def configs(start):
    return read_config(None, settings(start, Path("unused"))), q.ModelConfig(64, 16, 32, 2, 2, 1, 8)


def test_a_save_in_the_background_reads_no_donated_buffer(configs, tmp_path):
    """Every update after a save gives the saved state up and runs on while the save is written."""

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state):
        return jax.tree.map(lambda x: x + 1, state)

    state, saved = tiny_state(0, sharding.make_mesh(1, 8, 1)), {}
    with checkpoints.open_checkpoints(tmp_path, None, keep_best=True) as manager:
        for _ in range(4):
            state = update(state)
            saved[int(state["step"])] = jax.device_get(state)
            checkpoints.save(manager, state, *configs, {"fingerprint": ""})
            for _ in range(3):
                state = update(state)
    for step, wanted in saved.items():
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.restore(tmp_path / "checkpoints" / str(step) / "params")
        np.testing.assert_array_equal(found["a"], wanted["params"]["a"])


@pytest.mark.parametrize(("keep_best", "kept"), [(True, [2, 6]), (False, [6])])
def test_the_newest_and_the_best_stay(configs, tmp_path, keep_best, kept):
    losses = [3.0, 1.0, 2.0, None, float("nan"), 1.5]
    for part in (slice(0, 3), slice(3, 6)):  # opened twice: which one is best is known from the disk
        with checkpoints.open_checkpoints(tmp_path, 1, keep_best=keep_best) as manager:
            for step in range(1, 7)[part]:
                checkpoints.save(manager, tiny_state(step), *configs, {"fingerprint": ""}, losses[step - 1])
    assert steps_of(tmp_path) == kept


@pytest.mark.slow
def test_the_best_checkpoint_of_a_run_opens_by_its_path(start, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    losses = {2: 3.0, 3: 0.1, 4: 1.0, 6: 2.0}  # update 3 is evaluated, but not saved
    each = iter(losses.values())
    monkeypatch.setattr("train.loop.evaluate", lambda *_: {"eval_loss": next(each), "eval_noised_perplexity": 1.0})
    run(start, out, **{"training.save_total_limit": 1})
    assert {r["step"]: r["eval_loss"] for r in read_lines(out / "metrics.jsonl") if "eval_loss" in r} == losses
    best = 4
    assert steps_of(out) == [best, 6]
    place = out / "checkpoints" / str(best)
    assert f"lowest held-out loss at update {best}: {place}" in capsys.readouterr().out
    assert q.load(place).config == q.load(out).config
    assert tokens.load_tokenizer(place).eos_token_id == tokens.load_tokenizer(out).eos_token_id
    assert not np.array_equal(q.load(place).embed_tokens[...], q.load(out).embed_tokens[...])
    export(place, tmp_path / "hf")
    np.testing.assert_array_equal(q.load(tmp_path / "hf").embed_tokens[...], q.load(place).embed_tokens[...])
    assert (tmp_path / "hf" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_a_failed_save_in_the_background_ends_the_run(start, finished, tmp_path, at_update):  # noqa: F811
    """A file-size limit stands for a full disk."""
    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        while not (out / "checkpoints" / "2").exists():
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))

    at_update(3, fill)
    try:
        with pytest.raises(q.InputError, match=r"run/checkpoints: cannot be written \(.*File too large") as caught:
            run(start, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert steps_of(out) == [2]
    assert_same(run(start, out), finished[1])
    assert steps_of(out) == [2, 4, 6]


# ---- stopping and going on -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_update_in_flight(start, finished, tmp_path, capsys, at_update, number):  # noqa: F811
    out, handlers = tmp_path / "run", [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    at_update(3, lambda: os.kill(os.getpid(), number))
    run(start, out)
    assert steps_of(out) == [2, 3]
    assert f"{out}: stopped and saved at update 3 of 6; the same command goes on from there" in capsys.readouterr().out
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert_same(run(start, out), finished[1])
    assert_same_lines(out, finished[0])


def started(program: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path):
    program = """
import time
from train.runtime.preemption import stop_requests
with stop_requests() as should_stop:
    print("ready", flush=True)
    while not should_stop():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""
    process = started(program)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    assert process.wait(timeout=30) == -signal.SIGINT
    assert time.perf_counter() - begin < 20
    assert "stopping after this update" in process.stderr.read()


def test_sigterm_before_the_first_update_is_no_error(tmp_path):
    program = """
import time
from train.runtime.preemption import leave_on_sigterm
with leave_on_sigterm():
    print("ready", flush=True)
    time.sleep(60)
"""
    process = started(program)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == "stopped: there is nothing to save\n"


@pytest.mark.slow
def test_leftovers_are_cleared_away(start, finished, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    (out / "checkpoints" / "6").rename(out / "checkpoints" / "6.orbax-checkpoint-tmp")
    (out / ".metrics.jsonl.4711.part").write_text("half")
    assert_same(run(start, out), finished[1])
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["2", "4", "6"]
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == [run_lock.NAME]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "bit flipped": lambda step: flip(max((step / "params").rglob("*"), key=lambda p: p.stat().st_size)),
    "array cut short": lambda step: cut(max((step / "params").rglob("*"), key=lambda p: p.stat().st_size)),
    "item missing": lambda step: shutil.rmtree(step / "opt"),
    "item's metadata no JSON": lambda step: cut(step / "opt" / "_METADATA"),
    "meta no JSON": lambda step: cut(step / "meta" / "metadata"),
    "meta empty": lambda step: (step / "meta" / "metadata").write_text("{}"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[pytest.mark.soak] * bool(i % 4)) for i, name in enumerate(DAMAGES)]
)
def test_a_damaged_checkpoint_costs_only_itself(start, finished, tmp_path, capsys, damage):  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    for turn in ("6.damaged", "6.damaged-2"):
        DAMAGES[damage](out / "checkpoints" / "6")
        assert_same(run(start, out), finished[1])
        lines = [line for line in capsys.readouterr().err.splitlines() if "6: damaged (" in line]
        assert len(lines) == 1
        assert f"now {turn}; going on from 4" in lines[0]
        assert damage != "bit flipped" or "is not what was saved: its checksum differs" in lines[0]
        assert (out / "checkpoints" / turn).is_dir()
        assert steps_of(out) == [2, 4, 6]
        assert_same_lines(out, finished[0])


@pytest.mark.parametrize("item", ["params", "opt"])
def test_a_flipped_bit_of_any_item_is_noticed_on_any_mesh(configs, tmp_path, capsys, item):
    """Saved on one mesh, read on another; a checkpoint without checksums is read as it is."""
    everywhere = lambda mesh: jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P()), tiny_state(0))  # noqa: E731
    with checkpoints.open_checkpoints(tmp_path, None, keep_best=True) as manager:
        for step in (1, 2):
            state = jax.device_put(tiny_state(step), everywhere(sharding.make_mesh(8, 1, 1)))
            state["opt"] = jax.tree.map(lambda x: x + 3, state["opt"])
            checkpoints.save(manager, state, *configs, {"fingerprint": ""})
    flip(max((tmp_path / "checkpoints" / "2" / item).rglob("*"), key=lambda p: p.stat().st_size))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tiny_state(0))
    places = everywhere(sharding.make_mesh(4, 2, 1)) | {"params": {"a": jax.NamedSharding(
        sharding.make_mesh(4, 2, 1), jax.P("fsdp"))}}  # fmt: skip
    resume = functools.partial(checkpoints.resume, tmp_path, *configs, "", shapes, places, fork=True)
    assert int(resume().state["step"]) == 1
    assert f"2: damaged ({item}." in capsys.readouterr().err
    meta = tmp_path / "checkpoints" / "2" / "meta" / "metadata"
    kept = json.loads(meta.read_text())
    del kept["checksums"]
    meta.write_text(json.dumps(kept))
    assert int(resume().state["step"]) == 2


def test_a_folder_holds_one_run_at_a_time(start, finished, tmp_path):  # noqa: F811
    out, new = tmp_path / "run", tmp_path / "new"
    shutil.copytree(finished[0], out)
    with (
        run_lock.only_run_in(out),
        pytest.raises(q.InputError, match=rf"in use by another run \(process {os.getpid()} on"),
    ):
        run(start, out)
    run(start, out)
    with run_lock.only_run_in(new) as first, run_lock.only_run_in(new) as second:
        assert not new.exists()
        new.mkdir()
        first()
        with pytest.raises(q.InputError, match="in use by another run"):
            second()
    with run_lock.only_run_in(tmp_path / "late") as late:
        (tmp_path / "late" / "checkpoints").mkdir(parents=True)
        with pytest.raises(q.InputError, match="begun there meanwhile"):
            late()


def test_a_killed_run_holds_nothing(tmp_path):
    program = "import sys, time, pathlib; from train.runtime import run_lock as lock\n"
    program += "with lock.only_run_in(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = started(program, str(tmp_path))
    assert process.stdout.readline() == "held\n"
    with pytest.raises(q.InputError, match=f"process {process.pid} on"), run_lock.only_run_in(tmp_path):
        pass
    process.kill()
    process.wait()
    with run_lock.only_run_in(tmp_path):
        assert (tmp_path / run_lock.NAME).read_text().startswith(f"{os.getpid()} on ")


def test_when_every_checkpoint_is_damaged_nothing_is_touched(start, finished, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    for step in (out / "checkpoints").iterdir():
        shutil.rmtree(step / "opt")
    with pytest.raises(q.InputError, match=r"none of its checkpoints can be read: 6 \(opt.*4 \(opt.*2 \(opt") as caught:
        run(start, out)
    assert str(caught.value).count(str(out)) == 1  # a long path would crowd the reasons out
    assert "; restore one from a backup, or choose another project.output_dir" in str(caught.value)
    assert steps_of(out) == [2, 4, 6]


def test_other_data_is_refused(start, finished, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    text = tmp_path / "text.txt"
    text.write_text((start / "text.txt").read_text().replace("e", "a"))
    for step in (out / "checkpoints").iterdir():  # the same name, another content
        meta = step / "meta" / "metadata"
        meta.write_text(meta.read_text().replace(str(start / "text.txt"), str(text)))
    with pytest.raises(q.InputError, match="holds a run on other data"):
        run(start, out, **{"dataset.name": text})


def test_what_it_was_computed_with_stands_beside_it(start, finished, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    found = json.loads((out / "versions.json").read_text())
    assert found["jax"] == jax.__version__
    assert found["qwen3llada_jax"] == q.__version__
    meta = out / "checkpoints" / "6" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace(f'"jax": "{jax.__version__}"', '"jax": "0.0.1"'))
    run(start, out)
    assert f"versions have changed since that checkpoint: jax 0.0.1 → {jax.__version__}\n" in capsys.readouterr().err


def test_what_may_change_is_told(start, finished, tmp_path, capsys):  # noqa: F811
    out, moved = tmp_path / "run", tmp_path / "moved.txt"
    shutil.copytree(finished[0], out)
    shutil.copy(start / "text.txt", moved)
    for step in (out / "checkpoints").iterdir():  # a key that was not there then is as if left out
        meta = json.loads((step / "meta" / "metadata").read_text())
        del meta["config"]["training.spike_factor"]
        (step / "meta" / "metadata").write_text(json.dumps(meta))
    run(start, out)
    assert "changed" not in capsys.readouterr().err
    changes = {"training.remat": "full", "evaluation.steps": 2, "dataset.name": moved}
    run(start, out, **changes)
    err = capsys.readouterr().err
    assert "changed since that checkpoint: dataset.name '" in err
    assert "evaluation.steps 1 → 2; training.remat 'none' → 'full'\n" in err
    assert "do not compare" not in err
    run(start, out, **{"evaluation.eval_max_batches": 1})
    err = capsys.readouterr().err
    assert "evaluation.eval_max_batches 2 → 1\nheld-out losses before and after that do not compare" in err


@pytest.mark.slow
def test_going_on_in_another_folder(start, finished, tmp_path, capsys):  # noqa: F811
    """The other run's state, step included, under settings that may differ; its folder stays as it is."""
    source = tmp_path / "source"
    shutil.copytree(finished[0], source)
    shutil.rmtree(source / "checkpoints" / "6" / "opt")
    more = {"training.resume_from": source, "dataset.text_field": "text"}
    assert_same(run(start, tmp_path / "fork", **more), finished[1])
    err = capsys.readouterr().err
    assert f"unlike {source}: dataset.text_field None → 'text'\n" in err
    assert "going on from update 4 of" in err
    assert [r["step"] for r in read_lines(tmp_path / "fork" / "metrics.jsonl") if "loss" in r] == [5, 6]
    assert steps_of(source) == [2, 4, 6]
    assert_same(run(start, tmp_path / "one", **{"training.resume_from": source / "checkpoints" / "2"}), finished[1])
    assert "unlike" not in capsys.readouterr().err


def test_another_models_or_optimizers_state_is_refused(start, finished, tmp_path):  # noqa: F811
    with pytest.raises(q.InputError, match=r"the state of another model or optimizer: opt.*absent"):
        run(start, tmp_path / "a", **{"training.resume_from": finished[0], "training.grad_clip": 0})
    other = tmp_path / "other"
    shutil.copytree(start, other)
    config = json.loads((start / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e3
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(q.InputError, match=r"another model or optimizer \(model's rope_parameters"):
        run(start, tmp_path / "b", **{"training.resume_from": finished[0], "model.base_model_path": other})


@pytest.mark.soak
@pytest.mark.slow
def test_resume_on_another_mesh(start, tmp_path, at_update):
    one, two = {"mesh.data": 1, "mesh.fsdp": 8}, {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
    run(start, tmp_path / "whole", devices=8, **one)
    at_update(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run(start, tmp_path / "moved", devices=8, **one)
    assert steps_of(tmp_path / "moved") == [2, 3]
    run(start, tmp_path / "moved", devices=8, **two)
    ours, theirs = (read_lines(tmp_path / n / "metrics.jsonl") for n in ("whole", "moved"))
    for x, y in zip(ours, theirs, strict=True):
        name = "loss" if "loss" in x else "eval_loss"
        assert y[name] == pytest.approx(x[name], rel=1e-4)


TWO_PROCESSES = """
import json, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
number, port, out, damaged = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "again"
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, number)
from qwen3llada_jax import ModelConfig, make_mesh
from train.checkpoint import manager as checkpoints
from train.config.schema import Config
from train.runtime.preemption import leave_on_sigterm, stop_requests

with leave_on_sigterm():  # takes SIGTERM from jax for a while, and gives it back
    pass
mesh, configs = make_mesh(1, 2, 1), (Config(), ModelConfig(64, 16, 32, 2, 2, 1, 8))
state = {"params": {"a": jnp.zeros((8, 4096))}, "opt": {"m": jnp.zeros(3)}, "step": jnp.int32(0)}
split, everywhere = jax.NamedSharding(mesh, jax.P("fsdp")), jax.NamedSharding(mesh, jax.P())
places = {"params": {"a": split}, "opt": {"m": everywhere}, "step": everywhere}
shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0, out_shardings=places)
with jax.set_mesh(mesh):
    if damaged:
        state = checkpoints.resume(out, *configs, "", shapes, places, fork=False).state
        values = {float(x) for s in state["params"]["a"].addressable_shards for x in jax.device_get(s.data).ravel()}
        print("resumed", int(state["step"]), values, flush=True)
        sys.exit()
    state = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=places)()
    with stop_requests() as should_stop, checkpoints.open_checkpoints(out, None, keep_best=True) as manager:
        for _ in range(3000):
            state = update(state)
            done = int(state["step"])
            time.sleep(0.01 * (1 + number))  # one is slower than the other
            stops = should_stop()
            if stops or done == 5:
                checkpoints.save(manager, state, *configs, {"fingerprint": ""}, 1.0)
            if stops:
                break
            if done == 10:
                print("ready", flush=True)
    print("stopped", done, flush=True)
"""


@pytest.mark.soak
@pytest.mark.slow
def test_two_processes_stop_after_the_same_update_and_take_the_same_checkpoint(tmp_path):
    """The notice reaches one of them; later one file, which one of them must read, is cut short."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def begin(what: str) -> list[subprocess.Popen]:
        environment = {**os.environ, "XLA_FLAGS": SOON_COMPILED, "PYTHONPATH": str(ROOT)}
        return [
            subprocess.Popen(
                [sys.executable, "-c", TWO_PROCESSES, str(number), str(port), str(tmp_path), what],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in (0, 1)
        ]  # fmt: skip

    def end(processes: list[subprocess.Popen]) -> str:
        """What both say at last."""
        ends = [process.communicate(timeout=120) for process in processes]
        assert [p.returncode for p in processes] == [0, 0], ends
        (last,) = {out.splitlines()[-1] for out, _ in ends}
        return last

    processes = begin("first")
    for process in processes:
        assert "ready\n" in iter(process.stdout.readline, ""), process.stderr.read()
    processes[1].send_signal(signal.SIGTERM)
    last = end(processes)
    assert last.startswith("stopped")
    stopped = int(last.split()[1])
    assert steps_of(tmp_path) == [5, stopped]
    cut(max((tmp_path / "checkpoints" / str(stopped) / "params").rglob("*"), key=lambda p: p.stat().st_size))
    assert end(begin("again")) == "resumed 5 {5.0}"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == sorted(["5", f"{stopped}.damaged"])


@pytest.mark.slow
@pytest.mark.soak
def test_a_run_killed_and_stopped_ends_as_the_undisturbed_one(tmp_path):
    """The full number of interruptions is `python -m benchmarks.interruptions`."""
    result = interruptions.compare(tmp_path, kills=2, stops=1, updates=40, seed=1)
    assert len(result["interruptions"]) == 3
    assert interruptions.same(result), result


@pytest.mark.slow
def test_an_average_of_the_weights_is_kept_resumed_and_used(start, finished, tmp_path):  # noqa: F811
    """ema ← d · ema + (1 − d) · weights from the starting weights on; the run folder opens with it."""
    decay = 0.6
    out = tmp_path / "run"
    averaged = run(
        start, out, **{"training.ema_decay": decay, "training.save_steps": 1, "training.save_total_limit": 6}
    )
    weights = [flat_item(out / "checkpoints" / str(n) / "params") for n in range(1, 7)]
    assert_same(weights[-1], finished[1])  # the average changes nothing in the training
    mean = params_of(start)
    for one in weights:
        mean = {k: decay * mean[k] + (1 - decay) * one[k] for k in mean}
    for name, value in averaged.items():
        np.testing.assert_allclose(value, mean[name], atol=1e-6)
    assert any(np.abs(averaged[k] - weights[-1][k]).max() > 1e-4 for k in averaged)
    shutil.rmtree(out / "checkpoints" / "5")
    shutil.rmtree(out / "checkpoints" / "6")
    again = run(start, out, **{"training.ema_decay": decay, "training.save_steps": 1, "training.save_total_limit": 6})
    assert_same(again, averaged)
    with pytest.raises(q.InputError, match="an average that it did not keep"):
        run(start, tmp_path / "fork", **{"training.ema_decay": 0.5, "training.resume_from": finished[0]})


def flat_item(item: Path) -> dict[str, np.ndarray]:
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(item.absolute())
    return {k: np.asarray(v) for k, v in flatten(tree).items()}
