"""Datasets, formats, packing and the order of rows."""

import json

import datasets
import numpy as np
import pytest
from conftest import DATA, TINY

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.tokens import load_tokenizer
from train import conversations, data

TEXTS = ["Speak, speak.", "We know't, we know't.", "No more talking on't; let it be done: away, away!"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


def ids_of(tokenizer, texts):
    return [[*tokenizer(t).input_ids, tokenizer.eos_token_id] for t in texts]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pretraining(name, tokenizer, length=8, pack=True, column=None, split="train"):
    dataset = data.load(name, None, split)
    column = data.text_column(dataset, column, name)
    return data.pretraining_rows(dataset, tokenizer, column, length=length, pack=pack, num_proc=None, name=name)


def test_every_kind_of_local_file_gives_the_same_rows(tmp_path, tokenizer):
    made = datasets.Dataset.from_dict({"text": TEXTS})
    write(tmp_path / "a.jsonl", [{"text": t} for t in TEXTS])
    (tmp_path / "a.json").write_text(json.dumps([{"text": t} for t in TEXTS]))
    made.to_csv(tmp_path / "a.csv")
    made.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(str(tmp_path / "disk"))
    datasets.DatasetDict({"train": made, "other": made.select([0])}).save_to_disk(str(tmp_path / "dict"))
    flat = np.concatenate(ids_of(tokenizer, TEXTS))
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "disk", "dict"):
        rows = pretraining(str(tmp_path / name), tokenizer)
        assert len(rows) == len(flat) // 8
        np.testing.assert_array_equal(rows.values, flat, err_msg=name)


def test_text_file_is_one_document(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    rows = pretraining(str(tmp_path / "a.txt"), tokenizer, length=2)
    assert tokenizer.decode(rows.values[:-1]) == "One.\n\nTwo.\n"
    assert rows.values[-1] == tokenizer.eos_token_id


def test_unpacked_documents_get_rows_of_their_own(tmp_path, tokenizer):
    rows = pretraining(write(tmp_path / "a.jsonl", [{"text": t} for t in TEXTS]), tokenizer, length=8, pack=False)
    documents = ids_of(tokenizer, TEXTS)
    pieces = [d[i : i + 8] for d in documents for i in range(0, len(d), 8)]
    batch = data.make_batch(rows, np.arange(len(rows)), pad_id=0, length=8)
    assert [line[:size].tolist() for line, size in zip(batch.tokens, batch.real_length, strict=True)] == pieces


def test_tokenised_text_is_cached_and_made_anew_when_the_text_changes(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"text": TEXTS[0]}])
    first = pretraining(name, tokenizer, length=2)
    np.testing.assert_array_equal(pretraining(name, tokenizer, length=2).values, first.values)
    write(tmp_path / "a.jsonl", [{"text": TEXTS[1]}])
    assert tokenizer.decode(pretraining(name, tokenizer, length=2).values[:-1]) == TEXTS[1]


def test_order_is_a_fresh_permutation_every_epoch_and_needs_only_the_step():
    numbers = np.concatenate([data.row_numbers(step, 4, 10, seed=3) for step in range(5)])
    first, second = numbers[:10], numbers[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(data.row_numbers(3, 4, 10, seed=3), numbers[12:16])
    assert data.row_numbers(0, 4, 10, seed=4).tolist() != numbers[:4].tolist()


def test_batches_come_in_few_lengths():
    rows = data.Rows(np.arange(100), np.array([0, 3, 30, 100]), np.zeros(3, np.int64), "")
    lengths = [data.make_batch(rows, np.array(n), 0, length=64).tokens.shape[1] for n in ([0], [0, 1], [2])]
    assert lengths == [16, 32, 64]


# ---- supervised formats --------------------------------------------------------------------------------------

SAME = {
    "messages": {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]},
    "conversations": {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]},
    "prompt": {"prompt": "Who?", "completion": "I."},
    "question": {"question": "Who?", "answer": "I."},
    "instruction": {"instruction": "Who?", "input": "", "output": "I."},
}


def sft(path, rows, tokenizer, length=64):
    name = write(path, rows)
    return data.sft_rows(data.load(name, None, "train"), tokenizer, length=length, num_proc=None, name=name)


@pytest.mark.parametrize("kind", SAME)
def test_formats_that_say_the_same_give_the_same_row(tmp_path, tokenizer, kind):
    rows = sft(tmp_path / "a.jsonl", [SAME[kind]], tokenizer)
    assert tokenizer.decode(rows.values) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nI.<|im_end|>"
    assert tokenizer.decode(rows.values[: rows.prompt_lengths[0]]).endswith("assistant\n")


