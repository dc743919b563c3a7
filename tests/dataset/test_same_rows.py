"""One reader of rows: what training takes, the sampling programs take, and odd rows are a line there too."""

import pyarrow as pa
import pytest
from conftest import write
from pyarrow import parquet

import qwen3llada_jax as q
from qwen3llada_jax.writing import requests
from sample import compare, inputs

ASKED = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def texts(path, tokenizer, **more):
    rows = inputs.from_file(path)
    return [tokenizer.decode(r.ids) for r in requests.from_rows(rows, tokenizer, **{"chat": False, **more})]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?", "answer": "I am."},
        {"question": "Who?"},
        {"question": "Who?", "answer": None},
        {"instruction": "Who?", "input": "", "output": "I am."},
        {"prompt": [{"role": "user", "content": "Who?"}]},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I am."}]},
    ],
)
def test_k15_questions_are_asked_alike_with_or_without_their_answer(tmp_path, qwen3_tokenizer, row):
    write(tmp_path / "a.jsonl", [row])
    assert texts(tmp_path / "a.jsonl", qwen3_tokenizer) == [ASKED]


def test_k15_other_kinds_of_files(tmp_path, qwen3_tokenizer):
    (tmp_path / "a.csv").write_text("question,answer\nWho?,007\n")
    parquet.write_table(pa.table({"question": ["Who?"], "answer": ["007"]}), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text('[{"question": "Who?", "answer": "007"}]')
    for kind in ("csv", "parquet", "json"):
        path = tmp_path / f"a.{kind}"
        assert texts(path, qwen3_tokenizer) == [ASKED]
        assert compare.read(path, None)[1] == ["007"]


def test_k15_the_answer_of_a_row_is_the_one_that_training_learns(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "Who?", "completion": "I am.", "answer": "no"}])
    assert compare.read(tmp_path / "a.jsonl", None)[1] == ["I am."]


def test_k6_odd_rows_are_a_line(tmp_path, qwen3_tokenizer):
    for row, part, more in (
        ({"messages": []}, "there are no messages to answer", {}),
        ({"prompt": "Q", "system": 5}, "column system is a number", {"chat": True}),
        ({"prompt": "Q", "tools": "[{"}, "column tools is not valid JSON", {"chat": True}),
    ):
        write(tmp_path / "a.jsonl", [row])
        with pytest.raises(q.InputError, match=part):
            texts(tmp_path / "a.jsonl", qwen3_tokenizer, **more)
    write(tmp_path / "a.jsonl", [{"prompt": "Who?", "system": "", "tools": "[]"}])
    assert texts(tmp_path / "a.jsonl", qwen3_tokenizer, chat=True) == [ASKED]
    write(tmp_path / "a.jsonl", [{"messages": []}])
    assert compare.read(tmp_path / "a.jsonl", None)[1] == [None]
