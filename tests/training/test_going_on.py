"""A run goes on (K1): from relative paths, without its starting model, after a refusal, after a killed writer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import orbax.checkpoint as ocp
import pytest
from conftest import ROOT
from test_checkpoints import assert_same_lines, steps_of
from test_train import assert_same, finished, params_of, run, settings  # noqa: F401

import qwen3llada_jax as q
from converters.to_hf import export
from qwen3llada_jax.io.atomic_files import new_folder
from qwen3llada_jax.text import tokens
from train.checkpoint.initial_state import Origin, origin_of
from train.config.parse import read_config
from train.monitor.jsonl import read_lines


@pytest.fixture
def home(start, finished, tmp_path, monkeypatch) -> Path:  # noqa: F811
    """A folder to work in, as a user does: everything in it is named relatively. `run` stands at update 2 of 6."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(start, "start")
    shutil.copytree(finished[0], "run")
    for step in ("4", "6"):
        shutil.rmtree(Path("run/checkpoints") / step)
    return tmp_path


@pytest.mark.slow
def test_k1_the_same_command_goes_on_from_relative_paths(home, finished, capsys):  # noqa: F811
    assert_same(run(Path("start"), Path("run")), finished[1])
    assert "going on from update 2 of run" in capsys.readouterr().err
    assert_same_lines(Path("run"), finished[0])
    assert_same(run(Path("start"), Path("start/../run")), finished[1])
    assert q.load("run").config == q.load("run/checkpoints/4").config == q.load(str(home / "run")).config
    export(Path("run"), Path("hf"))
    assert tokens.load_tokenizer(Path("hf")).eos_token_id is not None


@pytest.mark.slow
@pytest.mark.parametrize("source", ["run", "run/", "run/checkpoints/2", "../{}/run"])
def test_k1_resume_from_takes_relative_paths(home, finished, source, monkeypatch):  # noqa: F811
    monkeypatch.setattr("train.loop.evaluate", lambda *_: {"eval_loss": 1.0, "eval_noised_perplexity": 1.0})
    fork = run(Path("start"), Path("my forks/a"), **{"training.resume_from": source.format(home.name)})
    assert_same(fork, finished[1])
    assert read_lines(Path("my forks/a/metrics.jsonl"))[0]["step"] == 3


@pytest.mark.slow
def test_k1_a_checkpoint_is_named_from_within(home, finished, monkeypatch):  # noqa: F811
    """`.` is a relative path too, and has no name."""
    monkeypatch.chdir("run/checkpoints/2")
    assert q.load(".").config == q.load(home / "run").config
    fork = run(home / "start", home / "fork", **{"training.resume_from": "."})
    assert_same(fork, finished[1])


@pytest.mark.slow
def test_k1_a_link_to_a_checkpoint_is_one(home, finished, monkeypatch):  # noqa: F811
    monkeypatch.setattr("train.loop.evaluate", lambda *_: {"eval_loss": 1.0, "eval_noised_perplexity": 1.0})
    Path("best").symlink_to("run/checkpoints/2")
    assert q.load("best").config == q.load("run").config
    assert q.load_tokenizer("best").eos_token_id is not None
    assert_same(run(Path("start"), Path("fork"), **{"training.resume_from": "best"}), finished[1])
    Path("disk").mkdir()
    Path("run/checkpoints").rename("disk/elsewhere")
    Path("run/checkpoints").symlink_to(home / "disk/elsewhere")  # all of them on another disk
    assert q.load("run/checkpoints/2").config == q.load("run").config


