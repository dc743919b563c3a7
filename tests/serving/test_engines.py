"""Engines side by side: as many as memory holds, and those that nobody writes with give way."""

import jax
import pytest
from conftest import TINY
from flax import nnx

import qwen3llada_jax as q
from qwen3llada_jax.sampling.limits import least_memory
from qwen3llada_jax.writing.requests import Request
from sample.serving import engines
from sample.serving.engines import Desk, Pool
from sample.serving.jobs import Job


def job(length: int) -> Job:
    settings = q.SamplerConfig(gen_length=8, block_length=8, mask_token_id=0, visibility="block_causal")
    return Job(Request(0, 0, "prompt", None, (5, 6)), settings, 0, length, 8, (), lambda: None)


def take(pool: Pool, asked: Job, waiting: int = 1) -> Desk | None:
    """The engine that has given the job a slot."""
    if (seat := pool.seat(asked, waiting)) is None:
        return None
    desk, slot = seat
    desk.engine.admit(slot, asked.request.ids, asked.settings)
    desk.jobs[slot] = asked
    return desk


def leave(desk: Desk) -> None:
    for slot in desk.jobs:
        desk.engine.cancel(slot)
    desk.jobs.clear()


@pytest.fixture
def pool(monkeypatch):
    """Of a machine that has memory for the weights, four rows of 1,024 tokens and one of 128."""
    model = q.load(TINY, dtype="float32")
    config = job(128).settings.for_model(model.config)
    weights = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    room = sum(least_memory(model.config, rows, length, config, 4) for rows, length in ((4, 1024), (1, 128)))
    monkeypatch.setattr(engines, "memory", lambda: weights + room)
    return Pool(model, slots=4, ways=1, programs=8)


def test_one_that_nobody_uses_gives_way_to_what_memory_does_not_hold_beside_it(pool):
    rows = [take(pool, job(1024)) for _ in range(4)]
    assert len({id(desk) for desk in rows}) == 1
    assert take(pool, job(128)).engine.length == 128  # for just that there is room
    assert take(pool, job(2048)) is None
    leave(rows[0])
    assert take(pool, job(2048)).engine.length == 2048
    assert [desk.engine.length for desk in pool] == [128, 2048]


def test_one_grows_as_far_as_there_is_memory_beside_what_others_write(pool):
    one = take(pool, job(1024))
    small = [take(pool, job(128)) for _ in range(2)]  # the second: four rows of 128
    assert small[0] is small[1]
    assert take(pool, job(1024)) is None
    leave(small[0])
    assert take(pool, job(1024)) is one
    assert [desk.engine.length for desk in pool] == [1024]
