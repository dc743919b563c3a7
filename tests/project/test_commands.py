"""The command `qwen3llada`: its subcommands are the programs, found in a checkout and in a wheel alike."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import DATA, ROOT, TINY

import qwen3llada_jax as q
from qwen3llada_jax import cli, commands
from qwen3llada_jax.__main__ import _fixed
from qwen3llada_jax.commands import COMMANDS, as_typed, bundled_configs
from train.config.parse import ConfigFlags, read_config
from train.runtime import hints


def programs() -> dict[str, bool]:
    """Every module that is a program: whether it leaves at once."""
    found = {}
    for room in ("converters", "train", "sample"):
        for file in (ROOT / room).rglob("*.py"):
            if match := re.search(r"^if __name__ == \"__main__\":\n    \w+\.run\(main(.*)\)$", file.read_text(), re.M):
                found[".".join(file.relative_to(ROOT).with_suffix("").parts)] = "leaves_at_once=True" in match[1]
    return found


def test_every_program_is_a_command_and_ends_as_it_does():
    assert {c.module: c.leaves_at_once for c in COMMANDS.values()} == programs()
    assert " ".join(COMMANDS) == "import train sft plan report generate chat serve compare evaluate export analyze"


@pytest.fixture
def through_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwen3llada sft"])


def test_programs_are_named_as_they_were_started(monkeypatch):
    text = "python -m train.run --mode sft, or python -m converters.from_hf --src X; train.run --help, sample.generate"
    assert as_typed(text) == text
    typed = "qwen3llada sft, or qwen3llada import --src X; qwen3llada train --help, qwen3llada generate"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["qwen3llada sft"])
        assert as_typed(text) == typed
        assert as_typed("python -m train.run --mode pretrain --x") == "qwen3llada train --x"
        assert as_typed("my.train.runs sample/flags.py train.step") == "my.train.runs sample/flags.py train.step"
    monkeypatch.setattr(commands, "IS_CHECKOUT", False)  # an installed wheel has nothing else
    assert as_typed(text) == typed


def test_what_is_to_be_typed_next_runs_where_it_is_pasted(tmp_path, monkeypatch, through_the_command):
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(tmp_path))  # where no such command is
    assert hints.command("sample.generate", "--model", "a b") == (
        f"{sys.executable} -m qwen3llada_jax generate --model 'a b'"
    )
    other = tmp_path / "qwen3llada"
    other.write_text("")
    other.chmod(0o755)
    assert hints.command("train.report").startswith(sys.executable)  # that of another environment
    monkeypatch.setattr(hints.shutil, "which", lambda name: str(beside / name))
    assert hints.command("train.report", "x") == "qwen3llada report x"


def test_what_a_command_always_says_may_be_said_again_and_not_otherwise():
    fixed = COMMANDS["sft"].fixed

    def of(*words: str) -> Sequence[str]:
        return _fixed("sft", fixed, cli.parse(ConfigFlags, words).keys)

    assert of("--lr", "1") == of("--prompts=--mode=pretrain") == fixed
    assert of("--mode", "sft") == of("--training.mode=sft") == ()
    for words, value in (
        ("--mode pretrain", "pretrain"),
        ("--lr 1 --training.mode=pretrain", "pretrain"),
        ("--mode=", "''"),
    ):
        line = f"qwen3llada sft is qwen3llada train --mode sft, not --mode {value}; leave it out"
        with pytest.raises(q.InputError, match=f"^{line}$"):
            of(*words.split())
    with pytest.raises(q.InputError, match=r"^--prompts needs a value"):
        of("--prompts", "--mode=pretrain")
    assert all(not command.fixed for name, command in COMMANDS.items() if name != "sft")


def test_a_bundled_configuration_has_a_name_and_a_users_file_comes_first(tmp_path, monkeypatch):
    assert set(bundled_configs()) == {"adapt", "pretrain", "plan", "sft"}
    assert {p.stem for p in (ROOT / "configs").glob("*.yaml")} == {*bundled_configs(), "demo"}
    monkeypatch.chdir(tmp_path)
    for name, file in bundled_configs().items():
        assert read_config(Path(name)) == read_config(file)
    (tmp_path / "plan").mkdir()
    assert read_config(Path("plan")) == read_config(bundled_configs()["plan"])  # a folder is no configuration
    for path in ("./sft", "sft/", "./plan", f"{tmp_path}/sft"):
        with pytest.raises(q.InputError, match="cannot be read"):
            cli.parse(ConfigFlags, ["--config", path]).read()
    (tmp_path / "sft").write_text("training: {lr: 0.5}\ndataset: {name: x}\nmodel: {base_model_path: y}")
    for path in ("sft", "./sft"):
        assert cli.parse(ConfigFlags, ["--config", path]).read().training.lr == 0.5
    with pytest.raises(q.InputError, match=r"^--config sfd: .*bundled ones \(adapt, plan, pretrain, sft\)$"):
        read_config(Path("sfd"))
    for path in ("sft.yaml", "configs/sft"):
        with pytest.raises(q.InputError, match="cannot be read"):
            read_config(Path(path))


def test_what_the_pages_say_of_the_command_are_commands():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    said = [word for page in pages for word in re.findall(r"\bqwen3llada ([\w|]+)", page.read_text())]
    assert said
    assert {name for word in said for name in word.split("|")} <= {*COMMANDS, "COMMAND"}


def test_the_library_finds_programs_by_name_only():
    """`importlib` in the console module; an import anywhere else is test_package's."""
    for file in (ROOT / "qwen3llada_jax").rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        loads = [n for n in calls if ast.unparse(n.func).endswith(("import_module", "run_module", "__import__"))]
        if file.name != "__main__.py":
            for call in loads:
                assert not isinstance(call.args[0], ast.Constant) or "train" not in call.args[0].value, file


