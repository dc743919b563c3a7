"""The public face, the files it writes, and the manners of its programs."""

import ast
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.io import atomic_files
from train.monitor.jsonl import JsonLines, read_lines


def test_public_names_are_there_and_no_others():
    public = {n for n in dir(q) if not n.startswith("_")}
    modules = {p.stem for p in (ROOT / "qwen3llada_jax").iterdir()}
    assert set(q.__all__) == public - modules | {"cross_entropy"} & set(q.__all__)
    for name in ("load", "forward_process", "pretrain_loss", "sft_loss", "generate", "SamplerConfig", "InputError"):
        assert name in q.__all__


@pytest.mark.slow
def test_plain_import_needs_no_torch_and_no_program():
    code = "import sys, qwen3llada_jax; print(sorted({'torch', 'train', 'sample', 'converters'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_imports_no_program_and_programs_not_each_other():
    programs = {"converters", "train", "sample"}
    for room in ("qwen3llada_jax", *programs):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                for name in names:
                    assert name.split(".")[0] not in programs - {room}, f"{file}: {name}"


def arrows(package: str) -> set[tuple[str, str]]:
    """(room, room that it imports from) of a package: its folders, and its files outside of any."""
    found = set()
    for file in (ROOT / package).rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                above = parts[: len(parts) - node.level] if node.level else ()
                module = ".".join((*above, *([node.module] if node.module else [])))
                for name in (f"{module}.{alias.name}".split(".") for alias in node.names):
                    is_there = (ROOT / package / name[1]).is_dir() or (ROOT / package / f"{name[1]}.py").exists()
                    if name[0] == package and is_there and name[1] != parts[1]:
                        found.add((parts[1], name[1]))
    return found


@pytest.mark.parametrize("package", ["qwen3llada_jax", "train", "sample", "converters"])
def test_no_two_rooms_import_each_other_in_a_circle(package):
    left = arrows(package)
    assert left or package == "converters"
    while left:
        ends = {to for _, to in left} - {room for room, _ in left}
        assert ends, f"in a circle: {sorted(left)}"
        left = {(room, to) for room, to in left if to not in ends}


def test_every_folder_of_code_is_a_package():
    """A folder without `__init__.py` works in the checkout, and is left out by whoever looks for packages."""
    for room in ("qwen3llada_jax", "converters", "train", "sample"):
        for file in (ROOT / room).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file


def test_no_folder_of_code_has_more_than_14_files():
    """More than one looks through: they are several subjects, each of which is a room."""
    for room in ("qwen3llada_jax", "converters", "train", "sample"):
        for folder in {file.parent for file in (ROOT / room).rglob("*.py")}:
            assert len(list(folder.glob("*.py"))) <= 14, folder


def test_flags_take_either_dash_and_unknown_ones_get_a_guess():
    @dataclass(frozen=True)
    class Flags:
        gen_length: int = flag("")

    assert cli.parse(Flags, ["--gen_length", "3"]) == cli.parse(Flags, ["--gen-length=3"]) == Flags(3)
    with pytest.raises(q.InputError, match=r"unknown option '--gen-lenght'; did you mean '--gen-length'?"):
        cli.parse(Flags, ["--gen-lenght", "3"])
    with pytest.raises(q.InputError, match="invalid whole value"):
        cli.parse(Flags, ["--gen-length", "x"])


