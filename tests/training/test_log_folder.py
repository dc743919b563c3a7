"""One run's records are never another's (K2): a log_dir that configurations share, copied and moved folders."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from test_train import finished, run  # noqa: F401

import qwen3llada_jax as q
from qwen3llada_jax.io.atomic_files import remove_parts
from train import report
from train.runtime import run_lock
from train.runtime.run_owner import Owner, check_owner, owner_of, write_owner

SHORT = {"evaluation.do_eval_loss": False, "training.max_steps": 2, "training.save_steps": 1}


def begin(output: str, logs: str) -> Owner:
    """What a start does in its folders."""
    output, logs = Path(output), Path(logs)
    for folder in (output, logs):
        folder.mkdir(parents=True, exist_ok=True)
    owner = check_owner(output, logs)
    write_owner(output, logs, owner)
    (output / "checkpoints").mkdir(exist_ok=True)
    (logs / "metrics.jsonl").touch()
    return owner


@pytest.mark.slow
def test_k2_a_second_run_in_a_log_dir_is_refused_before_the_data_are_read(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = {**SHORT, "project.log_dir": "logs", "evaluation.tensorboard": True}
    run(start, Path("runs/a"), **shared)
    before = {p: p.read_bytes() for p in Path("logs").rglob("*") if p.is_file() and p.name != run_lock.NAME}
    assert {"metrics.jsonl", "samples.jsonl", "run.json"} < {p.name for p in before}
    with monkeypatch.context() as patch:
        patch.setattr("train.run.training_batches", lambda *_: pytest.fail("data were read"))
        for more in ({}, {"training.resume_from": "runs/a"}, {"training.resume_from": "never"}):
            with pytest.raises(q.InputError, match=r"log_dir logs holds the records of the run .*runs/a; choose"):
                run(start, Path("runs/b"), **shared, **more)
        with pytest.raises(q.InputError, match=r"logs is the log_dir of the run .*runs/a"):
            run(start, Path("logs"), **SHORT)
        with pytest.raises(q.InputError, match=r"log_dir runs/a holds the records of the run .*runs/a"):
            run(start, Path("runs/b"), **SHORT, **{"project.log_dir": "runs/a"})
    assert {p: p.read_bytes() for p in before} == before
    assert not Path("runs/b").exists()
    shutil.rmtree("runs/a/checkpoints/2")  # the first goes on
    run(start, Path("runs/a"), **shared)


@pytest.mark.slow
def test_k2_two_runs_at_once(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    with (
        run_lock.only_run_in(Path("logs"), "project.log_dir"),
        pytest.raises(q.InputError, match=r"logs is in use by another run .*choose another project.log_dir"),
    ):
        run(start, Path("a"), **SHORT, **{"project.log_dir": "logs"})
    assert not Path("a").exists()
    run(start, Path("a"), **SHORT, **{"project.log_dir": "./a/"})  # its own folder, which it holds once
    assert Path("a/metrics.jsonl").is_file()


def test_k2_parts_of_others_are_let_be(tmp_path):
    names = [".metrics.jsonl.4711.part", ".run.json.12.part", ".loss.png.4711.part", ".notes.part", "metrics.jsonl"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".model.3.part").mkdir()
    remove_parts(tmp_path, ("metrics.jsonl", "run.json"))
    assert {p.name for p in tmp_path.iterdir()} == {".loss.png.4711.part", ".notes.part", "metrics.jsonl",
                                                    ".model.3.part"}  # fmt: skip


def test_k2_a_run_keeps_its_records_where_it_is_moved_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = begin("runs/a", "logs").id
    assert begin("runs/a", "logs").id == begin("runs/a", str(tmp_path / "logs")).id == name
    shutil.move("runs/a", "runs/b")
    assert begin("runs/b", "logs") == Owner(name, str(tmp_path / "runs/b"), str(tmp_path / "logs"))
    shutil.move("logs", "elsewhere")
    assert begin("runs/b", "elsewhere").id == name
    shutil.rmtree("runs/b")  # a new run of that name is not the one that was removed
    with pytest.raises(q.InputError, match="holds the records of the run"):
        begin("runs/b", "elsewhere")


def test_k2_a_copied_run_is_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin("a", "logs")
    shutil.copytree("a", "b")
    with pytest.raises(q.InputError, match="holds the records of the run"):
        begin("b", "logs")
    name = begin("c", "c").id
    Path("c/wandb_id.txt").write_text("abc")
    shutil.copytree("c", "d")
    assert begin("d", "d").id != name
    assert not Path("d/wandb_id.txt").exists()  # it is not logged into the other's W&B run
    assert Path("c/wandb_id.txt").exists()


def test_k2_records_of_an_older_version(tmp_path, monkeypatch):
    """It named no owner, but its settings name its log_dir."""
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    Path("logs/metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(q.InputError, match="holds the records of another run"):
        begin("a", "logs")
    Path("old/checkpoints").mkdir(parents=True)
    Path("old/training.yaml").write_text("project: {log_dir: logs}")
    begin("old", "logs")
    Path("old/run.json").write_text("{")
    with pytest.raises(q.InputError, match=r"run.json: does not say whose folder this is"):
        begin("old", "logs")


def test_k2_the_report_shows_a_runs_own_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begin("work/a", "work/logs")
    line = {"step": 1, "loss": 1.0, "ce": 1.0, "eval_loss": 2.0, "eval_bound_perplexity": 7.389,
            "eval_noised_perplexity": 9.5, "tokens": 5, "epoch": 0.5, "elapsed": 1.0}  # fmt: skip
    Path("work/logs/metrics.jsonl").write_text(json.dumps(line) + "\n")
    Path("work/a/training.yaml").write_text("project: {log_dir: logs}")  # as typed, in work
    monkeypatch.setattr(sys, "argv", ["report", "work/a", "--out", "l.png"])
    report.main()
    assert "held-out loss 2.0000, perplexity at most 7.39, after 1 updates" in capsys.readouterr().out
    page = Path("l.html").read_text()
    for text in ("held-out perplexity, at most", "7.3890", "of noised tokens", "9.5000", "tokens trained on"):
        assert text in page
    begin("work/b", "work/logs2")
    own = owner_of(Path("work/b"))
    write_owner(Path("work/b"), Path("work/b"), own._replace(log_dir=os.path.abspath("work/logs")))
    monkeypatch.setattr(sys, "argv", ["report", "work/b", "--out", "l.png"])
    with pytest.raises(q.InputError, match=r"logs holds the records of the run .*work/a, not those of work/b"):
        report.main()
