"""An engine whose number of slots changes while requests are written."""

import jax
import numpy as np
import pytest
from engine_cases import V, assert_same_text, config_of, model_of, some
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q

ENGINES, ALONE = {}, {}


def requests_of(kind):
    rng = np.random.default_rng(7)
    ends = {"eos_token_ids": (3, 5, 9)} if kind != "editing" else {}
    found = []
    for number in range(10):
        config = config_of(kind, gen_length=int(rng.choice([4, 8, 12])), **ends)
        found.append((rng.integers(0, V - 4, int(rng.integers(0, 9))).tolist(), config, number))
    return found


def alone(kind, number):
    if (kind, number) not in ALONE:
        prompt, config, key = requests_of(kind)[number]
        ALONE[kind, number] = q.generate(model_of(kind), [prompt], config, key=key)
    return ALONE[kind, number]


TURNS = st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(0, 2), st.sampled_from([1, 2, 5]), st.booleans())


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    some(
        ["full", "revising", "editing", "in parts", "bias", "start, guided", "autoregressive", "speculating"],
        "start, guided",
    ),
)
@settings(max_examples=6, deadline=None)
@given(st.lists(TURNS, min_size=3, max_size=12), st.permutations(range(10)))
def test_requests_are_written_as_alone_whatever_comes_between(kind, turns, order):
    """(slots, how many are admitted, passes, is one cancelled): as often as there is something to write."""
    requests, waiting, at, found, left = requests_of(kind), list(order), {}, {}, set()
    engine = ENGINES.setdefault(kind, q.Engine(model_of(kind), config_of(kind, eos_token_ids=(3,)), slots=2, length=24))
    for slot in set(range(len(engine._rows.is_new))) - set(engine.free):
        engine.cancel(slot)
    turn = 0
    while waiting or at:
        slots, admitted, passes, cancels = turns[turn % len(turns)]
        turn += 1
        if slots < len(at):
            with pytest.raises(q.InputError, match="slots do not hold them"):
                engine.resize(slots)
        else:
            moved = engine.resize(slots)
            assert set(moved) == set(at)
            assert all(new == old or old >= slots for old, new in moved.items())
            at = {moved[slot]: number for slot, number in at.items()}
            assert engine.free == [slot for slot in range(slots) if slot not in at]
        for slot in engine.free[: max(admitted, not at)]:
            if waiting:
                at[slot] = waiting.pop(0)
                prompt, config, key = requests[at[slot]]
                engine.admit(slot, prompt, config, key=key)
        if cancels and at and turn % 3 == 0:
            slot = min(at)
            engine.cancel(slot)
            left.add(at.pop(slot))
        engine.advance(passes)
        looks = engine.look()
        for done in engine.harvest():
            assert looks[done.slot].ids == done.result.answers()[0]
            found[at.pop(done.slot)] = done.result
    assert set(found) == set(range(10)) - left
    for number, result in found.items():
        assert_same_text(result, alone(kind, number))


@pytest.mark.slow
def test_a_number_of_slots_compiles_once():
    engine, counts = q.Engine(model_of("start"), config_of("start"), slots=1, length=48), []  # no other test's length
    for slots in (1, 4, 2, 4, 1, 2, 1, 4):
        before = q.compilations()
        engine.resize(slots)
        engine.admit(engine.free[-1], [5] * 9)
        engine.advance()
        engine.harvest()
        counts.append(q.compilations() - before)
    assert counts == [1, 1, 1, 0, 0, 0, 0, 0]


def test_what_does_not_fit_is_refused():
    engine = q.Engine(model_of("full"), config_of("full"), slots=3, length=16)
    for slot in (0, 2):
        engine.admit(slot, [1])
    with pytest.raises(q.InputError, match="slots: 2 requests are being written; 1 slots do not hold them"):
        engine.resize(1)
    with pytest.raises(q.InputError, match="slots: an engine has at least one, not 0"):
        engine.resize(0)
    assert engine.resize(2) == {0: 0, 2: 1}
    assert engine.free == []


@pytest.mark.soak
@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 1}, {"data": 1, "tensor": 2}])
def test_on_a_mesh(sizes):
    """Rows that lie on two devices, and heads that do."""
    model, config = model_of("start"), config_of("start")
    alone = q.generate(model, [[1, 2, 3, 4, 5, 6]], config, key=5).answers()
    with jax.set_mesh(q.make_mesh(fsdp=1, **sizes, devices=jax.devices()[:2])):
        graph, params = nnx.split(model)
        everywhere = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec())
        spread = nnx.merge(graph, jax.device_put(params, everywhere))
        engine = q.Engine(spread, config, slots=2, length=20)
        if sizes["data"] == 2:
            with pytest.raises(q.InputError, match="3 rows do not divide"):
                engine.resize(3)
        engine.admit(1, [1, 2, 3, 4, 5, 6], key=5)
        engine.advance(2)
        assert engine.resize(4) == {1: 1}
        engine.advance()
        kept, answers = engine.keep(1), engine.harvest()[0].result.answers()
        assert answers == alone
        turn = [1, 2, 3, 4, 5, 6, *answers[0], 7, 8]
        assert engine.admit(2, turn[:-8], prefix=kept) == 8
        engine.advance()
        again = engine.harvest()[0].result.answers()
    assert again == q.generate(model, [turn[:-8]], config).answers()
