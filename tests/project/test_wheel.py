"""The wheel alone: in a new environment without PyTorch, from a folder of one's own, without network.

Making the environment needs a package index and a minute; the rest is what a user does, with Qwen3's own chat template.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DATA, QWEN3_TEMPLATE, ROOT, TINY

from qwen3llada_jax.commands import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.journey, pytest.mark.xdist_group("wheel")]  # one environment for all
PACKAGES = ("qwen3llada_jax", "converters", "train", "sample")
# Modules that cannot do without what an extra brings, and what they miss.
WITH_EXTRAS = {"qwen3llada_jax.sample.tasks.harness": "lm_eval"} | {
    f"qwen3llada_jax.sample.serving.{module}": "fastapi" for module in ("answering", "app", "faults", "limits")
}
QUICK = ["--training.max_steps", "3", "--training.batch_size", "4", "--training.max_length", "128"]
WRITE = ["--gen-length", "16", "--steps", "4", "--block-length", "8"]


def done_well(command: list, **settings) -> str:
    """Run a command; its standard output, or what it printed as the failure."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900, check=False, **settings)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


class Place:
    """A user's folder and his Python."""

    def __init__(self, folder: Path, python: Path):
        self.folder, self.python = folder, python
        self.environment = {
            "PATH": f"{python.parent}:/usr/bin:/bin",
            "HOME": str(folder),  # no cache, no settings of anybody else
            "LANG": "C.UTF-8",
            **dict.fromkeys(
                ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
            ),  # offline
            # as in conftest: half of the time would be LLVM's
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        }

    def run(self, *arguments, code: int = 0, said: str | None = None) -> subprocess.CompletedProcess:
        """`qwen3llada …`, with lines for its standard input; nothing of others' news may be in its output."""
        done = subprocess.run(
            [self.python.parent / "qwen3llada", *map(str, arguments)], check=False, cwd=self.folder, input=said,
            env=self.environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        both = done.stdout + done.stderr
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{both[-3000:]}"
        for word in ("PyTorch was not found", "Traceback", "Warning", "WARNING", "TPU", "python -m"):
            assert word not in both, f"{arguments}: {word}\n{both[-3000:]}"
        return done


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """Wheel built, installed alone; the user has a Qwen3 with its chat template, a text and dialogues."""
    base = tmp_path_factory.mktemp("wheel")
    sources = base / "sources"  # pip must not write into the checkout
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    done_well([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", base, sources])
    (wheel,) = base.glob("*.whl")
    done_well([sys.executable, "-m", "venv", base / "venv"])
    python = base / "venv" / "bin" / "python"
    done_well([python, "-m", "pip", "install", "--quiet", wheel])
    done_well([python, "-m", "pip", "check"])
    shutil.rmtree(sources)

    folder = base / "home"
    shutil.copytree(TINY, folder / "qwen3")
    shutil.copy(QWEN3_TEMPLATE, folder / "qwen3" / "chat_template.jinja")
    shutil.copytree(DATA, folder / "data")
    (folder / "train.py").write_text("raise SystemExit('train.py of the user')")
    (folder / "sample").mkdir()
    (folder / "sample" / "__init__.py").write_text("raise SystemExit('sample of the user')")
    return Place(folder, python)


@pytest.fixture(scope="module")
def model(place) -> Place:
    place.run("import", "--src", "qwen3", "--dst", "models/base", "--mask-token-id", "auto")
    return place


@pytest.fixture(scope="module")
def adapted(model) -> Place:
    model.run(
        "train", "--model.qwen3llada_model_path", "models/base", "--project.output_dir",
        "runs/adapted", "--dataset.name", "data/shakespeare/valid.txt", "--evaluation.do_eval_loss", "false", *QUICK,
    )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def tuned(adapted) -> Place:
    adapted.run(
        "sft", "--model.qwen3llada_model_path", "runs/adapted", "--project.output_dir",
        "runs/tuned", "--dataset.name", "data/dialogue/train.jsonl", "--evaluation.eval_name",
        "data/dialogue/valid.jsonl", "--evaluation.eval_max_batches", "1", *QUICK,
    )  # fmt: skip
    return adapted


def test_k12_every_module_is_imported_from_the_wheel_without_pytorch(place):
    code = f"""
import importlib, importlib.util, pkgutil, sys
for name in ("torch", "matplotlib", "libtpu", "pytest", "lm_eval"):
    assert importlib.util.find_spec(name) is None, name
files, lacking = [], {{}}
for name in ("train", "sample", "converters"):
    spec = importlib.util.find_spec(name)
    assert spec is None or {str(place.folder)!r} in spec.origin, name
package = importlib.import_module("qwen3llada_jax")
for module in pkgutil.walk_packages(package.__path__, "qwen3llada_jax."):
    if not module.name.endswith(".custom_generate"):  # goes into exports, and is run by transformers there
        try:
            files.append(importlib.import_module(module.name).__file__)
        except ModuleNotFoundError as error:
            lacking[module.name] = error.name
assert lacking == {WITH_EXTRAS}, lacking
print(len(files), *{{f for f in files if not f.startswith(sys.prefix)}})
print(*(p for p in sys.path if p.startswith({str(ROOT)!r})))
"""
    (place.folder / "look.py").write_text(code)
    said = done_well([place.python, "-m", "look"], cwd=place.folder, env=place.environment)
    files = sum(1 for name in PACKAGES for _ in (ROOT / name).rglob("*.py"))
    assert said.split() == [str(files - 2 - len(WITH_EXTRAS))]


def test_k12_every_command_of_the_wheel_has_its_help(place):
    listed = place.run("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in listed
        said = done_well([place.python.parent / "qwen3llada", name, "--help"], cwd=place.folder, env=place.environment)
        assert f"qwen3llada {name}" in said
        assert "python -m" not in said
    assert "did you mean 'generate'?" in place.run("genrate", code=2).stderr
    assert "(adapt, plan, pretrain, sft)" in place.run("train", "--config", "sfd", code=2).stderr


def test_k12_the_wheel_pretrains_and_fine_tunes(tuned):
    for run in ("adapted", "tuned"):
        folder = tuned.folder / "runs" / run
        assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()][-1] == 3
        assert (folder / "chat_template.jinja").read_text() == QWEN3_TEMPLATE.read_text()


def test_k12_the_wheel_writes_and_chats(tuned):
    written = tuned.run("generate", "--model", "runs/adapted", "--prompt", "ROMEO:\nMy", *WRITE)
    assert written.stdout.strip()
    asked = tuned.run(
        "generate",
        "--model",
        "runs/tuned",
        "--chat",
        "--prompt",
        "Who are you?",
        "--trace",
        "t.html",
        "--live",
        *WRITE,
    )
    assert "NFE" in asked.stderr
    assert (tuned.folder / "t.html").is_file()
    said = tuned.run("chat", "--model", "runs/tuned", *WRITE, said="Who are you?\n/set steps=2\nAnd I?\n/quit\n")
    assert said.stdout.strip()


def test_k12_the_wheel_compares_rules(tuned):
    rows = (tuned.folder / "data" / "dialogue" / "valid.jsonl").read_text().splitlines()[:2]
    (tuned.folder / "held_out.jsonl").write_text("\n".join(rows) + "\n")
    said = tuned.run(
        "compare", "--model", "runs/tuned", "--chat", "--data", "held_out.jsonl", "--gen-length", "8",
        "--block-length", "8", "--rules", "low_confidence", "--steps", "4",
    )  # fmt: skip
    assert "low_confidence" in said.stdout


def test_k12_the_wheel_exports(tuned):
    tuned.run("export", "--src", "runs/tuned", "--dst", "export", "--dtype", "bfloat16")
    tuned.run("analyze", "--src", "export")
    (tuned.folder / "open.py").write_text(
        "from transformers import AutoTokenizer, AutoConfig\n"
        "print(AutoConfig.from_pretrained('export').model_type, AutoTokenizer.from_pretrained('export').eos_token)\n"
    )
    done = subprocess.run(
        [tuned.python, "open.py"], cwd=tuned.folder, env=tuned.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == "qwen3"
    tuned.run("import", "--src", "export", "--dst", "models/again")  # its config names the mask token


def test_k12_the_wheel_plans(adapted):
    plan = ["plan", "--model.qwen3llada_model_path", "models/base", "--dataset.name", "unused", *QUICK]
    assert "collectives" in adapted.run(*plan, "--topology", "cpu:2", "--mesh.fsdp", "2", "--mesh.data", "1").stdout
    done = subprocess.run(
        [adapted.python.parent / "qwen3llada", *plan, "--topology", "v5e:4x4"], cwd=adapted.folder, text=True,
        env=adapted.environment, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'jax[tpu]'" in done.stderr


def test_k12_the_wheel_reports_once_what_its_error_names_is_installed(tuned):
    report = ["report", "runs/adapted", "runs/tuned", "--out", "loss.png"]
    error = tuned.run(*report, code=2).stderr
    assert error.count("\n") == 1
    (command,) = re.findall(r"pip install \S+", error)
    online = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done_well([tuned.python, "-m", *command.split(), "--quiet"], env=online)
    tuned.run(*report)
    tuned.run("generate", "--model", "runs/tuned", "--chat", "--prompt", "Who?", "--trace", "t.png", *WRITE)
    for name in ("loss.png", "loss.html", "t.png"):
        assert (tuned.folder / name).is_file()
