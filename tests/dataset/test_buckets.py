"""`max_length` is a ceiling: what is trained on does not depend on it, and shapes are those that kernels take."""

import numpy as np
import pytest
from conftest import DATA, write

import qwen3llada_jax as q
from train.config.schema import Config, DatasetConfig, TrainingConfig
from train.data import loader, token_cache
from train.data.batches import lengths_of, training_batches


def configured(length, name=DATA / "dialogue" / "valid.jsonl", **training):
    training = {"mode": "sft", "batch_size": 4, **training}
    return Config(training=TrainingConfig(max_length=length, **training), dataset=DatasetConfig(str(name)))


def test_k8_the_eos_that_is_trained_on_does_not_depend_on_max_length(tokenizer):
    shares = []
    for length in (512, 1024):
        batches = training_batches(configured(length), tokenizer, 1088)
        learned = ends = 0
        for step in range(20):
            batch = batches.take(step)
            assert (batch.used_length == batch.real_length.max()).all()
            learned += int((batch.real_length - batch.prompt_length).sum())
            ends += int((batch.used_length - batch.real_length).sum())
        shares.append((learned, ends))
        assert "EOS that pad answers to their batch's longest row" in batches.report
    assert shares[0] == shares[1]
    assert shares[0][1] > 0


def test_k8_without_eos_padding_nothing_but_the_answer_counts(tokenizer):
    batch = training_batches(configured(512, eos_padding=False), tokenizer, 1088).take(0)
    np.testing.assert_array_equal(batch.used_length, batch.real_length)


@pytest.mark.parametrize("length", [200, 1000, 1024, 4096, 5000])
def test_k8_buckets_are_few_multiples_of_128(length):
    found = loader.buckets(length)
    assert all(size % 128 == 0 for size in found)
    assert found == sorted(set(found))
    assert length <= found[-1] < length + 128
    assert len(found) < 14
    for size in range(257, length + 1):
        bucket = int(loader.padded_length(np.array([size]), length))
        assert 0 <= bucket - size <= bucket / 3


def test_k8_packed_rows_are_of_max_length(tokenizer):
    assert lengths_of(configured(1000, mode="pretrain")) == [1000]
    assert lengths_of(configured(300)) == [128, 256, 384]


def test_k10_tokens_are_hashed_once_and_not_at_every_start(tmp_path, tokenizer, monkeypatch):
    name = write(tmp_path / "a.jsonl", [{"prompt": f"Who {i}?", "completion": "I."} for i in range(5)])
    first = training_batches(configured(64, name), tokenizer, 1088).fingerprint
    monkeypatch.setattr(token_cache, "digest_of", lambda *_: pytest.fail("hashed again"))
    monkeypatch.setattr(loader.Rows, "row", lambda *_: pytest.fail("read"))
    assert training_batches(configured(64, name), tokenizer, 1088).fingerprint == first
    with pytest.raises(pytest.fail.Exception, match="hashed again"):
        training_batches(
            configured(64, write(tmp_path / "b.jsonl", [{"prompt": "x", "completion": "y"}])), tokenizer, 99
        )


def test_k10_rows_are_numbered_beyond_32_bits():
    row, numbers = loader.Row(np.arange(4, dtype=np.int32)), np.array([2**31 + 5, 2**40])
    batch = loader.assemble({0: row, 1: row}, np.full(2, 4), np.zeros(2, int), numbers, 0, length=8)
    np.testing.assert_array_equal(batch.rows, numbers)


def test_ids_beyond_the_model_are_refused(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"prompt": "Who?", "completion": "I."}])
    with pytest.raises(q.InputError, match="outside the embedding table"):
        training_batches(configured(64, name), tokenizer, 20)