def test_k1_a_refusal_is_not_told_as_damage(home, monkeypatch, capsys):
    """What orbax or the system refuses says nothing of the files."""
    handler = ocp.PyTreeCheckpointHandler
    for error in (ValueError("Checkpoint path should be absolute."), PermissionError(13, "Permission denied")):

        def refuse(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(handler, "restore", refuse)
            with pytest.raises(q.InputError, match="nothing shows that it is damaged, so it was let be") as caught:
                run(Path("start"), Path("run"))
            assert str(error).split()[-1].rstrip(".") in str(caught.value)
            assert "backup" not in str(caught.value)
        with monkeypatch.context() as patch:
            patch.setattr(handler, "metadata", refuse)
            with pytest.raises(q.InputError, match="need not mean that they are damaged") as caught:
                q.load("run")
            assert "convert or copy" not in str(caught.value)
    assert steps_of(Path("run")) == [2]
    assert "damaged (" not in capsys.readouterr().err


def test_k1_an_unreadable_meta_is_no_damage(home, monkeypatch):
    read = Path.read_text

    def refuse(self, *rest, **more):
        if self.name == "metadata":
            raise PermissionError(13, "Permission denied")
        return read(self, *rest, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(q.InputError, match=r"checkpoints/2: cannot be read \(meta: Permission denied\)"):
        run(Path("start"), Path("run"))
    assert steps_of(Path("run")) == [2]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model.base_model_path", "model.qwen3llada_model_path"])
def test_k1_a_run_goes_on_though_its_starting_model_has_moved(home, finished, capsys, key):  # noqa: F811
    shutil.copy("start/text.txt", "text.txt")
    gone = {"model.base_model_path": "start", key: "models/gone", "dataset.name": "text.txt"}
    if key == "model.base_model_path":
        shutil.rmtree("start")
    held_out = {"evaluation.eval_name": "text.txt"}
    assert_same(run(Path("start"), Path("run"), **gone, **held_out), finished[1])
    assert "models/gone: no such folder; config and tokenizer are taken from run" in capsys.readouterr().err
    assert tokens.load_tokenizer(Path("run")).eos_token_id is not None
    with pytest.raises(q.InputError, match="models/gone"):  # a new run has nothing else to begin with
        run(Path("start"), Path("new"), **(gone | {"model.base_model_path": "models/gone"}), **held_out)


@pytest.mark.slow
def test_k1_a_fork_and_an_emptied_start_model(home, finished, capsys):  # noqa: F811
    shutil.move("start/text.txt", "text.txt")
    shutil.rmtree("start")
    Path("start").mkdir()
    more = {"dataset.name": "text.txt", "evaluation.eval_name": "text.txt", "training.resume_from": "run"}
    assert_same(run(Path("start"), Path("fork"), **more), finished[1])
    assert "no config.json in it" in capsys.readouterr().err


# ---- a writer that was killed --------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from qwen3llada_jax.io.atomic_files import new_folder
rename, seen = Path.rename, []
def rename_once(self, target):
    if seen:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(target)
    return rename(self, target)
Path.rename = rename_once
with new_folder(Path(sys.argv[1]), overwrite=True) as part:
    (part / "config.json").write_text('{"new": 1}')
"""


@pytest.fixture
def killed(start, tmp_path, monkeypatch) -> Path:
    """A model whose overwriting was killed between the two renames."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(start, "model")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, "model"], env=environment, check=False, timeout=120)
    assert done.returncode == -9
    assert not Path("model").exists()
    return Path("model")


def test_k1_a_model_whose_overwriting_was_killed_opens(killed, capsys):
    assert q.load("model").config.vocab_size == 1088
    assert "model: put back" in capsys.readouterr().err


@pytest.mark.slow
def test_k1_a_model_whose_overwriting_was_killed_trains_exports_and_is_overwritten(killed, start):
    """Each program that names it finds it; the run does not fall back to another model in silence."""
    export(killed, Path("hf"))
    assert Path("hf/config.json").is_file()
    killed.rename(".model.99999999.old")
    base = {"model.base_model_path": "elsewhere", "model.qwen3llada_model_path": "model", "training.max_steps": 1}
    run(start, Path("run"), **base, **{"evaluation.do_eval_loss": False})
    assert Path("model/config.json").is_file()
    Path("model").rename(".model.99999999.old")
    with new_folder(Path("model"), overwrite=True) as part:
        assert Path("model/model.safetensors").is_file()  # until the new one is whole
        (part / "config.json").write_text("{}")
    assert [p.name for p in Path("model").iterdir()] == ["config.json"]


def test_k1_a_writer_at_work_is_let_be(start, tmp_path):
    shutil.copytree(start, tmp_path / f".model.{os.getppid()}.old")
    with pytest.raises(q.InputError, match="no such folder"):
        q.load(tmp_path / "model")
    (tmp_path / f".model.{os.getppid()}.old").rename(tmp_path / ".other.99999999.old")
    with pytest.raises(q.InputError, match="no such folder"):  # another one's
        q.load(tmp_path / "model")


def test_k1_tokenizer_files_are_copied_whole(home, monkeypatch):
    """A kill in the middle of a copy must not leave half a tokenizer where a whole one stood."""
    from qwen3llada_jax.checkpoint import model_folder

    whole = Path("run/tokenizer.json").read_bytes()

    def half(_, target):
        Path(target).write_bytes(whole[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", half)
    with pytest.raises(q.InputError, match="No space left"):
        model_folder.copy_tokenizer(Path("start"), Path("run"))
    assert Path("run/tokenizer.json").read_bytes() == whole
    assert not list(Path("run").glob(".*.part"))
    assert params_of(Path("run"))


def test_k4_resume_from_is_never_ignored(home, finished, monkeypatch):  # noqa: F811
    """Where `output_dir` has checkpoints, its newest is gone on from; who names another is told so, and the way."""
    shutil.copytree(finished[0], "all")

    def origin(named: object, out: str = "all") -> Origin | None:
        config = read_config(None, settings(Path("start"), Path(out), **{"training.resume_from": named}))
        return origin_of(config, Path(out))

    own = Origin(Path("all"), is_fork=False)
    assert [origin(named) for named in ("auto", "all", home / "all", "all/checkpoints/6")] == [own] * 4
    for named in ("all/checkpoints/2", "run", home / "run" / "checkpoints" / "2"):
        with pytest.raises(q.InputError, match="goes on from its newest, 6; leave resume_from out, or go on") as told:
            origin(named)
        assert str(told.value).endswith(f"--training.resume_from {os.path.relpath(named)}")
        assert len(str(told.value)) < 500
        assert origin(named, "new") == Origin(Path(named), is_fork=True)
    with pytest.raises(q.InputError, match="no training run with checkpoints there"):
        origin("ruin")
    # A fork's own command goes on, from another folder too, and when what it began with is gone.
    meta = Path("all/checkpoints/6/meta/metadata")
    told = json.loads(meta.read_text())
    told["config"]["training.resume_from"] = "run"
    meta.write_text(json.dumps(told))
    assert origin("run") == origin("./run") == origin(home / "run") == own
    shutil.rmtree("run")
    assert origin("run") == own