def test_written_files_are_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    atomic_files.write_text(target, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(q.InputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        atomic_files.write_text(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_new_folder_replaces_only_when_told_and_only_when_done(tmp_path):
    target = tmp_path / "model"
    with atomic_files.new_folder(target) as folder:
        (folder / "x").write_text("1")
        (folder / "config.json").write_text("{}")
        assert not target.exists()
    with pytest.raises(q.InputError, match="not empty"), atomic_files.new_folder(target):
        pass
    with pytest.raises(RuntimeError), atomic_files.new_folder(target, overwrite=True) as folder:
        raise RuntimeError
    assert (target / "x").read_text() == "1"
    with atomic_files.new_folder(target, overwrite=True) as folder:
        (folder / "y").write_text("2")
    assert [p.name for p in target.iterdir()] == ["y"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / "file").write_text("")
    with pytest.raises(q.InputError, match="is a file"), atomic_files.new_folder(tmp_path / "file"):
        pass


def test_new_folder_leaves_nothing_though_other_writers_of_a_failed_save_go_on(tmp_path):
    def keep_writing(folder):
        for i in range(30):
            with suppress(FileNotFoundError):  # removed in between
                folder.mkdir(exist_ok=True)
                (folder / str(i)).write_text("late")
            time.sleep(0.01)

    def fail():
        with atomic_files.new_folder(tmp_path / "model") as folder:
            late = threading.Thread(target=keep_writing, args=(folder,))
            late.start()
            writers.append(late)
            raise OSError("disk full")

    writers = []
    with pytest.raises(q.InputError, match="cannot be written"):
        fail()
    writers[0].join()
    assert not list(tmp_path.iterdir())


def test_metrics_forget_what_came_after_the_step_resumed_at(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    assert len(read_lines(path)) == 3
    log = JsonLines(path, resume_at=2)
    log.write({"step": 3, "loss": float("nan")})
    log.close()
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": None}]


def part_of_dead(place: Path, ending: str = "part") -> Path:
    part = place.with_name(f".{place.name}.99999999.{ending}")
    (part / "params").mkdir(parents=True)
    (part / "params" / "weights").write_text("many")
    return part


def test_k1_what_killed_writers_left_is_removed_by_the_next_and_living_ones_are_let_be(tmp_path, capsys):
    target = tmp_path / "model"
    dead = [part_of_dead(target), part_of_dead(target, "old")]
    others = part_of_dead(tmp_path / "model.b")
    alive = target.with_name(f".model.{os.getppid()}.part")
    alive.mkdir()
    target.mkdir()
    (target / "config.json").write_text("{}")
    with atomic_files.new_folder(target, overwrite=True) as folder:
        (folder / "config.json").write_text("{}")
        with (
            pytest.raises(q.InputError),
            atomic_files.new_folder(target, overwrite=True),
        ):  # of our own process, at work
            pass
    assert not any(part.exists() for part in dead)
    assert others.is_dir()
    assert alive.is_dir()
    assert "99999999.part: removed; its writer was killed" in capsys.readouterr().err


def test_k1_a_part_of_our_own_number_from_before_is_anothers(tmp_path, monkeypatch):
    """In a container the first process has the same number every time."""
    part = tmp_path / f".model.{os.getpid()}.part"
    part.mkdir()
    monkeypatch.setattr(atomic_files, "_BEGAN", time.time() + 60)
    with atomic_files.new_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_k1_another_models_old_folder_is_not_put_back(tmp_path):
    part_of_dead(tmp_path / "model.b", "old")
    atomic_files.put_back(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("how", ["link", "dangling"])
def test_k1_overwriting_a_link_writes_where_it_leads(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    Path("disk").mkdir()
    if how == "link":
        Path("disk/model").mkdir()
        Path("disk/model/config.json").write_text("old")
    Path("model").symlink_to("disk/model")
    with atomic_files.new_folder(Path("model"), overwrite=True) as folder:
        (folder / "config.json").write_text("new")
    assert Path("model").is_symlink()
    assert Path("disk/model/config.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.json", "disk", "model", "model"]


def test_k1_a_killed_overwriting_of_a_link_is_put_back(tmp_path):
    part_of_dead(tmp_path / "disk" / "model", "old")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    atomic_files.put_back(tmp_path / "model")
    assert (tmp_path / "model" / "params").is_dir()


def test_k7_a_tilde_is_the_home_folder_wherever_a_path_is_typed(tmp_path, monkeypatch):
    from train.config.parse import read_config

    monkeypatch.setenv("HOME", str(tmp_path))

    @dataclass(frozen=True, kw_only=True)
    class Flags:
        dst: Path = flag("")
        model: cli.Place | None = flag("", None)
        text: str | None = flag("", None)
        runs: list[Path] = flag("", positional=True)

    flags = cli.parse(Flags, ["--dst=~/conv", "--model", "~/r", "--text", "~/kept", "a", "~"])
    assert (flags.dst, flags.model, flags.text) == (tmp_path / "conv", f"{tmp_path}/r", "~/kept")
    assert flags.runs == [Path("a"), tmp_path]
    with pytest.raises(q.InputError, match=r"~nobodyhere/x.*write \./~nobodyhere/x"):
        cli.parse(Flags, ["a", "--dst=~nobodyhere/x"])
    (tmp_path / "c.yaml").write_text(
        "project: {output_dir: ~/out, log_dir: ~/logs}\nmodel: {base_model_path: ~/m}\n"
        "dataset: {mixture: [{name: ~/d}, {name: b}]}\n"
    )
    config = read_config(Path("~/c.yaml"), [("training.resume_from", "~/r"), ("evaluation.eval_name", "e")])
    assert (config.project.output_dir, config.project.log_dir) == (f"{tmp_path}/out", f"{tmp_path}/logs")
    assert (config.model.base_model_path, config.training.resume_from) == (f"{tmp_path}/m", f"{tmp_path}/r")
    assert [part.name for part in config.dataset.mixture] == [f"{tmp_path}/d", "b"]
    with pytest.raises(q.InputError, match=r"project\.output_dir: .*no user of that name"):
        read_config(Path("~/c.yaml"), [("project.output_dir", "~nobodyhere")])


def test_k2_the_part_of_a_writer_on_another_host_is_let_be(tmp_path):
    """On a shared disk its number says nothing here: it looked dead, and its work was removed."""
    elsewhere = tmp_path / ".model.other-host-999999.part"
    here = tmp_path / f".model.{socket.gethostname()}-999999.part"
    for part in (elsewhere, here):
        part.mkdir()
    with atomic_files.new_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
    assert elsewhere.is_dir()
    assert not here.exists()
