"""What is compiled is kept for the next start: where, how much of it, and what happens where that cannot be."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest
from conftest import ROOT, TINY, run_program

from qwen3llada_jax.process import compilation_cache
from train import run

# Two programs of about the same size, compiled by a process of their own; how many were found, and how many not.
TWO_PROGRAMS = """
import collections, resource, sys, jax, jax.numpy as jnp
from qwen3llada_jax.process import compilation_cache
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name.rpartition("/")[2]]))
compilation_cache.say_trouble_once()
compilation_cache.keep_programs()
if sys.argv[1:] == ["full"]:  # nothing that is written may be longer
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
for number in range(2):
    jax.jit(lambda x: jnp.tanh(x @ x) + number).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()
print(seen["cache_hits"], seen["cache_misses"])
"""


def environment(cache: Path | str, **more: str) -> dict[str, str]:
    """A user's, whose cache folder lies here; programs of any size are worth keeping."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    small = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**plain, "XDG_CACHE_HOME": str(cache), **small, **more}


def compiled(cache: Path | str, *words: str, **more: str) -> tuple[str, list[str]]:
    """(found and not found, lines on standard error) of a process that compiles."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_PROGRAMS, *words], check=True, cwd=ROOT, env=environment(cache, **more),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.stdout.strip(), done.stderr.splitlines()


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "qwen3llada_jax" / "compiled").glob("*-cache"))


def test_it_lies_where_other_caches_of_the_user_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = Path("qwen3llada_jax/compiled")
    assert compilation_cache.folder_of({"XDG_CACHE_HOME": "/big/disk"}) == "/big/disk" / ours
    for none in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "not/absolute"}):  # which XDG says to ignore
        assert compilation_cache.folder_of(none) == tmp_path / ".cache" / ours


def test_unfinished_programs_and_those_used_longest_ago_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation_cache, "MOST_PROGRAMS", 3)
    for number in range(5):
        (tmp_path / f"jit_{number}-cache").write_bytes(b"x")
        (tmp_path / f"jit_{number}-atime").write_bytes((2000 - 300 * number).to_bytes(8, "little"))  # 0 is the newest
    (tmp_path / "jit_half-cache").write_bytes(b"")
    (tmp_path / ".lockfile").touch()
    compilation_cache.tidy(tmp_path)
    left = {f"jit_{number}-{end}" for number in range(3) for end in ("cache", "atime")}
    assert {file.name for file in tmp_path.iterdir()} == left | {".lockfile"}
    compilation_cache.tidy(tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


def test_trouble_is_said_once_and_other_warnings_are_as_they_were(capsys):
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        compilation_cache.say_trouble_once()
        for name in ("jit_a", "jit_b"):
            warnings.warn(f"Error writing persistent compilation cache entry for '{name}': No space", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "'jit_a': No space" in line
    assert "JAX_COMPILATION_CACHE_DIR" in line
    assert [str(warning.message) for warning in others] == ["something else"]


def test_what_the_user_says_to_jax_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = dict(jax.config.values)
    assert before["jax_compilation_cache_dir"]  # of these tests
    compilation_cache.keep_programs()
    assert dict(jax.config.values) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("processes", "keeps"), [(1, True), (2, False)])
def test_a_run_of_several_processes_keeps_nothing_by_itself(monkeypatch, processes, keeps):
    asked: list[int] = []
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(run.distributed, "check", lambda: None)
    monkeypatch.setattr(run, "train", lambda *_: None)
    monkeypatch.setattr(compilation_cache, "keep_programs", lambda: asked.append(processes))
    monkeypatch.setattr(sys, "argv", ["train.run", "--dataset.name=x", "--model.base_model_path=x"])
    run.main()
    assert bool(asked) == keeps


@pytest.mark.slow
def test_the_next_start_finds_what_was_compiled_and_mends_what_a_killed_writer_left(tmp_path):
    assert compiled(tmp_path) == ("0 2", [])
    assert compiled(tmp_path) == ("2 0", [])
    half, _ = kept(tmp_path)
    assert half.parent.stat().st_mode & 0o077 == 0
    half.write_bytes(half.read_bytes()[:100])
    half.with_name(half.name.replace("-cache", "-atime")).unlink()
    assert compiled(tmp_path) == ("1 1", [])
    assert compiled(tmp_path) == ("2 0", [])


@pytest.mark.slow
def test_it_can_be_moved_and_turned_off(tmp_path):
    assert compiled(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0")[1] == []
    assert compiled(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other")) == ("0 2", [])
    assert len(list((tmp_path / "other").glob("*-cache"))) == 2
    assert not (tmp_path / "qwen3llada_jax").exists()
    boundless = {"JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    assert [compiled(tmp_path, **boundless) for _ in range(2)] == [("0 2", []), ("2 0", [])]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["no folder", "full"])
def test_a_folder_that_cannot_be_used_stops_nothing_and_is_said_once(tmp_path, how):
    if how == "no folder":
        (tmp_path / "file").touch()
        _, errors = compiled(tmp_path / "file")
        assert "Not a directory" in errors[0]
    else:
        _, errors = compiled(tmp_path, "full")
        assert "File too large" in errors[0]
        assert compiled(tmp_path) == ("0 2", [])  # what was cut short is no hindrance
        assert compiled(tmp_path) == ("2 0", [])
    assert len(errors) == 1
    assert errors[0].startswith("what is compiled is not kept for the next start (")


@pytest.mark.slow
def test_two_processes_share_it(tmp_path):
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROGRAMS], cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [start.communicate(timeout=300)[1] for start in starts] == ["", ""]
    assert [start.returncode for start in starts] == [0, 0]
    assert compiled(tmp_path) == ("2 0", [])


@pytest.mark.slow
def test_a_program_keeps_what_it_compiles(tmp_path):
    asked = ("sample.generate", "--model", TINY, "--prompt", "ROMEO:", "--gen-length", "4", "--temperature", "0")
    settings = environment(tmp_path, JAX_COMPILATION_CACHE_DIR="")
    texts = []
    for _ in range(2):
        texts.append(run_program(*asked, env=settings).stdout)
        found = kept(tmp_path)
        assert found
    assert texts[0] == texts[1]
    assert kept(tmp_path) == found
