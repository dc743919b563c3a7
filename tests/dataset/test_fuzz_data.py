"""Random datasets: read with an account that adds up, or refused in one short line; nothing is lost in silence."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from train.config.schema import Config, DatasetConfig, TrainingConfig
from train.data import sources
from train.data.account import Account
from train.data.batches import training_batches
from train.data.rows import rows_of
from train.data.token_cache import tokenized
from train.data.tokenize import Reading, TokenizeConfig

WORDS = st.sampled_from(
    ["", "Who?", "I am.", " ", "\n\n", "</think>", "<think>x</think>y", "<|im_end|>", "{{ x }}", "é😀"]
)
TEXT = st.one_of(WORDS, st.text(max_size=20), st.just("word " * 60))
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
ROLES = ["user", "assistant", "system", "tool", "human", "gpt", "parrot", "function_call"]
ROLE = st.one_of(st.sampled_from(ROLES), VALUE)
TURN = st.one_of(
    st.fixed_dictionaries(
        {"role": ROLE, "content": st.one_of(TEXT, VALUE)},
        optional={"weight": st.sampled_from([0, 1, 0.5, "0", None]), "reasoning_content": st.one_of(TEXT, VALUE),
                  "tool_calls": VALUE, "name": VALUE},
    ),
    st.fixed_dictionaries({"from": ROLE, "value": TEXT}),
    VALUE,
)  # fmt: skip
GOOD = st.just({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I am."}]})
COLUMN = st.sampled_from(["messages", "conversations", "prompt", "completion", "question", "answer", "text", "tools",
                          "system", "instruction", "input", "output", "context", "id"])  # fmt: skip
ROW = st.one_of(
    GOOD,
    st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4)}),
    st.fixed_dictionaries({"question": st.one_of(TEXT, VALUE), "answer": st.one_of(TEXT, VALUE)}),
    st.fixed_dictionaries({"text": st.one_of(TEXT, VALUE)}),
    st.dictionaries(st.one_of(COLUMN, TEXT), VALUE, max_size=5),
    VALUE,
)
LINE = st.one_of(ROW.map(json.dumps), ROW.map(lambda row: json.dumps(row)[:-1]), st.text(max_size=30)).map(
    lambda line: line.encode("utf-8", "surrogatepass").replace(b"\n", b" ").replace(b"\r", b" ")
)
FILE = st.lists(st.one_of(LINE, st.binary(max_size=12).map(lambda b: b.replace(b"\n", b""))), max_size=12)
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def check(folder: Path, lines: list[bytes], mode: str, template: str, tokenizer) -> None:
    """The rows of a file of these lines are all accounted for."""
    file = folder / "a.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    source = None
    rows = sum(bool(line.removeprefix(b"\xef\xbb\xbf" if i == 0 else b"").strip()) for i, line in enumerate(lines))
    how = TokenizeConfig(mode, 64, pack=False, template=template)
    try:
        with sources.readable(str(file)):
            source = sources.load(str(file), None, "train")
            made = tokenized(source, how, tokenizer, Reading(), None)
            account = made.account(source)
            found = rows_of(source, how, tokenizer, Reading(), num_proc=None)
    except q.InputError as error:
        line = str(error)
        assert len(line) < 500, line
        assert "\n" not in line
        assert "cannot be read as a dataset" not in line or "empty" in line, line
    else:
        assert account.rows == rows
        assert account.rows == account.used + sum(account.left_out.values())
        assert account.used > 0
        assert set(account.first) == set(account.left_out) | set(account.answers_left_out)
        assert len(found) >= account.used
        assert f"rows: {rows:,} = {account.used:,} used + {rows - account.used:,} left out" in found.report
    if mode == "sft" and source is not None:  # a stream says the same of the same rows
        config = Config(
            training=TrainingConfig(mode=mode, max_length=64, batch_size=1, max_steps=1),
            dataset=DatasetConfig(str(file), streaming=True, shuffle_buffer=1, template=template),
        )
        try:
            streamed = training_batches(config, tokenizer, 1088)
        except q.InputError as error:
            assert len(str(error)) < 500, error  # noqa: PT017
        else:
            part = streamed.parts[0]
            while part.epoch == 0:
                part.next()
            assert part.account.rows == rows
            assert Counter(part.account.left_out) == Counter(account.left_out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.slow
@settings(max_examples=60, **SETTINGS)
@given(FILE, st.sampled_from(["sft", "sft", "pretrain"]), st.sampled_from(["chat", "plain"]))
def test_random_datasets(folder, qwen3_tokenizer, lines, mode, template):
    check(folder, lines, mode, template, qwen3_tokenizer)


def test_a_row_that_is_left_out_for_two_reasons_counts_for_the_first():
    account = Account()
    account.count_row([("no prompt", "a"), ("too long", "b")], lambda: "a.jsonl:1")
    account.count_row([("", ""), ("too long", "c")], lambda: "a.jsonl:2")
    assert account.left_out == {"no prompt": 1}
    assert account.first == {"no prompt": "a.jsonl:1: a", "too long": "a.jsonl:2: c"}


@pytest.mark.soak
@pytest.mark.slow
@settings(max_examples=2000, **SETTINGS)
@given(FILE, st.sampled_from(["sft", "sft", "pretrain"]), st.sampled_from(["chat", "plain"]))
def test_two_thousand_random_datasets(folder, qwen3_tokenizer, lines, mode, template):
    check(folder, lines, mode, template, qwen3_tokenizer)
