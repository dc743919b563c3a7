"""Streams that several hosts read: each its own lane, every row in exactly one, and the same whoever reads them."""

import json
from collections import Counter

import datasets
import jax
import numpy as np
import pytest
from conftest import DATA, write
from test_streaming import configured, rows_in, same

from qwen3llada_jax import sharding
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import readers
from train.config.schema import SourceConfig
from train.data import batches as whole_batches
from train.data import shuffle
from train.data.batches import training_batches
from train.data.loader import Row
from train.data.show_rows import shown
from train.data.streams import batches as streamed_batches
from train.data.streams.lane import Lane
from train.step import rows_sharding


def documents(number, of=""):
    return [{"text": "" if i % 20 == 7 else f"{of} {i} " + "word " * (i * 11 % 47)} for i in range(number)]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four files of different lengths, with empty rows."""
    folder = tmp_path_factory.mktemp("four")
    for file in range(4):
        write(folder / f"{file}.jsonl", documents(50 + 9 * file, f"file {file} row"))
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    for file in range(3):
        write(folder / f"{file}.jsonl", documents(61, f"file {file} row"))
    return folder


def on_hosts(tokenizer, name, hosts, lanes=None, *, batch=8, **more):
    """What each of so many hosts sees of a run that is cut into as many lanes."""
    config, size = configured(name, batch=batch, **more), batch // hosts
    return [
        training_batches(config, tokenizer, 1088, np.arange(host * size, host * size + size), lanes or hosts)
        for host in range(hosts)
    ]


def together(patch, hosts, ask):
    """What the first host is told where all of them ask at the same moment."""
    said = []
    patch.setattr(streamed_batches, "gathered", lambda value: said.append(value) or [value])
    for host in hosts:
        ask(host)
    patch.setattr(streamed_batches, "gathered", lambda _: said)
    return ask(hosts[0])


def saved(patch, hosts, step):
    states = iter([host.state(step) for host in hosts] * 2)
    return json.loads(json.dumps(together(patch, hosts, lambda host: host.to_save(next(states)))))


@pytest.mark.parametrize(
    ("kind", "lanes"), [("four", 2), ("four", 4), ("four", 3), ("three", 2), ("one", 2), ("one", 5), ("disk", 3)]
)
def test_every_row_is_in_exactly_one_lane_in_every_pass(tokenizer, tmp_path, request, kind, lanes):
    if kind == "one":
        name = write(tmp_path / "a.jsonl", documents(150))
    elif kind == "disk":
        name = str(tmp_path / "saved")
        datasets.Dataset.from_list(documents(150)).save_to_disk(name)
    else:
        name = request.getfixturevalue(kind)
    config = configured(name, pack_to_max_length=False, length=300)
    stream = whole_batches._stream(config, tokenizer, config.dataset.sources[0])

    def passes(rows):
        """The texts of the first two."""
        found = {0: Counter(), 1: Counter()}
        while True:
            row = rows.next()
            if rows.epoch == 2:
                return found
            found[rows.epoch][tuple(row.ids.tolist())] += 1

    expected = passes(stream.rows())
    assert expected[0] == expected[1]
    of_lanes = [stream.rows(lane, lanes) for lane in range(lanes)]
    found = [passes(rows) for rows in of_lanes]
    for number in (0, 1):
        assert sum((of_lane[number] for of_lane in found), Counter()) == expected[0]
    rows = [of_lane.account.rows for of_lane in of_lanes]
    assert sum(rows) == stream.rows().source.dataset.num_shards * 61 if kind == "three" else sum(rows) in (150, 254)
    assert min(rows) > 0


def test_a_host_reads_its_own_files_only_where_they_divide(tokenizer, four, three, monkeypatch):
    opened, read = [], readers._READERS[".jsonl"]
    monkeypatch.setitem(readers._READERS, ".jsonl", lambda path: (opened.append(path.name), read(path))[1])

    def files_of(name, hosts):
        found = []
        for host in on_hosts(tokenizer, name, hosts):
            opened.clear()  # all look at the first rows, to find the columns
            for step in range(9):
                host.take(step)
            found.append(set(opened))
        return found

    assert files_of(four, 2) == [{"0.jsonl", "2.jsonl"}, {"1.jsonl", "3.jsonl"}]
    assert files_of(three, 2) == [{"0.jsonl", "1.jsonl", "2.jsonl"}] * 2
    assert f"{four}: 4 files, 2 in each" in on_hosts(tokenizer, four, 2)[1].report
    said = on_hosts(tokenizer, three, 2)[0].report
    assert "tokenizes only its rows, one in 2, for its 3 files (shards) do not divide by 2" in said
    assert "lane" not in on_hosts(tokenizer, three, 1)[0].report


KINDS = {
    "packed": {},
    "unshuffled": {"shuffle_buffer": 1},
    "boundaries": {"pack_boundaries": True},
    "large buffer": {"shuffle_buffer": 300},
    "mixture": {"mixture": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begun", [2, 4])
def test_a_run_goes_on_on_any_number_of_hosts_exactly(tokenizer, four, tmp_path, monkeypatch, kind, begun):
    settings, name = dict(KINDS[kind]), four
    if settings.pop("mixture", False):
        other = SourceConfig(write(tmp_path / "other.jsonl", documents(30, "other")), 2.0)
        settings["mixture"], name = (SourceConfig(str(four), 5.0), other), None
    (alone,) = on_hosts(tokenizer, name, 1, begun, **settings)  # all lanes on one host
    expected = [alone.take(step) for step in range(45)]  # several passes
    assert not np.array_equal(expected[0].tokens, expected[1].tokens)

    def check(hosts, steps):
        for step in steps:
            for number, host in enumerate(hosts):
                batch, size = host.take(step), 8 // len(hosts)
                mine = slice(number * size, number * size + size)
                assert batch.tokens.shape == expected[step].tokens.shape
                for field in ("tokens", "rows", "segment_ids", "positions"):
                    ours, theirs = getattr(batch, field), getattr(expected[step], field)
                    assert (ours is None) == (theirs is None)
                    if ours is not None:
                        np.testing.assert_array_equal(ours[mine], theirs[mine])
                np.testing.assert_array_equal(batch.real_length, expected[step].real_length)
                if len(hosts) <= begun:  # nothing was read for others
                    assert not np.delete(batch.tokens, range(mine.start, mine.stop), 0).any()

    hosts = on_hosts(tokenizer, name, begun, **settings)
    check(hosts, range(11))
    state = saved(monkeypatch, hosts, 11)
    for number in (1, 2, 4, 8):
        going = on_hosts(tokenizer, name, number, **settings)
        for host in going:
            assert (host.restore(state, 11) is None) == (number == begun)
        check(going, range(11, 20))
        again = saved(monkeypatch, going, 20)
        hosts = on_hosts(tokenizer, name, begun, **settings)
        for host in hosts:
            host.restore(again, 20)
        check(hosts, (20, 44))


def test_a_run_begun_by_one_host_keeps_its_order_on_several(tokenizer, four):
    (alone,) = on_hosts(tokenizer, four, 1)
    state = json.loads(json.dumps(alone.state(0)))
    assert "lanes" not in state
    for step in range(12):
        alone.take(step)
    state = json.loads(json.dumps(alone.state(12)))
    batch = alone.take(12)
    for host in on_hosts(tokenizer, four, 4):
        assert "cut into 1 lane(s) when the run began" in host.restore(state, 12)
        same(host.take(12), batch)
        assert host.to_save(host.state(13)) == alone.state(13)


def test_what_hosts_read_is_counted_together(tokenizer, four, monkeypatch):
    hosts = on_hosts(tokenizer, four, 2)
    (alone,) = on_hosts(tokenizer, four, 1, 2)
    for step in range(40):
        for host in (*hosts, alone):
            host.take(step)
    said = together(monkeypatch, hosts, lambda host: host.counts())
    monkeypatch.setattr(streamed_batches, "gathered", lambda value: [value])
    assert said == alone.counts()
    assert "rows: 254 = 240 used + 14 left out" in said
    assert "its text is empty (first: " in said


def test_lanes_together_hold_every_dataset_in_its_share():
    """And not all lanes draw from the same one at a time."""

    class Numbered:
        def __init__(self, number):
            self.number, self.account = number, type("Account", (), {"report": ""})

        def next(self):
            return Row(np.array([self.number]))

        def state(self):
            return {}

        def restore(self, _):
            pass

    lanes = [
        Lane([Numbered(0), Numbered(1), Numbered(2)], (6.0, 3.0, 1.0), number=i, lanes=5, rows_per_step=4,
             shuffle_buffer=1, seed=3)
        for i in range(5)
    ]  # fmt: skip
    drawn = np.array([[[int(row.ids[0]) for row in lane.take(step)] for lane in lanes] for step in range(500)])
    assert np.bincount(drawn.ravel()).tolist() == [6000, 3000, 1000]
    assert (drawn == drawn[:, :1]).mean() < 0.6


@pytest.mark.parametrize(
    ("kind", "more"), [("unpacked", {"pack_to_max_length": False}), ("sft", {"mode": "sft", "length": 64})]
)
def test_rows_of_different_lengths_are_read_by_every_host(tokenizer, four, kind, more):
    """For the longest of a batch says how long it is."""
    name = DATA / "dialogue" / "valid.jsonl" if kind == "sft" else four
    (alone,) = on_hosts(tokenizer, name, 1, **more)
    for host in on_hosts(tokenizer, name, 4, **more):
        assert "every host reads all of it" in host.report
        for step in (0, 9):
            same(host.take(step), alone.take(step))
    assert rows_in(alone, [0])


def test_lanes_that_cannot_be_are_refused(tokenizer, four, tmp_path, monkeypatch):
    state = saved(monkeypatch, on_hosts(tokenizer, four, 4), 0)
    (other,) = on_hosts(tokenizer, four, 1, batch=6)
    with pytest.raises(InputError, match=r"training\.batch_size 6 does not divide by 4"):
        other.restore(state, 0)
    write(tmp_path / "0.jsonl", documents(40))
    write(tmp_path / "1.jsonl", [{"text": ""}])
    with pytest.raises(InputError, match=r"\(lane 2 of 2\): a whole pass found nothing to train on"):
        on_hosts(tokenizer, tmp_path, 2)


@pytest.mark.parametrize(
    ("axes", "hosts", "lanes"),
    [
        ((8, 1, 1), 4, 4), ((2, 4, 1), 2, 2), ((1, 8, 1), 8, 8), ((2, 2, 2), 2, 2), ((2, 1, 4), 4, 2),
        ((1, 1, 8), 4, 1), ((4, 1, 2), 1, 1),
    ],
)  # fmt: skip
def test_hosts_have_a_lane_each_where_their_rows_lie_side_by_side(axes, hosts, lanes):
    spread = rows_sharding(sharding.make_mesh(*axes))
    devices = jax.devices()
    each = len(devices) // hosts
    in_turn = {device: i // each for i, device in enumerate(devices)}
    assert shuffle.lanes_of(spread, 16, in_turn) == lanes
    if axes == (8, 1, 1):
        assert shuffle.lanes_of(spread, 16, {device: i % hosts for i, device in enumerate(devices)}) == 1


def test_a_host_shows_the_rows_that_it_has(tokenizer, four):
    host, (alone,) = on_hosts(tokenizer, four, 2)[1], on_hosts(tokenizer, four, 1, 2)
    said = shown(host, tokenizer, 5, host_rows=np.arange(4, 8)).split("\n\n── ")
    every = shown(alone, tokenizer, 13).split("\n\n── ")
    assert [block.splitlines()[1:] for block in said] == [every[i].splitlines()[1:] for i in (4, 5, 6, 7, 12)]
