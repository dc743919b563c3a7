"""The benchmark of starts: that it waits for what it says, and that a second start is sooner than a first."""

import pytest

from benchmarks.measuring import start_up


@pytest.mark.slow
def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    cold = start_up.first_text(tmp_path, tmp_path / "caches")
    folder = tmp_path / "caches" / "qwen3llada_jax" / "compiled"
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("*-cache")}
    assert kept
    warm = min(start_up.first_text(tmp_path, tmp_path / "caches") for _ in range(2))
    assert 0 < warm < cold
    # What took a moment less than is worth it may be kept by a later start; what is kept is not made again.
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.slow
def test_a_program_that_fails_is_no_reading(tmp_path):
    with pytest.raises(SystemExit, match="no such folder"):
        start_up.seconds_until("x", ["sample.generate", "--model", "no-such-model", "--prompt", "a"], tmp_path)
