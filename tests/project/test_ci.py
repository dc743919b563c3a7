"""The checks of the checks: what `.ci/run` runs, and that it can fail."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import no_skips
import pytest
from conftest import QWEN3_TEMPLATE, ROOT

MAKE = """#!/usr/bin/env bash
case "$1" in
  lint) exit ${LINT:-0} ;;
  *) echo "a test of $1"; eval "echo \\"\\${$1}\\""; echo "make: the end" >&2; eval "exit \\${$1_exit:-0}" ;;
esac
"""
GOOD = {"test": "812 passed in 600.10s (0:10:00)", "long": "== 20 passed in 9.9s =="}


def ci_run(tmp_path, **more):
    """`.ci/run` with a `make` that only says what it is told to."""
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)
    environment = {**GOOD, **more, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", ROOT / ".ci" / "run"], check=False, env=environment, capture_output=True, text=True, timeout=60
    )


def test_k11_ci_ends_with_the_closing_line_of_every_step(tmp_path):
    done = ci_run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == list(GOOD.values())


@pytest.mark.parametrize(
    "more",
    [
        {"LINT": "2"},
        {"test": "1 failed, 811 passed in 600.10s", "test_exit": "2"},
        {"long_exit": "2"},
        {"long": "no tests ran in 0.01s", "long_exit": "2"},
        {"test": "no tests ran in 0.01s"},  # also where a runner calls that a success
        {"long": "3 skipped in 1.00s"},
        {"test": "a runner that was killed"},
    ],
    ids="-".join,
)
def test_k11_ci_fails_where_a_step_fails_or_runs_no_test(tmp_path, more):
    done = ci_run(tmp_path, **more)
    assert done.returncode == 1
    if "LINT" not in more:  # the others still ran, and the last lines are theirs
        assert done.stdout.splitlines()[-1] in {GOOD["long"], more.get("long")}


def test_k11_ci_runs_every_test_that_a_plain_pytest_leaves_out():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    left_out = re.findall(r"not (\w+)", options["addopts"])
    assert set(left_out) == {"soak", "journey"}
    makefile = (ROOT / "Makefile").read_text()
    steps = re.search(r"^for step in (.*); do$", (ROOT / ".ci" / "run").read_text(), re.M)[1].split()
    asked = [re.search(rf"^{step}:.*\n\t.*pytest(.*)$", makefile, re.M)[1] for step in steps]
    assert any("-m" not in arguments.split() for arguments in asked)
    assert any(f'-m "{" or ".join(left_out)}"' in arguments for arguments in asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ci", "line", "passes"),
    [
        ("true", "def test_it(): pytest.importorskip('no_such_package')", False),
        ("true", "pytest.importorskip('no_such_package')", False),
        ("true", "@pytest.mark.skipif(True, reason='needs the TPU compiler')\ndef test_it(): pass", False),
        ("true", "@pytest.mark.skipif(True, reason='needs a GPU of 80 GB')\ndef test_it(): pass", True),
        ("true", "def test_it(): pytest.xfail('known')", True),
        ("", "def test_it(): pytest.importorskip('no_such_package')", True),
    ],
    ids=["in a test", "in a module", "by a mark", "hardware", "expected failure", "on a laptop"],
)
def test_k11_a_skip_for_want_of_a_package_fails_in_ci(tmp_path, ci, line, passes):
    shutil.copy(no_skips.__file__, tmp_path / "conftest.py")
    (tmp_path / "test_it.py").write_text(f"import pytest\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest", "-q"],
        check=False, cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode == 0) == passes, done.stdout
    assert passes or "install what it needs" in done.stdout


@pytest.mark.slow
def test_a_group_of_tests_is_one_workers(tmp_path):
    """As `make long` deals them out; a pytest newer than xdist knows loses the groups in silence."""
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.xdist_group('a group')\n"
        "@pytest.mark.parametrize('number', range(8))\n"
        "def test_it(number): open('workers', 'a').write(os.environ['PYTEST_XDIST_WORKER'] + '\\n')\n"
        "@pytest.mark.parametrize('number', range(8))\n"
        "def test_other(number): pass\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "2", "--dist", "loadgroup"],
        check=True, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 8
    assert len(set(workers)) == 1


def test_k11_tests_use_qwen3s_real_chat_template(qwen3_tokenizer):
    """Its text is what transformers is given: the think block, tools, and reasoning of earlier turns."""
    assert qwen3_tokenizer.chat_template == QWEN3_TEMPLATE.read_text()
    for word in ("enable_thinking", "reasoning_content", "<tool_response>", "</think>"):
        assert word in qwen3_tokenizer.chat_template
