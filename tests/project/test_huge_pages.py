"""Programs start themselves anew with huge pages, and nobody else's process does."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, run_program

from qwen3llada_jax.process import huge_pages, programs

PROGRAMS = ["train.run", "qwen3llada"]


@pytest.mark.parametrize(
    ("typed", "is_one"),
    [
        ("python -m train.run --mode sft", True),
        ("python -u -X importtime -W ignore -m train.run", True),
        ("python /opt/venv/bin/qwen3llada train", True),
        ("python -m train", False),
        ("python -m pytest -m train.run", False),
        ("python -m pdb -m train.run", False),
        ("python train.py -m train.run", False),
        ("python -X train.run", False),
        ("python -c pass", False),
        ("python -m", False),
        ("python", False),
    ],
)
def test_which_processes_are_programs(typed, is_one):
    assert programs.is_program(typed.split(), PROGRAMS) == is_one


def test_what_glibc_was_told_stays():
    assert huge_pages.environment({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    told = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    assert huge_pages.environment(told) == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"}
    assert huge_pages.is_wanted(told)
    assert not huge_pages.is_wanted({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})
    assert not huge_pages.is_wanted({"QWEN3LLADA_HUGE_PAGES": "0"})


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["", "0"])
def test_a_program_starts_anew_once(tmp_path, switch):
    """Every interpreter that starts writes a line; arguments with spaces and quotes arrive as they were typed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nopen(os.environ['SEEN'], 'a').write((os.environ.get('GLIBC_TUNABLES') or 'none') + '\\n')\n"
    )
    seen = tmp_path / "seen"
    environment = {"SEEN": str(seen), "PYTHONPATH": str(tmp_path), "GLIBC_TUNABLES": "", huge_pages.SWITCH: switch}
    done = run_program("converters.analyze", tmp_path / "no such 'folder'", check=2, env=environment)
    assert "no such 'folder'" in done.stderr
    expected = ["none", "glibc.malloc.hugetlb=1"] if huge_pages.is_had() and switch != "0" else ["none"]
    assert seen.read_text().split() == expected


@pytest.mark.slow
def test_another_program_of_that_name_is_left_alone(tmp_path):
    """A user's own train/run.py that imports the library runs once, from its first line to its last."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").write_text("")
    (tmp_path / "train" / "run.py").write_text("print('mine', flush=True)\nimport qwen3llada_jax\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "train.run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "mine\n"
