"""Intervals of a comparison against a bootstrap in loops, the area under a sweep made by hand, GSM8K's matches."""

import json
import math

import numpy as np
import pytest
from conftest import TINY

from sample import compare
from sample.comparing import frontier, quality


def points(seed=3, ways=3, n=40):
    draw = np.random.default_rng(seed)
    hard = draw.random(n)
    good = (draw.random((ways, n)) * 0.4 + hard > np.array([0.5, 0.7, 0.9])[:ways, None]).astype(float)
    tokens, nfe = draw.integers(3, 17, (ways, n)), draw.integers(2, 9, (ways, n))
    return frontier.Points(good, np.ones((ways, n)), tokens, nfe)


def test_intervals_are_those_of_a_bootstrap_in_loops():
    of = points()
    rows = [{"right": of.good[i].mean(), "tokens_per_forward": of.tokens[i].sum() / of.nfe[i].sum()} for i in range(3)]
    found = frontier.with_intervals(rows, "right", of, seed=1)
    draw = np.random.default_rng(99)
    draws = {"interval": [[], [], []], "tokens_per_forward_interval": [[], [], []], "difference_interval": [[], [], []]}
    for _ in range(4000):
        chosen = [draw.integers(40) for _ in range(40)]
        right = [np.mean([of.good[i][j] for j in chosen]) for i in range(3)]
        for i in range(3):
            draws["interval"][i].append(right[i])
            draws["difference_interval"][i].append(right[i] - right[0])
            speed = sum(of.tokens[i][j] for j in chosen) / sum(of.nfe[i][j] for j in chosen)
            draws["tokens_per_forward_interval"][i].append(speed)
    for i, row in enumerate(found):
        assert row["difference_to_first"] == rows[i]["right"] - rows[0]["right"]
        for name, every in draws.items():
            expected = np.percentile(every[i], (2.5, 97.5))
            np.testing.assert_allclose(row[name], expected, atol=0.03, err_msg=f"{name} {i}")
    width = np.diff([found[2]["difference_interval"], found[2]["interval"]], axis=1)
    unpaired = math.hypot(*(np.diff(found[i]["interval"])[0] for i in (0, 2)))
    assert width[0] < 0.9 * unpaired, "prompts are not drawn together"


def test_intervals_hold_the_truth_nineteen_times_of_twenty():
    draw, holds = np.random.default_rng(5), 0
    for repeat in range(100):
        good = (draw.random((1, 50)) < 0.6).astype(float)
        of = frontier.Points(good, np.ones((1, 50)), good + 1, good + 1)
        [row] = frontier.with_intervals([{"right": good.mean(), "tokens_per_forward": 1.0}], "right", of, repeat)
        holds += row["interval"][0] <= 0.6 <= row["interval"][1]
    assert holds / 100 >= 0.86


def test_a_draw_without_a_token_has_nothing_to_say():
    none, some = np.zeros(2), np.array([0.0, -4.0])
    of = frontier.Points(np.stack([none, some]), np.array([[0, 0], [0, 2]]), np.ones((2, 2)), np.ones((2, 2)))
    rows = [{"log_p": None, "tokens_per_forward": 1.0}, {"log_p": -2.0, "tokens_per_forward": 1.0}]
    found = frontier.with_intervals(rows, "log_p", of, 0)
    assert [row["interval"] for row in found] == [None, [-2.0, -2.0]]
    assert [row["difference_to_first"] for row in found] == [None, None]
    assert found[1]["difference_interval"] is None


def test_aup_of_points_made_by_hand():
    assert frontier.aup([2.0], [70.0], best=70) == 140
    assert frontier.aup([1, 2, 4], [80, 80, 80], best=80) == 80 + 80 * 3  # nothing lost: the area under the curve
    W = math.exp(-3 * (1 - 76 / 80))
    assert frontier.aup([3, 1], [76, 80], best=80) == pytest.approx(80 + (3 - 1) * (76 * W + 80) / 2)  # in any order
    assert frontier.aup([1, 3, 5], [80, 76, 60], best=80) == frontier.aup([1, 3], [80, 76], best=80)  # 20 points down
    below = [y * math.exp(-3 * (1 - y / 90)) for y in (80, 76)]
    assert frontier.aup([1, 3], [80, 76], best=90) == pytest.approx(80 + sum(below))  # another rule was better
    assert frontier.aup([1, 2], [0, 0], best=0) == 0


def test_which_rows_are_one_sweep():
    names = [
        "threshold=0.9",
        "margin",
        "threshold=0.5",
        "margin",
        "entropy+entropy_bound=0.3",
        "cache=dual",
        "threshold=0.9+cache=dual",
        "my.py:Halves:share=0.3",
        "my.py:Halves",
        "temperature=0.7",
        "local-leap=0.9",
    ]
    assert frontier.sweeps([{"rule": name} for name in names]) == {
        "threshold": [0, 2], "margin": [1, 3], "entropy+entropy_bound": [4], "cache=dual": [5],
        "threshold+cache=dual": [6], "my.py:Halves": [7, 8], "temperature=0.7": [9], "local_leap": [10],
    }  # fmt: skip


ANSWER = "He earns 20 * 90 = <<20*90=1800>>1800 dollars.\n#### 1,800"


@pytest.mark.parametrize(
    ("written", "strict", "flexible"),
    [
        ("20 * 90 = 1800\n#### 1800", True, True),
        ("so #### 1,800.\nQuestion: #### 7", True, False),  # the first behind hashes, the last number
        ("It is $1,800.", False, True),
        ("It is 1800 dollars", False, True),
        ("#### -1800", False, False),
        ("####1800", False, True),
        ("#### $1800", False, True),  # its pattern has no dollar there
        ("#### 1800.00", False, False),  # texts, not values
        ("no number", False, False),
        ("", False, False),
    ],
)
def test_gsm8k_is_matched_by_the_harness_filters(written, strict, flexible):
    for how, is_right in {"gsm8k-strict": strict, "gsm8k-flexible": flexible}.items():
        name, match = quality.match_of(how)
        assert name == how
        assert match(written, ANSWER) == is_right, how
        quality.check_references(match, [ANSWER], how)


@pytest.mark.slow
@pytest.mark.soak
def test_a_gsm8k_file_is_compared_with_intervals(tmp_path, capsys):
    rows = [{"question": f"How much is {i} + {i}?", "answer": f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"}
            for i in range(1, 6)]  # fmt: skip
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = "threshold=0.9,threshold=0.2,klass=0.3+narrow_out=0.2"
    compare.main(
        ["--model", str(TINY), "--mask-token-id", "1080", "--data", str(tmp_path / "gsm8k.jsonl"), "--match",
         "gsm8k-flexible", "--gen-length", "16", "--block-length", "8", "--visibility", "full", "--rules", rules,
         "--out", str(tmp_path / "out")]
    )  # fmt: skip
    out, found = capsys.readouterr().out, json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["rule"] for row in found["results"]] == rules.split(",")
    assert all(row["interval"][0] <= row["gsm8k-flexible"] <= row["interval"][1] for row in found["results"])
    assert found["results"][1]["tokens_per_forward"] > found["results"][0]["tokens_per_forward"]
    assert {area["rule"]: area["levels"] for area in found["aup"]}["threshold"] == 2
    assert "95%" in out
    assert "AUP" in out
    assert (tmp_path / "out" / "compare.png").stat().st_size > 5000
