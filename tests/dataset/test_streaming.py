"""Streams: the rows they give, that they go on for ever, and that a resumed one misses and repeats none."""

import itertools
import json

import datasets
import numpy as np
import pytest
from conftest import DATA, TINY, write

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.text.tokens import load_tokenizer
from train.config.schema import Config, DatasetConfig, EvaluationConfig, ProjectConfig, SourceConfig, TrainingConfig
from train.data.batches import load_eval_rows, training_batches


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of documents from a word to several rows long, one of which is empty."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        texts = ["" if i == 7 else f"shard {shard} row {i} " + "word " * (i * 11 % 47) for i in range(70)]
        write(folder / f"{shard}.jsonl", [{"text": text} for text in texts])
    return folder


def configured(name, *, mode="pretrain", length=32, batch=8, seed=0, evaluation=None, **dataset):
    dataset = {"name": None if name is None else str(name), "streaming": True, "shuffle_buffer": 20, **dataset}
    return Config(
        project=ProjectConfig(seed=seed),
        training=TrainingConfig(mode=mode, max_steps=9, max_length=length, batch_size=batch),
        dataset=DatasetConfig(**dataset),
        evaluation=EvaluationConfig(**evaluation or {}),
    )


def batches_of(tokenizer, name, **more):
    return training_batches(configured(name, **more), tokenizer, 1088)


def rows_in(batches, steps):
    """Rows of these steps without their padding."""
    taken = [batches.take(step) for step in steps]
    return [tuple(line[:size]) for b in taken for line, size in zip(b.tokens.tolist(), b.real_length, strict=True)]


