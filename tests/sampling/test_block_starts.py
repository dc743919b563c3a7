"""Rows that begin their blocks at different moments: the block before of a few is computed by itself."""

import jax
import numpy as np
import pytest
from engine_cases import V, assert_same_text, config_of, model_of, some

import qwen3llada_jax as q
from qwen3llada_jax.sampling import loop
from qwen3llada_jax.sampling.passes.block_starts import most_that_begin_apart

ROWS = 9  # two of them at most
EXACT = ["blocks", "aligned", "start", "start, shifted", "start, guided", "causal", "causal, shifted"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(EXACT, "start, guided"))
def test_texts_are_those_of_rows_alone_however_many_begin_a_block_at_once(kind, monkeypatch):
    rng, traced = np.random.default_rng(5), []
    apart = loop.with_finished_blocks
    monkeypatch.setattr(loop, "with_finished_blocks", lambda *given: (traced.append(given[-1]), apart(*given))[1])
    requests = [
        (rng.integers(0, V - 4, int(rng.integers(0, 9))).tolist(), config_of(kind, gen_length=int(rng.choice([8, 12]))))
        for _ in range(2 * ROWS)
    ]
    engine = q.Engine(model_of(kind), config_of(kind), slots=ROWS, length=28)  # no other test's shapes
    waiting, at, found, together = list(enumerate(requests)), {}, {}, [1, 5, 1, 1, 2, 0, 1]
    while waiting or at:
        for slot in engine.free[: together[len(found) % len(together)] or not at]:
            if waiting:
                at[slot], (prompt, config) = waiting.pop(0)
                engine.admit(slot, prompt, config, key=at[slot])
        engine.advance(1)
        found |= {at.pop(done.slot): done.result for done in engine.harvest()}
    assert traced == [2]
    for number, (prompt, config) in enumerate(requests):
        expected, result = q.generate(model_of(kind), [prompt], config, key=number), found[number]
        assert_same_text(result, expected)
        places = expected.places[expected.places < expected.tokens.shape[1]]
        np.testing.assert_allclose(result.confidence[0, places], expected.confidence[0, places], atol=1e-5)


def structure_of(kind):
    model = model_of(kind).config
    return config_of(kind).for_model(model).structure(model)


@pytest.mark.parametrize(
    ("kind", "rows", "most"), [("start", 16, 4), ("start", 7, 0), ("full", 16, 0), ("bias", 16, 0)]
)
def test_they_are_computed_apart_where_it_is_exact_and_pays(kind, rows, most):
    assert most_that_begin_apart(model_of(kind), structure_of(kind), rows) == most


def test_a_mesh_computes_the_same_for_all_rows():
    with jax.set_mesh(q.make_mesh(8, 1, 1)):
        assert most_that_begin_apart(model_of("start"), structure_of("start"), 16) == 0
