"""Batches of whole datasets: mixtures, hosts, document boundaries, and what the configuration may not ask for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, on_devices, write
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import qwen3llada_jax as q
from qwen3llada_jax import sharding
from train import step as training
from train.config.parse import as_yaml, read_config
from train.config.schema import Config, DatasetConfig, TrainingConfig, flat
from train.data import loader, shuffle
from train.data.batches import IndexedBatches, load_eval_rows, training_batches
from train.monitor.jsonl import read_lines
from train.objective import objective_of
from train.objectives.example import DeviceBatch
from train.run import train


def numbered(first, count, size=4):
    """Rows whose every token is the row's number."""
    values = np.repeat(np.arange(first, first + count, dtype=np.int32), size)
    starts = np.arange(count) * size
    return loader.Rows(
        loader.Tokens([values]), starts, np.full(count, size), np.zeros(count, np.int64), f"{count} rows"
    )


def mixed(weights, counts=(7, 300, 40), **more):
    firsts = np.cumsum([0, *counts])
    parts = [numbered(first, count) for first, count in zip(firsts, counts, strict=False)]
    return IndexedBatches(parts, weights, **{"batch_size": 8, "seed": 3, "pad_id": 0, "length": 4, **more})


# ---- mixtures ------------------------------------------------------------------------------------------------


def test_a_mixture_draws_by_weight_and_each_source_in_epochs_of_its_own():
    batches = mixed((1.0, 2.5, 1.5), batch_size=1000)
    drawn = np.concatenate([batches.take(step).rows for step in range(30)])
    source = np.searchsorted([7, 307], drawn, side="right")
    for period in range(3):
        here = source[period * shuffle.PERIOD : (period + 1) * shuffle.PERIOD]
        assert np.bincount(here).tolist() == [2000, 5000, 3000]
    thousand = np.bincount(source[:1000]) / 1000  # no block of the order is far off either
    np.testing.assert_allclose(thousand, [0.2, 0.5, 0.3], atol=0.06)
    for number, (first, count) in enumerate([(0, 7), (7, 300), (307, 40)]):
        mine = drawn[source == number]
        epochs = [mine[i : i + count] for i in range(0, len(mine) - count + 1, count)]
        assert all(sorted(epoch) == list(range(first, first + count)) for epoch in epochs)
        assert epochs[0].tolist() != epochs[1].tolist()
    assert "drawn 20.00%, 50.00%, 30.00%" in batches.report


def test_a_mixtures_rows_depend_on_seed_and_slot_alone():
    a, b = mixed((1.0, 2.0, 3.0)), mixed((10.0, 20.0, 30.0), batch_size=4)
    rows = np.concatenate([b.take(step).rows for step in range(5000, 5020)])
    fresh = mixed((1.0, 2.0, 3.0))
    np.testing.assert_array_equal(np.concatenate([fresh.take(step).rows for step in range(2500, 2510)]), rows)
    np.testing.assert_array_equal(a.take(7).tokens[:, 0], a.take(7).rows)
    assert mixed((1.0, 2.0, 3.0), seed=4).take(7).rows.tolist() != a.take(7).rows.tolist()
    assert (a.state(7), a.restore({}, 7)) == ({}, None)
    assert len({mixed(w).fingerprint for w in ((1.0, 2.0, 3.0), (3.0, 2.0, 1.0))}) == 2
    assert mixed((1.0, 1.0, 1.0)).fingerprint != mixed((1.0, 1.0, 1.0), counts=(8, 299, 40)).fingerprint


def test_a_mixture_of_one_is_that_dataset():
    lone = IndexedBatches([numbered(0, 11)], (0.3,), 4, 3, 0, 4)
    expected = np.concatenate([np.random.default_rng([3, epoch]).permutation(11) for epoch in range(4)])
    np.testing.assert_array_equal(np.concatenate([lone.take(step).rows for step in range(11)]), expected)


def test_shares_are_the_weights_rounded():
    assert shuffle.shares((1.0, 1.0, 1.0)).tolist() in ([3334, 3333, 3333], [3333, 3334, 3333], [3333, 3333, 3334])
    assert shuffle.shares((1e-4, 1.0)).tolist() == [1, 9999]
    for weights, part in {(0.0, 1.0): "above 0", (-1.0, 2.0): "above 0", (1.0, 1e6): "would never be drawn"}.items():
        with pytest.raises(q.InputError, match=part):
            mixed(weights, counts=(7, 9))