def same(a, b):
    for field in ("tokens", "prompt_length", "real_length", "rows", "segment_ids", "positions"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_a_stream_gives_the_rows_of_the_whole_dataset(tokenizer, shards):
    """Packed on the fly, with its leftovers carried on, as if the dataset had been joined and cut."""
    whole = batches_of(tokenizer, shards, streaming=False, shuffle_buffer=None)
    count = whole.rows_per_epoch // 8
    streamed = batches_of(tokenizer, shards, shuffle_buffer=1)
    inside = whole.parts[0]
    expected = [tuple(inside.row(number).ids.tolist()) for number in range(count * 8)]
    assert rows_in(streamed, range(count)) == expected
    shuffled = rows_in(batches_of(tokenizer, shards, shuffle_buffer=count * 8), range(count))
    assert sorted(shuffled) == sorted(expected)
    assert shuffled != expected
    assert rows_in(batches_of(tokenizer, shards, shuffle_buffer=count * 8, seed=1), range(count)) != shuffled
    assert "1 whole passes, " in streamed.counts()  # the block in use reaches beyond one pass
    assert "274 rows read" in streamed.counts()
    assert "rows: 210 = 207 used + 3 left out" in streamed.counts()


def test_shuffling_stays_within_blocks(tokenizer, shards):
    plain = rows_in(batches_of(tokenizer, shards, shuffle_buffer=1), range(10))
    shuffled = rows_in(batches_of(tokenizer, shards, shuffle_buffer=20), range(10))
    for block in range(4):
        part = slice(20 * block, 20 * block + 20)
        assert sorted(plain[part]) == sorted(shuffled[part])
        assert plain[part] != shuffled[part]


SETTINGS = {
    "packed": {},
    "unshuffled": {"shuffle_buffer": 1},
    "boundaries": {"pack_boundaries": True},
    "unpacked": {"pack_to_max_length": False},
    "large buffer": {"shuffle_buffer": 300},
    "small buffer": {"shuffle_buffer": 3},
    "long rows": {"length": 300, "batch": 2},
    "mixture": {"mixture": True},
    "sft": {"mode": "sft", "length": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_resumed_stream_goes_on_exactly_and_so_does_one_resumed_twice(tokenizer, shards, tmp_path, kind):
    settings = dict(SETTINGS[kind])
    name = DATA / "dialogue" / "valid.jsonl" if kind == "sft" else shards
    if settings.pop("mixture", False):
        lines = [{"body": f"{i} " + "other " * (i % 9)} for i in range(30)]
        other = SourceConfig(write(tmp_path / "other.jsonl", lines), 2.0, text_field="body")
        settings["mixture"], name = (SourceConfig(str(shards), 5.0), other), None
    fresh = lambda: batches_of(tokenizer, name, **settings)  # noqa: E731
    whole = fresh()
    expected = [whole.take(step) for step in range(60)]  # several epochs
    for first, second in [(0, 1), (3, 40), (26, 27)]:
        going = fresh()
        for step in range(first):
            going.take(step)
        for start, end in [(first, second), (second, second + 20)]:
            state = json.loads(json.dumps(going.state(start)))
            assert len(json.dumps(state)) < 6000
            going = fresh()
            going.restore(state, start)
            for step in range(start, end):
                same(going.take(step), expected[step])
    assert going.fingerprint == whole.fingerprint


def test_every_step_can_be_resumed_at(tokenizer, shards):
    """Over the ends of epochs, of chunks and of blocks, from the state a run has there."""
    running, resumed = batches_of(tokenizer, shards), batches_of(tokenizer, shards)
    for step in range(60):
        state = running.state(step)
        batch = running.take(step)
        assert running.state(step) == state  # also after it was taken: it is the position of this step
        resumed.restore(json.loads(json.dumps(state)), step)
        same(resumed.take(step), batch)
    counts = resumed.counts().rsplit(";", 1)[0]
    assert counts == running.counts().rsplit(";", 1)[0]


def test_steps_can_be_taken_again_but_not_from_long_ago(tokenizer, shards):
    batches = batches_of(tokenizer, shards)
    expected = [batches.take(step) for step in range(40)]
    for step in (39, 38, 36, 39):
        same(batches.take(step), expected[step])
    with pytest.raises(ValueError, match="before what a stream can go back to"):
        batches.take(0)
    with pytest.raises(ValueError, match="no position is known"):
        batches.state(0)
    ahead = batches_of(tokenizer, shards)
    same(ahead.take(33), expected[33])  # without a state: read up to there
    begun = batches_of(tokenizer, shards)
    begun.restore(None, 1000)  # another run's step, this stream's beginning
    assert sorted(rows_in(begun, range(1000, 1005))) == sorted(rows_in(batches_of(tokenizer, shards), range(5)))


@pytest.mark.parametrize("batch", [4, 24])
def test_another_run_goes_on_with_batches_of_another_size(tokenizer, shards, batch):
    one, other = batches_of(tokenizer, shards), batches_of(tokenizer, shards, batch=batch)
    rows = rows_in(one, range(30))
    state = json.loads(json.dumps(batches_of(tokenizer, shards).state(0)))
    for step in (3, 7, 13):
        going = batches_of(tokenizer, shards)
        for before in range(step):
            going.take(before)
        state = json.loads(json.dumps(going.state(step)))
        other.restore(state, step)
        assert rows_in(other, [step]) == rows[step * 8 : step * 8 + batch]
        again = batches_of(tokenizer, shards, batch=batch)
        again.restore(json.loads(json.dumps(other.state(step + 1))), step + 1)
        assert rows_in(again, [step + 1]) == rows_in(other, [step + 1]) == rows[step * 8 + batch : step * 8 + 2 * batch]


def test_epochs_follow_one_another_for_ever_and_shuffle_the_shards(tokenizer, shards):
    batches = batches_of(tokenizer, shards, pack_to_max_length=False, shuffle_buffer=1)
    rows = [tokenizer.decode(row) for row in rows_in(batches, range(250))]
    begins = [row.split(" word")[0] for row in rows if row.startswith("shard")]
    epochs = [begins[i * 207 : (i + 1) * 207] for i in range(3)]
    assert len(set(epochs[0])) == 207
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    orders = [[shard for shard, _ in itertools.groupby(row.split()[1] for row in epoch)] for epoch in epochs]
    assert orders[0] == ["0", "1", "2"]
    assert all(sorted(order) == ["0", "1", "2"] for order in orders)
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "csv", "parquet", "disk", "folder"])
def test_every_kind_of_source_streams(tokenizer, tmp_path, kind):
    texts = [f"{i} " + "word " * i for i in range(40)]
    made, path = datasets.Dataset.from_dict({"text": texts}), tmp_path / f"a.{kind}"
    if kind in ("csv", "parquet"):
        getattr(made, f"to_{kind}")(path)
    elif kind == "json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    elif kind == "jsonl":
        write(path, [{"text": text} for text in texts])
    elif kind == "txt":
        path.write_text("".join(texts))
    elif kind == "disk":
        made.save_to_disk(str(path))
    else:
        path.mkdir()
        made.to_parquet(path / "train.parquet")
    batches, whole = (
        batches_of(tokenizer, path, streaming=s, shuffle_buffer=1 if s else None, batch=4) for s in (True, False)
    )
    first = whole.parts[0]
    assert rows_in(batches, range(3)) == [tuple(first.row(i).ids.tolist()) for i in range(12)]
    state = json.loads(json.dumps(batches.state(3)))
    after = batches.take(3)
    batches.restore(state, 3)
    same(batches.take(3), after)


def test_odd_examples_of_a_stream_are_left_out_and_counted(tokenizer, tmp_path):
    """Defect of the PyTorch system: streaming SFT crashed on an odd row."""
    good = [{"prompt": f"Who {i}?", "completion": "I."} for i in range(9)]
    odd = [{"prompt": "x", "completion": None}, {"prompt": "y" * 500, "completion": "I."}]
    none = {"prompt": "x", "completion": ""}
    rows = [*good[:4], odd[0], none, *good[4:], odd[1]]
    batches = batches_of(tokenizer, write(tmp_path / "a.jsonl", rows), mode="sft", shuffle_buffer=1, length=64, batch=9)
    clean = batches_of(tokenizer, write(tmp_path / "b.jsonl", good), mode="sft", shuffle_buffer=1, length=64, batch=9)
    np.testing.assert_array_equal(batches.take(0).tokens, clean.take(0).tokens)
    batches.take(1)  # into the second pass: rows are counted once
    said = batches.counts()
    for part in (
        "rows: 12 = 9 used + 3 left out",
        f"1 left out: column completion is null, not a text (first: {tmp_path / 'a.jsonl'}:5: null)",
        f"1 left out: column completion is empty (first: {tmp_path / 'a.jsonl'}:6)",
        f"1 left out: its prompt leaves no room for an answer (first: {tmp_path / 'a.jsonl'}:12)",
        "% padding",
    ):
        assert part in said
    assert "rows: 9 = 9 used + 0 left out" in clean.counts()


def test_held_out_rows_of_a_stream_are_its_first(tokenizer, tmp_path, shards):
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.jsonl", [{"text": f"{split} {i} " + "word " * 20} for i in range(60)])
    config = configured(tmp_path, evaluation={"eval_max_batches": 3})
    rows = load_eval_rows(config, tokenizer, 1088)
    assert len(rows) == 24
    assert tokenizer.decode(rows.row(0).ids).startswith("validation 0 word")
    config = configured(tmp_path, streaming=False, shuffle_buffer=None)
    whole = load_eval_rows(config, tokenizer, 1088)
    assert len(whole) > 24
    for number in range(24):
        np.testing.assert_array_equal(rows.row(number).ids, whole.row(number).ids)


def test_the_fingerprint_of_a_stream_tells_data_tokenizer_and_settings(tokenizer, tmp_path):
    lines = [{"text": "word " * 40}] * 40
    name = write(tmp_path / "a.jsonl", lines)
    prints = {
        "same": batches_of(tokenizer, name).fingerprint,
        "length": batches_of(tokenizer, name, length=16).fingerprint,
        "boundaries": batches_of(tokenizer, name, pack_boundaries=True).fingerprint,
        "data": batches_of(tokenizer, write(tmp_path / "b.jsonl", lines + lines)).fingerprint,
    }
    other = load_tokenizer(TINY)
    other.add_tokens(["kaeps"])
    prints["tokenizer"] = batches_of(other, name).fingerprint
    assert len(set(prints.values())) == 5
    (tmp_path / "moved").mkdir()
    moved = write(tmp_path / "moved" / "c.jsonl", lines)
    assert batches_of(tokenizer, moved).fingerprint == prints["same"]


def test_streams_that_give_nothing_are_refused(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file"):
        batches_of(tokenizer, "absent.jsonl")
    with pytest.raises(InputError, match="a whole pass found nothing to train on"):
        batches_of(tokenizer, write(tmp_path / "a.jsonl", [{"text": ""}] * 3))
    with pytest.raises(InputError, match=r"nothing to train on.*column completion is null"):
        batches_of(tokenizer, write(tmp_path / "b.jsonl", [{"prompt": "x", "completion": None}]), mode="sft")
    with pytest.raises(InputError, match="has no column 'body'"):
        batches_of(tokenizer, write(tmp_path / "c.jsonl", [{"text": "x"}]), text_field="body")
    with pytest.raises(InputError, match="no format for sft"):
        batches_of(tokenizer, write(tmp_path / "d.jsonl", [{"text": "x"}]), mode="sft")
    broken = tmp_path / "e.jsonl"
    broken.write_text(json.dumps({"text": "word " * 90}) + "\n" + '{"text": ')
    assert "1 left out: is not valid JSON (first: " in batches_of(tokenizer, broken).report
    with pytest.raises(InputError, match="outside the embedding table"):
        training_batches(configured(write(tmp_path / "f.jsonl", [{"text": "word " * 90}])), tokenizer, 20).take(0)
