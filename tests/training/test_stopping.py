"""A request to stop is answered within seconds (K1), whatever the run is doing; nothing that was computed is lost."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from test_checkpoints import assert_same_lines, started, steps_of
from test_train import assert_same, finished, run, settings  # noqa: F401

import qwen3llada_jax as q
from train import evaluate
from train.monitor.jsonl import read_lines
from train.runtime import preemption


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_k1_an_evaluation_is_given_up_and_made_up_for(start, finished, tmp_path, monkeypatch, capsys):  # noqa: F811
    """SIGTERM in its first batch of two: saved at once; the same command begins with that evaluation."""
    out, batches, seen = tmp_path / "run", evaluate.batches_of, []

    def ask_in_the_first(*rest):
        for batch in batches(*rest):
            seen.append(batch)
            if len(seen) == 2:  # the first was compiled for
                ask()
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "batches_of", ask_in_the_first)
        patch.setattr("train.run.batches_of", ask_in_the_first)
        run(start, out)
    assert len(seen) == 2
    assert "stopped and saved at update 2 of 6" in capsys.readouterr().out
    assert steps_of(out) == [2]
    assert not [r for r in read_lines(out / "metrics.jsonl") if "eval_loss" in r]
    # Killed behind the evaluation that was owed, before anything more is saved: it is not written twice.
    with monkeypatch.context() as patch:
        patch.setattr("train.loop._Loop.count", lambda *_: (_ for _ in ()).throw(q.InputError("killed")))
        with pytest.raises(q.InputError, match="killed"):
            run(start, out)
    assert len([r for r in read_lines(out / "metrics.jsonl") if "eval_loss" in r]) == 1
    assert_same(run(start, out), finished[1])
    assert_same_lines(out, finished[0])


@pytest.mark.soak
@pytest.mark.slow
def test_k1_samples_are_given_up_and_made_up_for(start, tmp_path, monkeypatch):
    """The same, asked between an evaluation and its samples."""
    more = {"evaluation.prompts": '["A", "B"]', "evaluation.max_new_tokens": 2, "evaluation.sampling_steps": 2,
            "training.max_steps": 3}  # fmt: skip
    out, real = tmp_path / "run", evaluate.evaluate

    def ask_behind(*rest):
        values = real(*rest)
        if os.environ.get("ASK") and len(read_lines(out / "metrics.jsonl")) == 4:  # of update 3
            ask()
        return values

    monkeypatch.setattr("train.loop.evaluate", ask_behind)
    monkeypatch.setenv("ASK", "1")
    run(start, out, **more)
    assert not read_lines(out / "samples.jsonl")
    monkeypatch.delenv("ASK")
    run(start, out, **more)
    with monkeypatch.context() as patch:  # nor is it made up for twice
        patch.setattr("train.loop._Loop.look", lambda *_: pytest.fail("again"))
        run(start, out, **more)
    assert [(r["step"], r["prompt"]) for r in read_lines(out / "samples.jsonl")] == [(3, "A"), (3, "B")]
    assert [r["step"] for r in read_lines(out / "metrics.jsonl") if "eval_loss" in r] == [2, 3]


def test_k1_what_cannot_be_interrupted_is_saved_from_another_thread(monkeypatch):
    """And only where that is allowed."""
    ends, saved = [], threading.Event()
    monkeypatch.setattr(preemption, "GRACE", 0.2)
    monkeypatch.setattr(preemption.os, "_exit", ends.append)
    with preemption.stop_requests() as stop:
        assert not stop()
        ask()
        time.sleep(0.5)
        assert stop()
        assert not ends  # the loop is elsewhere, and will get to it
        with stop.rescued(saved.set):
            assert saved.wait(5)
        for _ in range(50):
            if ends:
                break
            time.sleep(0.02)
    assert set(ends) == {0}


def test_k1_a_loop_that_answers_is_not_rescued(monkeypatch):
    monkeypatch.setattr(preemption, "GRACE", 0.2)
    monkeypatch.setattr(preemption.os, "_exit", lambda code: pytest.fail("ended"))
    with preemption.stop_requests() as stop, stop.rescued(lambda: pytest.fail("rescued")):
        ask()
        while not stop():
            time.sleep(0.01)
    time.sleep(0.4)


# As a compile: Python's own handlers wait until it returns. A lock taken twice is not woken by a signal, as a sleep is.
HANG = """
import ctypes

def hang(*_):
    lock = ctypes.create_string_buffer(64)
    print("stuck", flush=True)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)
"""
STUCK = f"""{HANG}
from train.runtime.preemption import leave_on_sigterm
with leave_on_sigterm():
    hang()
"""


@pytest.mark.slow
@pytest.mark.parametrize("notice", [signal.SIGTERM, signal.SIGHUP])
def test_k1_a_notice_in_a_compile_before_the_first_update(notice):
    process = started(STUCK)
    assert process.stdout.readline() == "stuck\n"
    time.sleep(0.2)
    begin = time.perf_counter()
    process.send_signal(notice)
    assert process.wait(timeout=30) == 0
    assert time.perf_counter() - begin < 5
    assert process.stderr.read() == "stopped: there is nothing to save\n"


def test_k1_a_terminal_that_goes_away_asks_to_stop(monkeypatch):
    """Once it is gone, nothing can be written there; under `nohup` it is no matter."""
    before = signal.getsignal(signal.SIGHUP)
    with monkeypatch.context() as patch, preemption.stop_requests() as stop:
        patch.setattr(preemption.os, "write", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop()
    assert signal.getsignal(signal.SIGHUP) == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with preemption.leave_on_sigterm(), preemption.stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


OUTPUT = """
import pathlib, sys
from rich.console import Console
from qwen3llada_jax import cli as command_line