def test_a_mixture_of_files_is_read_from_yaml_and_flags(tmp_path, tokenizer, start):
    a = write(tmp_path / "a.jsonl", [{"text": "first " * 30}] * 5)
    b = write(tmp_path / "b.jsonl", [{"body": "other " * 30, "title": "x"}] * 5)
    entries = [{"name": a, "weight": 3}, {"name": b, "weight": 1, "text_field": "body"}]
    (tmp_path / "a.yaml").write_text(
        f"model: {{base_model_path: {start}}}\ntraining: {{max_length: 16}}\n"
        f"dataset: {{mixture: {json.dumps(entries)}}}"
    )
    config = read_config(tmp_path / "a.yaml")
    by_flag = read_config(None, [
        ("model.base_model_path", str(start)), ("training.max_length", "16"), ("dataset.mixture", json.dumps(entries)),
    ])  # fmt: skip
    assert config == by_flag
    json.dumps(flat(config))
    (tmp_path / "b.yaml").write_text(as_yaml(config))
    assert read_config(tmp_path / "b.yaml") == config
    batches = training_batches(config, tokenizer, 1088)
    texts = [tokenizer.decode(line) for step in range(100) for line in batches.take(step).tokens]
    assert 0.7 < np.mean(["first" in text for text in texts]) < 0.8
    assert {"first" in text for text in texts} == {"other" not in text for text in texts}
    assert "documents: 5, " in batches.report
    assert "drawn 75.00%, 25.00%" in batches.report
    with pytest.raises(q.InputError, match=r"dataset\.mixture has no splits, so nothing is held out"):
        load_eval_rows(config, tokenizer, 1088)


# ---- counts --------------------------------------------------------------------------------------------------


