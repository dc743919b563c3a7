"""Datasets, formats, packing and the order of rows."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import DATA, ROOT, TINY, length_of_exchange, write
from datasets.arrow_writer import ArrowWriter

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.conversations import Columns
from qwen3llada_jax.text.tokens import load_tokenizer
from train.data import loader, shuffle, sources, token_cache
from train.data.rows import rows_of
from train.data.tokenize import Reading, TokenizeConfig

TEXTS = ["Speak, speak.", "We know't, we know't.", "No more talking on't; let it be done: away, away!"]


def ids_of(tokenizer, texts):
    return [[*tokenizer(t).input_ids, tokenizer.eos_token_id] for t in texts]


def pretraining(name, tokenizer, length=8, pack=True, column=None, split="train", boundaries=False):
    how, source = TokenizeConfig("pretrain", length, pack, boundaries), sources.load(name, None, split)
    return rows_of(source, how, tokenizer, Reading(column), num_proc=None)


def test_every_kind_of_local_file_gives_the_same_rows(tmp_path, tokenizer):
    made = datasets.Dataset.from_dict({"text": TEXTS})
    write(tmp_path / "a.jsonl", [{"text": t} for t in TEXTS])
    (tmp_path / "a.json").write_text(json.dumps([{"text": t} for t in TEXTS]))
    made.to_csv(tmp_path / "a.csv")
    made.to_parquet(tmp_path / "a.parquet")
    with ArrowWriter(path=str(tmp_path / "a.arrow")) as writer:
        for text in TEXTS:
            writer.write({"text": text})
        writer.finalize()
    for kind in ("csv", "jsonl", "parquet", "arrow"):  # folders, whose files say by their names which split they are
        (tmp_path / kind).mkdir()
        shutil.copy(tmp_path / f"a.{kind}", tmp_path / kind / f"train.{kind}")
    made.save_to_disk(str(tmp_path / "disk"))
    datasets.DatasetDict({"train": made, "other": made.select([0])}).save_to_disk(str(tmp_path / "dict"))
    flat = np.concatenate(ids_of(tokenizer, TEXTS))
    files = ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"]
    for name in [*files, "csv", "jsonl", "parquet", "arrow", "disk", "dict"]:
        rows = pretraining(str(tmp_path / name), tokenizer)
        assert len(rows) == len(flat) // 8
        np.testing.assert_array_equal(rows.values[:], flat, err_msg=name)


def test_text_file_is_one_document(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    rows = pretraining(str(tmp_path / "a.txt"), tokenizer, length=2)
    assert tokenizer.decode(rows.values[:-1]) == "One.\n\nTwo.\n"
    assert rows.values[:][-1] == tokenizer.eos_token_id


def test_unpacked_documents_get_rows_of_their_own(tmp_path, tokenizer):
    rows = pretraining(write(tmp_path / "a.jsonl", [{"text": t} for t in TEXTS]), tokenizer, length=8, pack=False)
    documents = ids_of(tokenizer, TEXTS)
    pieces = [d[i : i + 8] for d in documents for i in range(0, len(d), 8)]
    batch = loader.make_batch(rows, np.arange(len(rows)), pad_id=0, length=8)
    assert [line[:size].tolist() for line, size in zip(batch.tokens, batch.real_length, strict=True)] == pieces


def test_a_folder_of_texts_holds_one_document_per_file(tmp_path, tokenizer):
    for number, text in enumerate(["One.\n\nTwo.\n", "Three."]):
        (tmp_path / f"{number}.txt").write_text(text)
    rows = pretraining(str(tmp_path), tokenizer, length=2, boundaries=True)
    assert len(rows.documents) == 2
    assert tokenizer.decode(rows.values[:]) == "One.\n\nTwo.\n<|endoftext|>Three.<|endoftext|>"


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, inner):
        self.inner, self.count = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, texts, **options):
        self.count += len(texts)
        return self.inner(texts, **options)


def test_tokenized_text_is_cached_and_made_anew_when_anything_changes(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"text": TEXTS[0]}])
    first = pretraining(name, counting := Counting(tokenizer), length=2)
    again = pretraining(name, counting, length=3)  # packing comes after tokenizing
    assert counting.count == 1
    np.testing.assert_array_equal(again.values[:], first.values[:])
    assert again.fingerprint != first.fingerprint == pretraining(name, counting, length=2).fingerprint
    write(tmp_path / "a.jsonl", [{"text": TEXTS[0][::-1]}])  # of the same size
    changed = pretraining(name, counting, length=2)
    assert counting.count == 2
    assert tokenizer.decode(changed.values[:-1]) == TEXTS[0][::-1]
    assert changed.fingerprint != first.fingerprint
    other = Counting(load_tokenizer(TINY))
    other.inner.add_tokens(["kaeps"])
    assert pretraining(name, other, length=2).fingerprint != changed.fingerprint
    assert other.count == 1


def test_a_saved_dataset_that_is_saved_anew_is_read_anew(tmp_path, tokenizer):
    for text in TEXTS:
        datasets.Dataset.from_dict({"text": [text]}).save_to_disk(str(tmp_path / "disk"))
        assert tokenizer.decode(pretraining(str(tmp_path / "disk"), tokenizer, length=2).values[:-1]) == text


def test_tokenized_conversations_are_made_anew_for_another_length_or_template(tmp_path, tokenizer):
    counting = Counting(tokenizer)
    sft(tmp_path / "a.jsonl", [SAME["prompt"]], counting)
    for more, retokenized in [({}, 0), ({"length": 63}, 1), ({"template": "plain"}, 1), ({}, 0)]:
        before = counting.count
        sft(tmp_path / "a.jsonl", None, counting, **more)
        assert (counting.count > before) == bool(retokenized), more
    changed = Counting(load_tokenizer(TINY))
    changed.inner.chat_template = " " + tokenizer.chat_template
    sft(tmp_path / "a.jsonl", None, changed)
    assert changed.count > 0


def test_several_processes_give_the_same_rows_and_the_same_errors(tmp_path, tokenizer, recwarn):
    texts = [{"text": f"{i} " + "word " * (i % 7)} for i in range(50)]
    how = TokenizeConfig("pretrain", 8)

    def rows(file, column, workers):
        source = sources.load(file, None, "train")
        with sources.readable(file):
            return rows_of(source, how, tokenizer, Reading(column), num_proc=workers)

    one, two = (
        rows(write(tmp_path / "a.jsonl", texts), None, 1),
        rows(write(tmp_path / "b.jsonl", texts), None, 2),
    )
    assert one.fingerprint == two.fingerprint
    assert not [warning for warning in recwarn if "fork" in str(warning.message)]
    with pytest.raises(InputError, match="its body is a number"):
        rows(write(tmp_path / "c.jsonl", [{"body": 3}] * 4), "body", 2)


def test_ids_in_pieces_read_as_one_array():
    draw = np.random.default_rng(0)
    pieces = [draw.integers(0, 9, n).astype(np.int32) for n in (3, 0, 1, 5, 0, 7)]
    whole, tokens = np.concatenate(pieces), loader.Tokens(pieces)
    assert len(tokens) == 16
    for start in range(-1, 17):
        for stop in range(17):
            np.testing.assert_array_equal(tokens[start:stop], whole[start:stop])
    assert tokens.span() == (whole.min(), whole.max())
    assert np.shares_memory(tokens[4:9], pieces[3])


def test_only_the_first_start_goes_over_all_tokens(tmp_path, tokenizer, monkeypatch):
    def made_again(*_):
        raise AssertionError("all tokens are read")

    file = write(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    first = pretraining(file, tokenizer)
    ids = np.concatenate(ids_of(tokenizer, TEXTS))
    assert first.values.span() == (ids.min(), ids.max())
    for module, name in [(token_cache, "digest_of"), (token_cache, "span_of"), (loader, "span_of")]:
        monkeypatch.setattr(module, name, made_again)
    second = pretraining(file, tokenizer)
    assert (second.values.span(), second.fingerprint) == (first.values.span(), first.fingerprint)


@pytest.mark.slow
def test_what_a_killed_run_had_tokenized_is_not_taken_and_not_kept(tmp_path, tokenizer, monkeypatch):
    file = write(tmp_path / "a.jsonl", [{"text": f"{i} {TEXTS[i % 3]}"} for i in range(2500)])
    killed = (
        "import os, signal, sys\nfrom train.data import long_texts, sources\nfrom train.data.rows import rows_of\n"
        "from train.data.tokenize import Reading, TokenizeConfig\n"
        "from qwen3llada_jax.text.tokens import load_tokenizer\n"
        "encode, calls = long_texts.encode, []\n"
        "def encode_until(*given):\n    calls.append(1)\n"
        "    return encode(*given) if len(calls) < 3 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "long_texts.encode = encode_until\n"
        "source, how = sources.load(sys.argv[1], None, 'train'), TokenizeConfig('pretrain', 8)\n"
        "rows_of(source, how, load_tokenizer(sys.argv[2]), Reading(), num_proc=None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", killed, file, str(TINY)], cwd=ROOT, env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "hf" / "datasets" / "qwen3llada"
    (left,) = folder.iterdir()
    expected = pretraining(file, tokenizer)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    again = pretraining(file, tokenizer)
    np.testing.assert_array_equal(again.values[:], expected.values[:])
    assert again.fingerprint == expected.fingerprint
    assert left.exists()  # it might be another run's, which still writes
    kept = {path.name for path in folder.iterdir()} - {left.name}
    assert {path.suffix for path in map(Path, kept)} == {".arrow", ".json"}
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(left, (two_days_ago, two_days_ago))
    pretraining(file, tokenizer)
    assert {path.name for path in folder.iterdir()} == kept


def test_empty_documents_are_dropped_and_counted(tmp_path, tokenizer):
    texts = [TEXTS[0], "", None, TEXTS[1], ""]
    for pack in (True, False):
        rows = pretraining(
            write(tmp_path / "a.jsonl", [{"text": t} for t in texts]), tokenizer, 4, pack, boundaries=True
        )
        np.testing.assert_array_equal(rows.values[:], np.concatenate(ids_of(tokenizer, TEXTS[:2])))
        assert "rows: 5 = 2 used + 3 left out" in rows.report
        assert f"3 left out: its text is empty (first: {tmp_path / 'a.jsonl'}:2)" in rows.report


def test_order_is_a_fresh_permutation_every_epoch_and_needs_only_the_step():
    numbers = np.concatenate([shuffle.row_numbers(np.arange(4 * i, 4 * i + 4), 10, seed=3) for i in range(5)])
    first, second = numbers[:10], numbers[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(shuffle.row_numbers(np.arange(12, 16), 10, seed=3), numbers[12:16])
    assert shuffle.row_numbers(np.arange(4), 10, seed=4).tolist() != numbers[:4].tolist()


def test_batches_come_in_few_lengths():
    rows = loader.Rows(
        loader.Tokens([np.arange(100)]), np.array([0, 3, 30]), np.array([3, 27, 70]), np.zeros(3, int), ""
    )
    for most, expected in ((64, [64, 64, 64]), (300, [128, 128, 128])):
        made = [loader.make_batch(rows, np.array(n), 0, length=most) for n in ([0], [0, 1], [2])]
        assert [batch.tokens.shape[1] for batch in made] == expected
    assert loader.buckets(1000) == [128, 256, 384, 512, 768, 1024]


# ---- supervised formats --------------------------------------------------------------------------------------

SAME = {
    "messages": {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]},
    "conversations": {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]},
    "prompt": {"prompt": "Who?", "completion": "I."},
    "question": {"question": "Who?", "answer": "I."},
    "instruction": {"instruction": "Who?", "input": "", "output": "I."},
}


def sft(path, rows, tokenizer, length=64, template="chat", columns=Columns(), **more):
    """Rows of these examples, written to `path`; of the file as it is, where `rows` is None."""
    name = str(path) if rows is None else write(path, rows)
    how, source = TokenizeConfig("sft", length, template=template, **more), sources.load(name, None, "train")
    return rows_of(source, how, tokenizer, Reading(columns=columns), num_proc=None)


def tokens_of(rows, number):
    return rows.row(number).ids.tolist()


@pytest.mark.parametrize("kind", SAME)
def test_formats_that_say_the_same_give_the_same_row(tmp_path, tokenizer, kind):
    rows = sft(tmp_path / "a.jsonl", [SAME[kind]], tokenizer)
    assert tokenizer.decode(rows.values[:]) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nI.<|im_end|>"
    assert tokenizer.decode(rows.values[: rows.prompt_lengths[0]]).endswith("assistant\n")


def test_every_turn_is_trained_on_with_its_history(tmp_path, tokenizer):
    """Defect of the PyTorch system: it took only the first question and answer, without a chat template."""
    turns = ["a?", "A.", "b?", "B.", "c?", "C."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
    rows = sft(tmp_path / "a.jsonl", [{"messages": messages}], tokenizer, length=200)
    assert len(rows) == 3
    for number, answer in enumerate(["A.", "B.", "C."]):
        ids = rows.row(number).ids
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
    assert got.sizes[0] == 40
    lost, long = (length_of_exchange(tokenizer, r["prompt"], r["completion"]) for r in (rows[1], rows[0]))
    assert "rows: 3 = 2 used + 1 left out" in got.report
    assert "1 left out: its prompt leaves no room for an answer" in got.report
    assert f"tokens lost with prompts that leave no room: {lost}" in got.report
    assert f"1 cut by {long - 40} tokens" in got.report
    assert "has no answer" not in got.report


def test_conversations_without_an_answer_are_counted(tmp_path, tokenizer):
    turns = [[{"role": "user", "content": "x"}], [{"role": "assistant", "content": "Welcome."}], []]
    rows = [*({"messages": m} for m in turns), {"messages": SAME["messages"]["messages"]}]
    assert "answers: 1, " in (report := sft(tmp_path / "a.jsonl", rows, tokenizer).report)
    assert "2 left out: has no answer: no turn of the assistant (first: " in report
    assert "1 left out: the assistant speaks first, to no prompt (first: " in report


def test_only_instructions_have_an_input(tmp_path, tokenizer):
    """A column of that name beside another format is not part of its prompts."""
    for number, kind in enumerate(("prompt", "question")):
        plain = sft(tmp_path / f"{number}a.jsonl", [SAME[kind]], tokenizer)
        more = sft(tmp_path / f"{number}b.jsonl", [{**SAME[kind], "input": [1, 2]}], tokenizer)
        np.testing.assert_array_equal(plain.values[:], more.values[:])


def test_system_text_and_unknown_speakers(tmp_path, tokenizer):
    row = {"system": "Be brief.", **SAME["conversations"]}
    assert "system\nBe brief." in tokenizer.decode(sft(tmp_path / "a.jsonl", [row], tokenizer).values[:])
    odd = {"conversations": [{"from": "parrot", "value": "x"}, {"from": "gpt", "value": "I."}]}
    with pytest.raises(InputError, match=r"unknown speaker .*'parrot'"):
        sft(tmp_path / "b.jsonl", [odd], tokenizer)


def test_conversations_that_hold_no_text_are_named(tmp_path, tokenizer):
    for number, row in enumerate(
        [
            {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "I."}]},
            {"prompt": 3, "completion": "I."},
            {"conversations": [{"from": "human"}, {"from": "gpt"}]},
        ]
    ):
        part = "a turn has no text" if number != 1 else "column prompt is a number, not a text"
        with pytest.raises(InputError, match=part):
            sft(tmp_path / f"{number}.jsonl", [row], tokenizer)
    with pytest.raises(InputError, match="nothing to train on"):
        sft(tmp_path / "none.jsonl", [{"messages": [{"role": "user", "content": "x"}]}], tokenizer)


def test_bundled_dialogues_are_the_same_in_all_five_formats(tmp_path, tokenizer):
    turns = [json.loads(line)["messages"] for line in (DATA / "dialogue" / "valid.jsonl").read_text().splitlines()]
    speaker = {"user": "human", "assistant": "gpt"}
    whole = sft(DATA / "dialogue" / "valid.jsonl", None, tokenizer, length=128)
    assert len(whole) > 100
    shared = [[{"from": speaker[t["role"]], "value": t["content"]} for t in dialogue] for dialogue in turns]
    same = sft(tmp_path / "sharegpt.jsonl", [{"conversations": dialogue} for dialogue in shared], tokenizer, length=128)
    assert same.fingerprint == whole.fingerprint
    pairs = [(dialogue[0]["content"], dialogue[1]["content"]) for dialogue in turns]
    formats = {
        "messages": [{"messages": dialogue[:2]} for dialogue in turns],
        "prompt": [{"prompt": q, "completion": a} for q, a in pairs],
        "question": [{"question": q, "answer": a} for q, a in pairs],
        "instruction": [{"instruction": q, "input": "", "output": a} for q, a in pairs],
    }
    found = {kind: sft(tmp_path / f"{kind}.jsonl", rows, tokenizer, length=128) for kind, rows in formats.items()}
    assert len(found["messages"]) == len(turns)
    assert len({rows.fingerprint for rows in found.values()}) == 1
    first = json.dumps(tokens_of(whole, 0))
    assert all(json.dumps(tokens_of(rows, 0)) == first for rows in found.values())


def test_plain_template_is_the_documented_text(tmp_path, tokenizer):
    plain = load_tokenizer(TINY)
    plain.chat_template = None
    turns = [("system", "Be brief."), ("user", "Who?"), ("assistant", "I."), ("user", "Why?"), ("assistant", "So.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = sft(tmp_path / "a.jsonl", [{"messages": messages}], plain, template="plain", length=200)
    first = "System: Be brief.\n\nUser: Who?\n\nAssistant: I."
    assert [plain.decode(tokens_of(rows, i)) for i in range(2)] == [
        f"{first}<|endoftext|>",
        f"{first}\n\nUser: Why?\n\nAssistant: So.<|endoftext|>",
    ]
    assert plain.decode(tokens_of(rows, 1)[rows.prompt_lengths[1] :]) == " So.<|endoftext|>"
    odd = sft(tmp_path / "b.jsonl", [{"prompt": "Who?", "completion": "<|im_end|>"}], plain, template="plain")
    assert tokens_of(odd, 0)[-1] == plain.eos_token_id
    with pytest.raises(InputError, match="no chat template"):
        sft(tmp_path / "a.jsonl", None, plain)


# ---- bad input -----------------------------------------------------------------------------------------------


def test_bad_datasets_are_refused(tmp_path, tokenizer):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.csv").write_text("text\nx\n")
    (tmp_path / "mixed" / "b.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "hollow").mkdir()
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(str(tmp_path / "dict"))
    for name, part in {
        "absent.jsonl": "no such file",
        "notes.md": "unknown kind of file",
        "mixed": r"files of several kinds \(\.csv, \.jsonl\)",
        "hollow": "holds no file of a known kind",
        "empty.jsonl": "the file is empty",
    }.items():
        for read in (sources.load, sources.stream):
            with pytest.raises(InputError, match=part):
                read(str(tmp_path / name), None, "train")
    with pytest.raises(InputError, match=r"has no split 'test'; set dataset\.split to one of train"):
        sources.load(str(tmp_path / "dict"), None, "test")
    with pytest.raises(InputError, match=r"has no split 'test'; set dataset\.split to one of train"):
        sources.stream(str(tmp_path / "dict"), None, "test")
    with pytest.raises(InputError, match="cannot be read as a dataset"):
        sources.load("nobody/nothing", None, "train")


def test_bad_columns_are_refused(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"body": "x", "title": "y"}])
    with pytest.raises(InputError, match=r"no column 'bodi'.*did you mean 'body'"):
        pretraining(name, tokenizer, column="bodi")
    with pytest.raises(InputError, match="its body is a number, not a text"):
        pretraining(write(tmp_path / "c.jsonl", [{"body": 3}]), tokenizer, column="body")
    with pytest.raises(InputError, match="none of its 2 rows can be used: 2 × its text is empty"):
        pretraining(write(tmp_path / "d.jsonl", [{"text": ""}, {"text": None}]), tokenizer, pack=False)
    with pytest.raises(InputError, match=r"set dataset\.text_field to one of body, title"):
        pretraining(name, tokenizer)
    with pytest.raises(InputError, match="columns body, title are no format for sft"):
        sft(tmp_path / "b.jsonl", [{"body": "x", "title": "y"}], tokenizer)


def test_too_little_text_is_refused(tmp_path, tokenizer):
    with pytest.raises(InputError, match="less than one row of max_length 99"):
        pretraining(write(tmp_path / "a.jsonl", [{"text": "x"}]), tokenizer, length=99)
    with pytest.raises(InputError, match=r"its prompt leaves no room for an answer .*raise training.max_length"):
        sft(tmp_path / "b.jsonl", [{"prompt": "Who? " * 50, "completion": "I."}], tokenizer, length=16)


def test_a_tokenizer_without_chat_template_is_refused():
    class Plain:
        chat_template = None

    with pytest.raises(InputError, match="no chat template"):
        ChatWriter(Plain())