def test_every_turn_is_trained_on_with_its_history(tmp_path, tokenizer):
    """Defect of the PyTorch system: it took only the first question and answer, without a chat template."""
    turns = ["a?", "A.", "b?", "B.", "c?", "C."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
    rows = sft(tmp_path / "a.jsonl", [{"messages": messages}], tokenizer, length=200)
    assert len(rows) == 3
    for number, answer in enumerate(["A.", "B.", "C."]):
        ids = rows.values[rows.starts[number] : rows.starts[number + 1]]
        prompt = tokenizer.decode(ids[: rows.prompt_lengths[number]])
        assert tokenizer.decode(ids[rows.prompt_lengths[number] :]) == f"{answer}<|im_end|>"
        assert all(turn in prompt for turn in turns[: 2 * number + 1])
        assert not any(turn in prompt for turn in turns[2 * number + 1 :])


def test_long_answers_are_cut_at_the_end_and_long_prompts_dropped(tmp_path, tokenizer):
    rows = [
        {"prompt": "Who?", "completion": "I " * 200},
        {"prompt": "Who? " * 100, "completion": "I."},
        {"prompt": "Who?", "completion": "I."},
    ]
    got = sft(tmp_path / "a.jsonl", rows, tokenizer, length=40)
    assert len(got) == 2
    assert np.diff(got.starts)[0] == 40
    assert "1 dropped" in got.report
    assert "1 cut" in got.report


def test_system_text_and_unknown_speakers(tmp_path, tokenizer):
    row = {"system": "Be brief.", **SAME["conversations"]}
    assert "system\nBe brief." in tokenizer.decode(sft(tmp_path / "a.jsonl", [row], tokenizer).values)
    odd = {"conversations": [{"from": "parrot", "value": "x"}, {"from": "gpt", "value": "I."}]}
    with pytest.raises(InputError, match="unknown speaker 'parrot'"):
        sft(tmp_path / "b.jsonl", [odd], tokenizer)


def test_conversations_that_hold_no_text_are_named(tmp_path, tokenizer):
    for number, row in enumerate(
        [
            {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "I."}]},
            {"prompt": 3, "completion": "I."},
            {"conversations": [{"from": "human"}, {"from": "gpt"}]},
        ]
    ):
        with pytest.raises(InputError, match="a turn needs"):
            sft(tmp_path / f"{number}.jsonl", [row], tokenizer)
    with pytest.raises(InputError, match="no answer to train on"):
        sft(tmp_path / "none.jsonl", [{"messages": [{"role": "user", "content": "x"}]}], tokenizer)


def test_bundled_dialogues_load(tokenizer):
    dataset = data.load(str(DATA / "dialogue" / "valid.jsonl"), None, "train")
    rows = data.sft_rows(dataset, tokenizer, length=128, num_proc=None, name="dialogue")
    assert len(rows) > 100


# ---- bad input -----------------------------------------------------------------------------------------------


def test_bad_datasets_are_refused(tmp_path, tokenizer):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    (tmp_path / "empty.jsonl").write_text("")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(str(tmp_path / "dict"))
    for name, part in {
        "absent.jsonl": "no such file",
        "notes.md": "unknown kind of file",
        "broken.jsonl": "cannot be read as a dataset",
        "empty.jsonl": r"empty\.jsonl: (cannot be read as a dataset|the dataset is empty)",
    }.items():
        with pytest.raises(InputError, match=part):
            data.load(str(tmp_path / name), None, "train")
    with pytest.raises(InputError, match=r"has no split 'test'; set dataset\.split to one of train"):
        data.load(str(tmp_path / "dict"), None, "test")
    with pytest.raises(InputError, match="cannot be read as a dataset"):
        data.load("nobody/nothing", None, "train")


def test_bad_columns_are_refused(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"body": "x", "title": "y"}])
    with pytest.raises(InputError, match=r"no column 'bodi'.*did you mean 'body'"):
        pretraining(name, tokenizer, column="bodi")
    with pytest.raises(InputError, match=r"set dataset\.text_field to one of body, title"):
        pretraining(name, tokenizer)
    with pytest.raises(InputError, match="columns body, title are no format for sft"):
        sft(tmp_path / "b.jsonl", [{"body": "x", "title": "y"}], tokenizer)


def test_too_little_text_is_refused(tmp_path, tokenizer):
    with pytest.raises(InputError, match="less than one row of max_length 99"):
        pretraining(write(tmp_path / "a.jsonl", [{"text": "x"}]), tokenizer, length=99)
    with pytest.raises(InputError, match="no answer to train on"):
        sft(tmp_path / "b.jsonl", [{"prompt": "Who? " * 50, "completion": "I."}], tokenizer, length=16)


def test_a_tokenizer_without_chat_template_is_refused():
    class Plain:
        chat_template = None

    with pytest.raises(InputError, match="no chat template"):
        list(conversations.answers([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], Plain()))
