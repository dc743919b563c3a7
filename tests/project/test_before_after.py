"""The comparing functions of benchmarks.before_after: the same bits, last bits, and everything else."""

import json

import numpy as np
import pytest

from benchmarks.before_after import (
    SAMPLING,
    TRAINING,
    checked_out,
    columns_of,
    compare,
    difference,
    jobs_of,
    verdict,
    written,
)  # fmt: skip


def test_the_same_bits_are_no_difference_nan_and_zeros_included():
    for value in (np.array([1.0, np.nan]), np.zeros(3, np.float32), np.arange(4), 3, "text", [None, "a"], None):
        assert difference("x", value, value if not isinstance(value, np.ndarray) else value.copy()) is None


def test_a_last_bit_is_named_and_is_close():
    before = np.array([0.1, 2.0], np.float32)
    after = np.nextafter(before, np.float32(9))
    gap = difference("x", before, after)
    assert gap is not None
    assert 0 < gap < 2e-7
    text, is_close = verdict(compare({"x": before, "y": 1}, {"x": after, "y": 1}), 2)
    assert is_close
    assert text.startswith("last bits: 1 of 2 values, by 1.2e-07 at most: x 1.2e-07")
    assert verdict(compare({"y": 1}, {"y": 1}), 1) == ("identical (1 values)", True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 2.0 + 4e-6])),
        (np.array([3, 4]), np.array([3, 5])),
        (np.array([1.0, 2.0]), np.array([1.0, np.nan])),
        (np.array([1.0, np.inf]), np.array([1.0, 2.0])),
        (np.array([np.nan, 2.0]), np.array([np.nan, 2.1])),
        (np.array([0.0]), np.array([1e-30])),
        (np.zeros(2, np.float32), np.zeros(2, np.float16)),
        (np.zeros(2), np.zeros((2, 1))),
        (1, 2),
        ("a", "b"),
        ([None, 1], [1, None]),
        (np.array([1, 2]), [1, 2]),
    ],
)
def test_anything_else_is_different(before, after):
    assert not verdict(compare({"x": before}, {"x": after}), 1)[1]


def test_what_one_tree_alone_has_is_different_and_the_worst_comes_first():
    found = compare({"a": 1.0, "b": np.array([1.0])}, {"b": np.array([1.5]), "c": 2})
    assert [*found] == ["a", "c", "b"]
    assert found["b"] == pytest.approx(1 / 3)
    assert verdict(found, 3) == ("DIFFERENT: 3 of 3 values, by inf at most: a inf, c inf, b 3.3e-01", False)


def test_a_confidence_may_differ_in_its_last_written_digit_and_nothing_else_may():
    before, after = np.array([0.1234, 0.5]), np.array([0.1235, 0.5])
    assert difference("confidence.1", before, after) == 0.0
    assert not verdict(compare({"loss": before}, {"loss": after}), 1)[1]
    assert not verdict(compare({"confidence.1": before}, {"confidence.1": before + 3e-4}), 1)[1]


def test_files_become_values_without_times(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.5, "elapsed": 3}\n{"step": 2, "loss": null, "time": "x"}\n')
    columns = columns_of(metrics)
    assert [*columns] == ["metrics.step", "metrics.loss"]
    assert columns["metrics.step"].tolist() == [1, 2]
    assert columns["metrics.loss"][0] == 2.5
    assert np.isnan(columns["metrics.loss"][1])
    said, trace = tmp_path / "said.json", tmp_path / "trace.json"
    said.write_text(json.dumps({"text": "a b", "failure": None}))
    token = {"token": "b", "id": 7, "pass": 2, "confidence": 0.5, "before": [{"id": 3, "pass": 1, "until": 2}]}
    given = {"token": "a", "id": 5, "pass": None, "confidence": None}
    trace.write_text(json.dumps({"passes": 2, "rows": [{"nfe": 2, "tokens": [given, token]}]}))
    found = written(said, trace)
    assert (found["id.1"].tolist(), found["pass.1"].tolist()) == ([5, 7], [-1, 2])
    assert (found["before.1"], found["nfe.1"], found["text"]) == ([[], [(3, 1, 2)]], 2, "a b")
    said.write_text(json.dumps({"text": "", "failure": "InputError: no"}))
    assert written(said, trace) == {"text": "", "failure": "InputError: no"}


def test_every_configuration_has_its_place_and_only_chooses():
    names = [name for job in jobs_of([]) for name in job]
    assert len(names) == len(set(names)) == 2 + len(TRAINING) + len(SAMPLING)
    assert (len(TRAINING) >= 6, len(SAMPLING) >= 24) == (True, True)
    assert all(len({name.split("/")[0] for name in job}) == 1 for job in jobs_of([]))
    chosen = {name for job in jobs_of(["muon", "_cache"]) for name in job}
    assert chosen == {"sample/prefix_cache", "sample/dual_cache", "train/muon_frozen"}
    assert jobs_of(["no such"]) == []


def test_a_commit_that_is_none_is_refused_in_a_line(tmp_path):
    with pytest.raises(SystemExit, match="nonsense"), checked_out("nonsense", tmp_path):
        pass
