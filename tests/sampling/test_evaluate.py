"""Measuring a file: what is counted, sums and their errors, and the program beside transformers and `q.nelbo`."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import TINY, refuses, write
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import qwen3llada_jax as q
from qwen3llada_jax.likelihood.estimate import Draws
from qwen3llada_jax.writing.opening import open_folder
from sample import evaluate
from sample.measuring import passages
from sample.measuring.passages import Window, windows
from sample.measuring.tally import Tally, grouped

TEXT = "Shall I compare thee to a summer's day?\nThou art more lovely — and more temperate:\n" * 6


# ---- windows -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 5), st.integers(1, 8), st.data())
def test_each_token_is_counted_once_and_behind_others(length, S, size, data):
    stride = data.draw(st.integers(1, size))
    counted = []
    for begin, first, end in windows(length, Window(size * S, stride * S)):
        assert 0 <= begin <= first < end <= min(length, begin + size * S)
        assert begin % S == 0
        assert first == 0 or first - begin >= (size - stride) * S
        counted += range(first, end)
    assert counted == list(range(length))


def test_a_window_is_whole_blocks_and_has_a_token_to_predict_from():
    config = q.ModelConfig(64, 16, 16, 1, 2, 1, 8, max_position_embeddings=300, shift=True)
    assert passages.window_of(config, 7, None, None) == Window(294, 147)
    assert passages.window_of(config, None, 8, 7) == Window(8, 7)
    refuses(lambda: passages.window_of(config, None, 8, 8), "--stride 8", "choose 7")
    refuses(lambda: passages.window_of(config, 4, 10, 4), "--window 10", "whole blocks of 4")
    refuses(lambda: passages.window_of(config, 4, 8, 2), "--stride 2", "whole blocks of 4")
    refuses(lambda: passages.window_of(config, None, 8, 9), "leaves out tokens")
    refuses(lambda: passages.window_of(config, None, 301, 8), "beyond the 300 positions")


# ---- sums ----------------------------------------------------------------------------------------------------

SIZES = (5, 3, 1)  # of blocks of at most 5 tokens
PLACE = np.concatenate([np.arange(n) for n in SIZES])


def drawn(generator, samples: int) -> Draws:
    """Draws of a model whose cross-entropy rises with the noise, differs by place, and is noisy besides."""
    value, level = np.zeros((2, samples, sum(SIZES)))
    begin = 0
    for n in SIZES:
        for s in range(samples):
            count = min(1 + int(n * (s // 2 + generator.random()) / (samples // 2)), n)
            noised = begin + generator.permutation(n)[:count]
            value[s, noised] = n / count * (count / n + 0.3 * (noised - begin) + generator.random(count))
            level[s, begin : begin + n] = count / n
        begin += n
    start = np.repeat(np.cumsum([0, *SIZES[:-1]]), SIZES)
    size = np.repeat(SIZES, SIZES)
    return Draws(value, level, start, size, size == 1, "stratified")


def test_sums_by_level_and_place_and_their_errors():
    generator = np.random.default_rng(0)

    def one() -> dict:
        tally = Tally(5)
        for _ in range(3):
            tally.add(drawn(generator, 8), PLACE, 20)
        return tally.results()

    found = [one() for _ in range(300)]
    assert (found[0]["rows"], found[0]["tokens"], found[0]["bytes"]) == (3, 27, 60)

    def check(pick, truth):
        means, errors = np.array([[pick(f)["mean"], pick(f)["standard_error"]] for f in found]).T
        assert abs(means.mean() - truth) < 4 * means.std() / 300**0.5 + 1e-9
        assert np.sqrt(np.square(errors).mean()) == pytest.approx(means.std(), rel=0.2)

    # ce = l/n + 0.3 · place + U(0, 1); of n tokens l is 1 … n alike, so the mean level is (n + 1) / 2n
    by_place = [sum((n + 1) / (2 * n) + 0.5 for n in SIZES if n > p) / sum(n > p for n in SIZES) + 0.3 * p
                for p in range(5)]  # fmt: skip
    counts = [sum(n > p for n in SIZES) for p in range(5)]
    whole = np.average(by_place, weights=counts)
    check(lambda f: f["nats_per_token"], whole)
    check(lambda f: f["bits_per_byte"], whole * 27 / 60 / math.log(2))
    for p in (0, 2, 4):
        check(lambda f, p=p: f["by_place"][p], by_place[p])
    # levels at most ¼: 1 of 5 tokens alone, at any place alike
    check(lambda f: f["by_level"][0], 0.2 + 0.3 * 2 + 0.5)
    # above ¾: 4 and 5 of 5, 3 of 3, 1 of 1, weighed by tokens
    wide = [(5, 4 / 5), (5, 1.0), (3, 1.0), (1, 1.0)]
    chance = [1, 1, 5 / 3, 5]
    top = np.average(
        [x + 0.3 * (n - 1) / 2 + 0.5 for n, x in wide], weights=[n * c for (n, _), c in zip(wide, chance, strict=True)]
    )
    check(lambda f: f["by_level"][3], top)
    for f in found[:5]:
        assert sum(b["share"] for b in f["by_level"]) == pytest.approx(1)
        assert sum(b["share"] * b["mean"] for b in f["by_level"]) == pytest.approx(f["nats_per_token"]["mean"])
        both = grouped(f["by_place"], 2)
        assert [(g["first"], g["last"], g["tokens"]) for g in both] == [(0, 2, 21), (3, 4, 6)]
        assert np.average([g["mean"] for g in both], weights=[21, 6]) == pytest.approx(f["nats_per_token"]["mean"])


def test_one_draw_says_nothing_of_its_error():
    level = np.array([[0.2] * 5, [0.6] * 5])
    draws = Draws(np.ones((2, 5)), level, np.zeros(5, int), np.full(5, 5), np.zeros(5, bool), "stratified")
    tally = Tally(None)
    tally.add(draws, None, 9)
    found = tally.results()["by_level"]
    assert [(band["mean"], band["standard_error"]) for band in found] == [
        (1, None),
        (None, None),
        (1, None),
        (None, None),
    ]


# ---- the program ---------------------------------------------------------------------------------------------


def measured(out, *arguments) -> dict:
    evaluate.main(["--model", str(TINY), "--out", str(out), *map(str, arguments)])
    return json.loads((out / "evaluate.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_likelihood_of_a_long_text_is_transformers(tmp_path, tokenizer, capsys):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    found = measured(tmp_path / "out", "--data", tmp_path / "a.txt", "--window", 48, "--stride", 16,
                     "--dtype", "float32")["results"]  # fmt: skip
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    theirs = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    nats, last = 0.0, 1
    for end in [*range(48, len(ids), 16), len(ids)]:
        begin = 0 if end == 48 else last - 32
        with torch.no_grad():
            logs = theirs(torch.tensor(ids[begin:end])[None]).logits[0].log_softmax(-1)
        nats -= sum(float(logs[i - 1 - begin, ids[i]]) for i in range(last, end))
        last = end
    assert last == len(ids) > 150
    assert found["nats"]["mean"] == pytest.approx(nats, rel=1e-5)
    assert found["nats"]["standard_error"] == 0
    size = len(TEXT.encode()) - len(tokenizer.decode(ids[:1]).encode())
    assert (found["tokens"], found["bytes"]) == (len(ids) - 1, size)
    assert found["bits_per_byte"]["mean"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["perplexity"]["mean"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-4)
    assert (tmp_path / "out" / "evaluate.png").stat().st_size > 5000
    said = capsys.readouterr()
    assert "windows of 48 tokens that move on by 16" in said.err
    assert "at least 32 others" in said.err
    assert "the first token is given, not counted" in said.err
    assert "exact" in said.out
    assert "bound" not in said.out


@pytest.mark.slow
def test_answers_are_measured_behind_their_prompts(tmp_path, tokenizer):
    """In blocks of four, as `q.nelbo` does; and the turns of a chat through its template, each behind those before."""
    pairs = [("My lord,", " I come."), ("", "Speak, speak."), ("Who is there?", " Nay, answer me.")]
    data = write(tmp_path / "a.jsonl", [{"prompt": p, "answer": a} for p, a in pairs])
    blocks = ["--visibility", "block_causal", "--block-length", 4, "--samples", 4, "--seed", 5]
    found = measured(tmp_path / "out", "--data", data, *blocks)
    folder = open_folder(TINY)
    encoded = [[tokenizer(text, add_special_tokens=False).input_ids for text in pair] for pair in pairs]
    estimate = q.nelbo(
        folder.load(), [p + a for p, a in encoded], prompt_length=[len(p) for p, _ in encoded], samples=4, key=5,
        block_length=4, mask_token_id=folder.config.mask_token_id,
    ).total  # fmt: skip
    results = found["results"]
    assert results["nats"]["mean"] == pytest.approx(estimate.mean[0], rel=1e-6)
    assert results["nats"]["standard_error"] == pytest.approx(estimate.standard_error[0], rel=1e-6)
    assert results["tokens"] == estimate.tokens[0] == sum(len(a) for _, a in encoded) - 1
    assert [place["standard_error"] == 0 for place in results["by_place"]] == [True, False, False, False]
    # A block's first token is predicted at clean text.
    assert [place["is_exact"] for place in results["by_place"]] == [True, False, False, False]
    assert found["reading"]["block_length"] == 4

    turns = zip(["user", "assistant"] * 2, ["Who?", "I.", "Where?", "There."], strict=True)
    talk = [{"role": role, "content": content} for role, content in turns]
    chat = measured(tmp_path / "chat", "--data", write(tmp_path / "b.jsonl", [{"messages": talk}]))["results"]
    assert (chat["rows"], chat["is_exact"]) == (2, True)
    assert chat["bytes"] == len("I.There.")


def test_what_cannot_be_measured_is_refused_in_a_line(tmp_path):
    texts = write(tmp_path / "t.jsonl", [{"text": "a"}])
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "a", "answer": "b"}])
    alone = write(tmp_path / "q.jsonl", [{"text": "a"}, {"prompt": "a"}])
    mixed = write(tmp_path / "m.jsonl", [{"text": "a"}, {"prompt": "a", "answer": "b"}])
    other = write(tmp_path / "o.jsonl", [{"title": "a"}])
    empty = write(tmp_path / "e.jsonl", [])
    for arguments, parts in (
        (("--data", texts, "--chat"), ("--chat", "has texts")),
        (("--data", pairs, "--window", "8"), ("--window", "read whole")),
        (("--data", pairs, "--enable-thinking"), ("add --chat",)),
        (("--data", alone), ("line 2", "no answer")),
        (("--data", mixed), ("use two files",)),
        (("--data", other), ("line 1 needs text",)),
        (("--data", empty), ("nothing to measure",)),
        (("--data", tmp_path / "a.xyz"), ("unknown kind of file",)),
        (("--data", tmp_path / "no.txt"), ("cannot be read",)),
        (("--data", texts, "--samples", "3"), ("--samples must be even",)),
        (("--data", texts, "--batch-size", "0"), ("--batch-size must be at least 1",)),
        (("--data", texts, "--visibility", "full", "--block-length", "4"), ("no blocks",)),
        (("--data", texts, "--window", "99999"), ("--window 99999", "positions")),
    ):
        refuses(lambda a=arguments: evaluate.main(["--model", str(TINY), *map(str, a)]), *parts)
