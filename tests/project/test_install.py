"""What an installation needs and what it gets: imports against requirements, the wheel's files, words on installing."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import jax
import pytest
from conftest import ROOT, TINY

from qwen3llada_jax.process import libtpu

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("qwen3llada_jax", "converters", "train", "sample")
# What a program imports when it is asked for: an extra brings it, and a line tells which package is missing.
OPTIONAL = {
    "fastapi": "serve",
    "fsspec": "gcs",
    "gcsfs": "gcs",
    "google": "gcs",
    "lm_eval": "eval",
    "matplotlib": "plot",
    "prometheus_client": "serve",
    "pydantic": "serve",  # fastapi's
    "starlette": "serve",
    "uvicorn": "serve",
    "tensorboardX": "tensorboard",
    "wandb": "wandb",
    "libtpu": "plan",
}
TOOLS = {
    "pytest-xdist", "ruff", "mypy", "pre-commit", "types-pyyaml", "hatchling", "ipykernel", "mkdocs-material",
    "mkdocstrings", "schemathesis",
}  # run, not imported  # fmt: skip
PAGE = "qwen3llada_jax/sample/serving/page.html"
PUBLISHED = {"xprof"}  # named in the docs, needed by nothing here


INSTALLED = importlib.metadata.packages_distributions()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(requirements: list[str]) -> set[str]:
    """The distributions of requirements, and of the extras of our own that they name."""
    names = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if normal(name) == normal(PROJECT["name"]):
            for extra in extras.split(","):
                names |= required(PROJECT["optional-dependencies"][extra])
        else:
            names.add(normal(name))
            if name == "jax" and extras == "tpu":
                names.add("libtpu")
    return names


DEPENDENCIES = required(PROJECT["dependencies"])
EXTRAS = {name: required(requirements) for name, requirements in PROJECT["optional-dependencies"].items()}


def imports(room: str) -> dict[str, set[str]]:
    """Modules from outside that a room imports, by name or through importlib, and the files that do."""
    own = {*PACKAGES, "benchmarks", "examples", "conftest", *(p.stem for p in (ROOT / "tests").rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for file in (ROOT / room).rglob("*.py"):
        if file.name == "custom_generate.py":  # goes into exports, and is run by transformers there
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                function = ast.unparse(node.func).rsplit(".", 1)[-1]
                if function in {"import_module", "find_spec", "importorskip", "_package"}:
                    names = [str(node.args[0].value)]
            for name in names:
                module = name.split(".")[0]
                if module not in sys.stdlib_module_names and module not in own:
                    found.setdefault(module, set()).add(str(file.relative_to(ROOT)))
    return found


def distributions(module: str) -> set[str]:
    known = {"wandb": ["wandb"], "libtpu": ["libtpu"], "jax_plugins": ["jax"], "no_such_package": []}
    return {normal(d) for d in INSTALLED.get(module, known.get(module, []))}


@pytest.mark.parametrize("room", PACKAGES)
def test_k12_what_a_package_imports_is_declared(room):
    for module, files in imports(room).items():
        declared = EXTRAS[OPTIONAL[module]] if module in OPTIONAL else DEPENDENCIES
        assert distributions(module) & declared, f"{sorted(files)}: {module} is not in pyproject.toml's dependencies"


@pytest.mark.parametrize(
    ("room", "extra"), [("tests", "test"), ("benchmarks", "bench"), ("examples", "dev"), ("docs", "docs")]
)
def test_k12_what_tests_benchmarks_and_examples_import_is_declared(room, extra):
    for module, files in imports(room).items():
        assert distributions(module) & (DEPENDENCIES | EXTRAS[extra]), f"{sorted(files)}: {module} is not in {extra}"


def test_k12_what_is_declared_is_imported():
    used = set()
    for room in (*PACKAGES, "tests", "benchmarks", "examples", "docs"):
        used |= {distribution for module in imports(room) for distribution in distributions(module)}
    assert set().union(DEPENDENCIES, *EXTRAS.values()) - used - TOOLS == set()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what a wheel is made of, beside what an older version and an untidy user left."""
    folder = tmp_path_factory.mktemp("sources")
    for name in (*PACKAGES, "configs", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in (
        "build/lib/qwen3llada_jax/of_an_older_version.py", "build/lib/old_package/__init__.py",
        "build/bdist.linux-x86_64/wheel/train/of_an_older_version.py", "train/__pycache__/x.cpython-311.pyc",
        "qwen3llada_jax.egg-info/top_level.txt", "train/run.py.orig", "train/notes.txt", "sample/trace.html",
        "configs/notes.txt",
        "old_package/__init__.py", "runs/sft/config.json",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old_package\n" if name.endswith("top_level.txt") else "")
    (folder / "qwen3llada_jax.egg-info" / "SOURCES.txt").write_text("train/notes.txt\nold_package/__init__.py\n")
    return folder


def build(kind: str, sources: Path, into: Path) -> Path:
    """Build a wheel, an sdist or an editable by pyproject.toml's own backend, in the folder, as pip does it."""
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["build-backend"]
    code = f"import {backend} as backend; print(backend.build_{kind}({str(into)!r}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=sources, capture_output=True, text=True)
    return into / done.stdout.splitlines()[-1]


def test_k12_the_wheel_holds_the_packages_and_nothing_else(sources, tmp_path):
    """The programs and the configurations inside the package; the command beside it."""
    wheel = zipfile.ZipFile(build("wheel", sources, tmp_path))
    ours = {str(p.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    ours |= {str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.yaml") if p.stem != "demo"}
    ours = {name if name.startswith("qwen3llada_jax/") else f"qwen3llada_jax/{name}" for name in ours}
    assert {n for n in wheel.namelist() if ".dist-info/" not in n} == ours | {"qwen3llada_jax/py.typed", PAGE}
    texts = {n.split(".dist-info/")[1]: wheel.read(n).decode() for n in wheel.namelist() if ".dist-info/" in n}
    assert "Apache License" in texts["licenses/LICENSE"]
    assert texts["entry_points.txt"].split() == ["[console_scripts]", "qwen3llada", "=", "qwen3llada_jax.__main__:main"]
    metadata = [line for line in texts["METADATA"].splitlines() if line.startswith("Requires-Dist:")]
    assert {
        normal(re.match(r"[\w.-]+", line.split()[1])[0]) for line in metadata if "extra ==" not in line
    } == DEPENDENCIES


def test_k12_a_wheel_of_the_sdist_is_the_same_and_an_editable_is_the_checkout(sources, tmp_path):
    with tarfile.open(build("sdist", sources, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    names = [zipfile.ZipFile(build("wheel", place, tmp_path)).namelist() for place in (sources, unpacked)]
    assert names[0] == names[1]
    editable = zipfile.ZipFile(build("editable", sources, tmp_path))
    (pth,) = (n for n in editable.namelist() if n.endswith(".pth"))
    assert editable.read(pth).decode().split() == [str(sources)]
    assert {n.split("/")[-1] for n in editable.namelist() if ".py" in n} == set()


def words_on_installing() -> list[tuple[str, str]]:
    """Each `pip install …` that a user may read, in docs and messages, with its place."""
    found = []
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*"), ROOT / "Makefile"]
    for file in (*texts, *(p for name in (*PACKAGES, "benchmarks", "examples") for p in (ROOT / name).rglob("*.py"))):
        for match in re.finditer(r"pip install ((?:--?[\w-]+ |'[^']+'|\$\(\w+\)|[^\s`\"',)(;]+)+)", file.read_text()):
            found.append((f"{file.relative_to(ROOT)}: {match[0]}", match[1]))
    return found


def test_k12_what_is_said_of_installing_works():
    """The project is on no index: it is installed from the checkout, `pip install '.[extra]'`; others by name."""
    known = set().union(DEPENDENCIES, PUBLISHED, *EXTRAS.values())
    said = words_on_installing()
    assert len(said) >= 8
    for place, arguments in said:
        for argument in (a.strip("'") for a in arguments.split() if not a.startswith("-")):
            name, extras = re.fullmatch(r"([^\[]+)(?:\[([\w,]+)\])?", argument).groups()
            assert normal(name) != normal(PROJECT["name"]), f"{place}: the project is on no index"
            if name == ".":
                assert set((extras or "plot").split(",")) <= set(EXTRAS), f"{place}: no such extra"
            elif "{name}" not in name and "$(TORCH)" not in name:  # both stand for packages of the table above
                assert normal(name) in known, f"{place}: no such package"
    for file in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(p for n in PACKAGES for p in (ROOT / n).rglob("*.py"))):
        assert "qwen3llada_jax[" not in file.read_text(), file


def python(code: str, **environment: str | None) -> subprocess.CompletedProcess:
    """Run code in a Python of its own, with JAX's choice of platform left to it."""
    settings = {k: v for k, v in {**os.environ, "JAX_PLATFORMS": None, **environment}.items() if v is not None}
    return subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_k12_that_there_is_no_pytorch_is_no_news_and_all_else_is():
    done = python(f"""
import logging, sys
sys.modules["torch"] = None
from pathlib import Path
from qwen3llada_jax.text.tokens import load_tokenizer
load_tokenizer(Path({str(TINY)!r}))
from transformers.utils import is_torch_available, logging as theirs
assert not is_torch_available()
theirs.get_logger("transformers.x").warning("a warning")
theirs.get_logger("transformers").warning("PyTorch was not found: said by the user's own program")
""")
    assert done.returncode == 0, done.stderr
    assert [line.split("] ")[-1] for line in done.stderr.splitlines()] == [
        "a warning", "PyTorch was not found: said by the user's own program"
    ]  # fmt: skip


LOOK = """
import jax
from qwen3llada_jax import cli as command_line
def main():
    print(jax.devices()[0].platform, "libtpu.so" in open("/proc/self/maps").read())
command_line.run(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; libtpu is for Linux")
def test_k11_libtpu_without_a_tpu_is_neither_started_nor_heard_of():
    """`train.plan`'s compiler is installed where tests run: other programs must not wake it."""
    done = python(LOOK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu False\n", "")


@pytest.mark.parametrize("sign", ["TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES"])
def test_k11_where_there_may_be_a_tpu_jax_chooses(monkeypatch, sign):
    """Taking the CPU of a machine with a TPU would be worse than any page of complaints."""
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TPU_")]:
            patch.delenv(name)
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setattr(libtpu.importlib.util, "find_spec", lambda name: object() if name == "libtpu" else None)
        before = jax.config.jax_platforms
        try:
            for chosen, named, after in [("cuda", None, "cuda"), (None, sign, None), (None, None, "cpu")]:
                jax.config.update("jax_platforms", chosen)
                if named:
                    patch.setenv(named, "x")
                else:
                    patch.delenv(sign, raising=False)
                libtpu.leave_it_unless_there_is_a_tpu()
                assert jax.config.jax_platforms == after
            jax.config.update("jax_platforms", None)
            patch.delenv("TPU_SKIP_MDS_QUERY")  # JAX found one on the bus
            libtpu.leave_it_unless_there_is_a_tpu()
            assert jax.config.jax_platforms is None
        finally:
            jax.config.update("jax_platforms", before)