def test_the_share_of_padding_is_that_of_the_first_epochs_batches(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"text": "word " * (i % 13)} for i in range(64)])
    config = Config(
        training=TrainingConfig(max_length=24, batch_size=4), dataset=DatasetConfig(name, pack_to_max_length=False)
    )
    batches = training_batches(config, tokenizer, 1088)
    assert batches.rows_per_epoch % 4 != 1
    taken = [batches.take(step) for step in range(batches.rows_per_epoch // 4)]
    share = 1 - sum(b.real_length.sum() for b in taken) / sum(b.tokens.size for b in taken)
    assert 0.2 < share < 0.7
    assert f"; {share:.1%} padding" in batches.report
    packed = dataclasses.replace(config, dataset=DatasetConfig(name))
    assert "0.0% padding" in training_batches(packed, tokenizer, 1088).report


# ---- hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 2, 1), (2, 1, 4), (1, 2, 4), (1, 1, 8), (8, 1, 1)])
def test_each_host_assembles_the_rows_of_its_devices_and_no_others(shape, tmp_path):
    """Hosts of two devices each, also where several share a data shard: from the sharding, not the host's number."""
    mesh = sharding.make_mesh(*shape)
    rows_sharding = NamedSharding(mesh, P(("data", "fsdp")))
    whole, ways = mixed((1.0, 2.0, 3.0)).take(5), shape[0] * shape[1]
    devices = list(mesh.devices.flat)
    seen = []
    for host in (devices[i : i + 2] for i in range(0, 8, 2)):
        mine_rows = shuffle.host_rows(rows_sharding, 8, set(host))
        assert len(mine_rows) == max(1, 2 * ways // 8) * 8 // ways
        mine = mixed((1.0, 2.0, 3.0), host_rows=mine_rows).take(5)
        assert mine.tokens.shape == whole.tokens.shape
        np.testing.assert_array_equal(mine.tokens[mine_rows], whole.tokens[mine_rows])
        others = np.setdiff1d(np.arange(8), mine_rows)
        assert not mine.tokens[others].any()
        for name in ("prompt_length", "real_length", "rows"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(whole, name))
        for device in host:  # what `make_array_from_callback` will ask this host for
            index = rows_sharding.devices_indices_map((8, 4))[device]
            np.testing.assert_array_equal(mine.tokens[index], whole.tokens[index])
        seen.append(mine_rows)
    assert set(np.concatenate(seen)) == set(range(8))
    np.testing.assert_array_equal(shuffle.host_rows(rows_sharding, 8), np.arange(8))  # this process has all devices


def test_hosts_agree_on_the_length_of_a_ragged_batch():
    sizes = np.array([3, 30, 5, 60])
    ragged = loader.Rows(
        loader.Tokens([np.arange(1, 99, dtype=np.int32)]), np.cumsum([0, 3, 30, 5]), sizes, np.zeros(4, int), ""
    )
    lengths = {
        loader.make_batch(ragged, np.arange(4), 0, length=64, host_rows=np.array([i])).tokens.shape for i in range(4)
    }
    assert lengths == {(4, 64)}


# ---- document boundaries -------------------------------------------------------------------------------------


def test_boundaries_number_documents_and_their_positions(tmp_path, tokenizer):
    texts = ["a", "word " * 30, "b", "c", "word " * 9]
    name = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    config = Config(
        training=TrainingConfig(max_length=16, batch_size=2), dataset=DatasetConfig(name, pack_boundaries=True)
    )
    batches = training_batches(config, tokenizer, 1088)
    for step in range(batches.rows_per_epoch // 2):
        batch = batches.take(step)
        for tokens, segments, positions in zip(batch.tokens, batch.segment_ids, batch.positions, strict=True):
            segment = position = 0
            for token, s, p in zip(tokens, segments, positions, strict=True):  # EOS ends a document and belongs to it
                assert (s, p) == (segment, position)
                segment, position = (segment + 1, 0) if token == tokenizer.eos_token_id else (segment, position + 1)
        assert batch.segment_ids.max() > 0 or step
    plain = training_batches(dataclasses.replace(config, dataset=DatasetConfig(name)), tokenizer, 1088)
    assert plain.take(0).segment_ids is None
    np.testing.assert_array_equal(plain.take(0).tokens, batches.take(0).tokens)


@pytest.mark.slow
@pytest.mark.parametrize("block_length", [None, 4])
def test_a_document_of_a_packed_row_is_as_it_is_alone(start, block_length):
    """Neither its hidden states nor its loss know of its neighbors, with and without block attention."""
    more = [] if block_length is None else [
        ("training.block_attention.enabled", "true"), ("training.block_attention.block_length", str(block_length)),
        ("training.block_attention.visibility", "block_causal"),
    ]  # fmt: skip
    values = [("model.base_model_path", str(start)), ("dataset.name", "x"), ("training.max_length", "24"),
              ("training.noise.random_length_prob", "0"), ("dataset.pack_boundaries", "true")]  # fmt: skip
    config = read_config(None, values + more)
    network, draw = q.load(start, "float32"), np.random.default_rng(0)
    packed = loader.Row(draw.integers(0, 1000, 24).astype(np.int32), 0, np.array([8, 16]))
    batch = loader.assemble({0: packed}, np.array([24]), np.array([0]), np.array([0]), 0, length=24)
    put = lambda b: DeviceBatch(  # noqa: E731
        jnp.asarray(b.tokens), jnp.asarray(b.prompt_length), jnp.asarray(b.real_length), jnp.arange(1),
        None if b.segment_ids is None else jnp.asarray(b.segment_ids),
        None if b.positions is None else jnp.asarray(b.positions),
    )  # fmt: skip
    whole = objective_of(config, 1050, 1050)(put(batch), jax.random.key(1), jnp.int32(3))
    hidden = jax.jit(lambda part: network.hidden(part.inputs, part.mask))
    loss = jax.jit(lambda part: training.loss_and_sums(network, part)[0])
    bare = dataclasses.replace(whole.mask, segment_ids=None, positions=None)
    together, total = hidden(whole), 0.0
    for begin in (0, 8, 16):
        inside = slice(begin, begin + 8)
        alone = whole._replace(
            inputs=whole.inputs[:, inside], targets=whole.targets[:, inside], weight=whole.weight[:, inside],
            where=whole.where[:, inside], t=whole.t[:, inside], mask=bare,
        )  # fmt: skip
        np.testing.assert_allclose(together[:, inside], hidden(alone), atol=2e-5)
        total += float(loss(alone))
    assert total == pytest.approx(float(loss(whole)), rel=1e-5)
    changed = hidden(whole._replace(inputs=whole.inputs.at[0, 9].set(77)))
    moved = np.flatnonzero(np.asarray(changed != together).any(axis=(0, 2)))
    assert set(moved) <= set(range(8, 16))
    assert len(moved) >= 4
    divided = hidden(whole._replace(mask=bare))
    assert np.abs(np.asarray(divided - together)).max() > 0.1  # and without boundaries it does know of them


# ---- whole runs ----------------------------------------------------------------------------------------------


def settings(start, out, **more):
    values = {
        "project.output_dir": out, "model.base_model_path": start, "model.mask_token_id": "auto",
        "training.max_length": 32, "training.batch_size": 4, "training.max_steps": 2, "evaluation.steps": 1,
        "evaluation.eval_max_batches": 1, "evaluation.eval_name": DATA / "dialogue" / "valid.jsonl",
    }  # fmt: skip
    return [(k, str(v)) for k, v in {**values, **more}.items()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture with boundaries", "streamed sft, plain"])
def test_runs_train_on_them(start, tmp_path, capsys, kind):
    if kind == "mixture with boundaries":
        a = write(tmp_path / "a.jsonl", [{"text": "first " * 30}] * 9)
        more = {
            "dataset.mixture": json.dumps([{"name": a}, {"name": str(DATA / "shakespeare" / "valid.txt")}]),
            "dataset.pack_boundaries": True, "training.gradient_accumulation_steps": 1, "evaluation.eval_name": a,
        }  # fmt: skip
        said = "drawn 50.00%, 50.00%"
    else:
        more = {
            "training.mode": "sft", "dataset.name": DATA / "dialogue" / "train.jsonl", "dataset.streaming": True,
            "dataset.template": "plain", "dataset.shuffle_buffer": 32, "evaluation.prompts": '["Who?"]',
            "evaluation.max_new_tokens": 4, "evaluation.sampling_steps": 4,
        }  # fmt: skip
        said = "data read: "
    with on_devices(1):
        train(read_config(None, settings(start, tmp_path / "run", **more)))
    losses = [record["loss"] for record in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"dataset.name": "null"}, "dataset.name is not set"),
        ({"dataset.mixture": "[{name: a}]"}, "dataset.name and dataset.mixture are both set"),
        ({"dataset.name": "null", "dataset.mixture": "[{weight: 1}]"}, "dataset.mixture[0].name is not set"),
        (
            {"dataset.name": "null", "dataset.mixture": "[{name: a}, {name: b, weight: 0}]"},
            "dataset.mixture[1].weight must be above 0, not 0",
        ),
        (
            {"dataset.name": "null", "dataset.mixture": "[{name: a, wieght: 2}]"},
            "dataset.mixture[0]: unknown key 'wieght'; did you mean 'weight'?",
        ),
        (
            {"dataset.name": "null", "dataset.mixture": "[{name: a, weight: much}]"},
            "dataset.mixture[0].weight must be a number, not 'much'",
        ),
        ({"dataset.streaming": True, "max_steps": "null"}, "dataset.streaming needs training.max_steps"),
        ({"dataset.streaming": True, "num_proc": 2}, "dataset.num_proc has no effect on a stream"),
        ({"dataset.shuffle_buffer": 10}, "dataset.shuffle_buffer has no effect without dataset.streaming"),
        ({"dataset.streaming": True, "shuffle_buffer": 0}, "dataset.shuffle_buffer must be at least 1, not 0"),
        ({"dataset.pack_boundaries": True, "mode": "sft"}, "dataset.pack_boundaries has no effect on sft"),
        (
            {"dataset.pack_boundaries": True, "pack_to_max_length": False},
            "dataset.pack_boundaries needs pack_to_max_length: true",
        ),
        (
            {"dataset.template": "jinja", "mode": "sft"},
            "dataset.template 'jinja' is unknown; choose one of chat, plain",
        ),
        ({"dataset.template": "plain"}, "dataset.template has no effect on pretraining"),
    ],
)
def test_impossible_data_settings_are_refused(start, changes, part):
    with pytest.raises(q.InputError) as caught:
        read_config(None, settings(start, "unused", **{"dataset.name": "x", **changes}))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