def main():
    if "product" in sys.argv:
        command_line.check_output()
    if "pipe" in sys.argv:
        raise BrokenPipeError(32, "Broken pipe")
    console = Console()
    for number in range(1000):
        print("a line" * 20, number)
        console.print("another" * 20)
    print("a notice", file=sys.stderr)
    pathlib.Path(sys.argv[1]).touch()

command_line.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["| head -1", "2>&1 | head -1", "| true", ">/dev/full", ">&-", ">&- 2>&-"])
def test_k1_a_program_goes_on_without_its_output(place, tmp_path):
    """Its product lies elsewhere: lines that nobody reads are dropped, and nothing else is."""
    done = typed(OUTPUT, place, tmp_path / "done")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").exists()
    told = done.stderr.splitlines()
    if place[:2] not in ("2>", ">&"):
        assert told.pop(0).startswith("standard output is gone (")
    assert told == ["a notice"] * (not place.count("2>"))


@pytest.mark.slow
@pytest.mark.parametrize(("place", "code"), [("| head -1", 0), (">/dev/full", 2), (">&-", 2)])
def test_k19_a_program_whose_product_nobody_takes_ends(place, code, tmp_path):
    done = typed(OUTPUT, place, tmp_path / "done", "product")
    assert done.returncode == code, done.stderr
    assert not (tmp_path / "done").exists()
    assert len(done.stderr.splitlines()) == (code == 2)


@pytest.mark.slow
def test_k1_another_broken_pipe_is_no_end_of_the_output(tmp_path):
    """A worker's, say: exit code 0 would be a lie."""
    assert typed(OUTPUT, "", tmp_path / "done", "pipe").returncode == 1


def typed(program: str, place: str, *arguments: object) -> subprocess.CompletedProcess:
    """A Python program as typed into a shell, its output led to `place`; its own exit code."""
    command = f'"$PYTHON" -c "$PROGRAM" {" ".join(map(str, arguments))} {place}; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PYTHON": sys.executable, "PROGRAM": program}
    return subprocess.run(["bash", "-c", command], env=environment, cwd=ROOT, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip


def test_k1_what_the_system_calls_is_put_back():
    """`jax.distributed` catches SIGTERM below Python, where only sigaction(2) can put it back."""
    before = preemption._c_handler()
    was = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert preemption._c_handler().raw != before.raw
        preemption._set_c_handler(before)
        assert preemption._c_handler().raw[:8] == before.raw[:8]
    finally:
        signal.signal(signal.SIGTERM, was)


WORKERS = """
import multiprocessing, time
from train.runtime.preemption import leave_on_sigterm
with leave_on_sigterm():
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    time.sleep(0.5)
    worker.terminate()  # SIGTERM, by which a pool ends those that tokenize
    worker.join(10)
    print("worker", worker.exitcode, flush=True)
"""


def test_k1_sigterm_of_a_worker_is_none_of_the_run():
    process = started(WORKERS)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "worker -15\n"), err


RUN = f"""{HANG}
import sys
from train import loop
from train.runtime import preemption as signals
from train import run
from train.config.parse import read_config

signals.GRACE = 0.5
what, pairs = sys.argv[1], [tuple(pair.split("=", 1)) for pair in sys.argv[2:]]

if what == "samples":
    loop.samples.write_samples = hang
else:
    real = loop.compiler
    def compiler(step_fn):
        compile_step, times = real(step_fn), []
        def compile_or_hang(*rest):
            times.append(1)
            hang() if len(times) == 4 else compile_step(*rest)  # once made ready, then before updates 1, 2, 3
        return compile_or_hang
    run.compiler = compiler
run.train(read_config(None, pairs))
"""


@pytest.mark.soak
@pytest.mark.parametrize("what", ["samples", "a new shape's compile"])
def test_k1_a_stuck_run_is_saved_and_goes_on(start, finished, tmp_path, monkeypatch, what):  # noqa: F811
    out = tmp_path / "run"
    more = {"training.save_steps": 2, "evaluation.prompts": '["A"]', "evaluation.max_new_tokens": 2,
            "evaluation.sampling_steps": 2, "mesh.data": 1}  # fmt: skip
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    process = started(RUN, what, *(f"{k}={v}" for k, v in settings(start, out, **more)))
    lines = iter(process.stdout.readline, "")
    assert any(line == "stuck\n" for line in lines), process.stderr.read()
    time.sleep(0.2)
    begin = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert time.perf_counter() - begin < 20
    stopped = 3 if what == "samples" else 2
    assert f"update {stopped} of 6; the same command goes on from there" in rest
    assert max(steps_of(out)) == stopped
    assert_same(run(start, out, **more), finished[1])
    if what == "samples":
        assert [r["step"] for r in read_lines(out / "samples.jsonl")] == [3, 6]


@pytest.mark.slow
def test_k1_a_run_goes_on_when_nobody_reads_its_lines(start, finished, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    out = tmp_path / "run"
    flags = [f"--{key}={value}" for key, value in settings(start, out, **{"mesh.data": 1})]
    done = typed("from qwen3llada_jax import cli as command_line\nfrom train import run\ncommand_line.run(run.main)",
                 "| head -1", *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "standard output is gone (Broken pipe); going on without it" in done.stderr
    assert max(steps_of(out)) == 6
    assert_same_lines(out, finished[0])