@pytest.mark.slow
def test_a_worker_process_finds_the_programs_too(tmp_path):
    """What a spawned process unpickles names a module of the package, of which the process knows nothing else."""
    code = "import pickle; print(pickle.loads(bytes.fromhex(input())).__module__)"
    pickled = b"cqwen3llada_jax.train.config.schema\nTrainingConfig\n."
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, input=pickled.hex(), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "qwen3llada_jax.train.config.schema", done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder, whose own files have our programs' names."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "train.py").write_text("raise SystemExit('train.py of the user')")
    for name in ("sample", "converters"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('a package of the user')")
    shutil.copytree(TINY, folder / "qwen3")
    shutil.copy(DATA / "shakespeare" / "valid.txt", folder / "text.txt")
    return folder


def run_in(folder: Path, path: Path, *arguments: object) -> subprocess.CompletedProcess:
    """`python -m qwen3llada_jax …`, of the code at `path`."""
    return subprocess.run(
        [sys.executable, "-m", "qwen3llada_jax", *map(str, arguments)], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(path), "XLA_FLAGS": "--xla_backend_optimization_level=0"}, check=False,
        timeout=900,
    )  # fmt: skip


def works_from(folder: Path, path: Path) -> None:
    """Import, train three updates, write: all by the command, in a folder with other things of our names."""
    out = folder / path.name
    for arguments in (
        ["import", "--src", "qwen3", "--dst", out / "model", "--mask-token-id", "auto"],
        ["train", "--config", "pretrain", "--model.qwen3llada_model_path", out / "model", "--project.output_dir",
         out / "run", "--dataset.name", "text.txt", "--dataset.config", "null", "--training.max_steps", "3",
         "--training.batch_size", "4", "--training.micro_batch_size", "2", "--training.max_length", "64",
         "--evaluation.do_eval_loss", "false"],
        ["generate", "--model", out / "run", "--prompt", "ROMEO:", "--gen-length", "8", "--block-length", "8"],
    ):  # fmt: skip
        done = run_in(folder, path, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "python -m train" not in done.stdout + done.stderr
        assert "python -m sample" not in done.stdout + done.stderr
    assert done.stdout.startswith("ROMEO:")


@pytest.mark.journey
def test_the_command_works_in_a_checkout(folder):
    helped = run_in(folder, ROOT, "--help")
    assert helped.returncode == 0
    assert all(f"\n  {name} " in helped.stdout for name in COMMANDS)
    wrong = run_in(folder, ROOT, "genrate")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "did you mean 'generate'?" in wrong.stderr
    helped = run_in(folder, ROOT, "generate", "--help").stdout
    assert "usage: qwen3llada generate" in helped
    assert "python -m" not in helped
    works_from(folder, ROOT)


@pytest.mark.journey
def test_the_command_works_from_a_wheel(folder, tmp_path):
    """Built from the tree, without an index; test_wheel.py installs it with all that it needs."""
    sources, site = tmp_path / "sources", tmp_path / "site"
    for name in ("qwen3llada_jax", "converters", "train", "sample", "configs"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
         "--target", site, sources], check=True,
    )  # fmt: skip
    shutil.rmtree(sources)
    assert {p.name for p in site.iterdir()} == {"bin", "qwen3llada_jax", *(p.name for p in site.glob("*.dist-info"))}
    assert (site / "bin" / "qwen3llada").is_file()
    works_from(folder, site)
