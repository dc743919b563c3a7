"""What a new row's prompt costs, and that it is in the cache as if all of it had been computed at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import KINDS, config_of, model_of
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from qwen3llada_jax.model import attention, kv_cache
from qwen3llada_jax.sampling import layout
from qwen3llada_jax.sampling.passes import forward

EXACT = [kind for kind, (facts, _) in KINDS.items() if facts]
L = 96


def coordinates(kind, prompts):
    """Rows of these prompts: their tokens, and who sees whom."""
    model, config = model_of(kind), config_of(kind)
    canvas, inputs = layout.continuation(model.config, prompts, config.for_model(model.config), 0, room=L)
    canvas, inputs = canvas._replace(tokens=canvas.tokens[:, :L]), inputs._replace(block=inputs.block[:, :L])
    structure = config.for_model(model.config).structure(model.config)
    one = dataclasses.replace(structure, cfg_branches=1)
    still = forward.still_of(canvas, structure)
    return canvas.tokens, forward.coordinates_of(model.config, one, inputs.block, canvas.length, L), still


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 80), min_size=3, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3), st.data())
def test_a_prompt_in_pieces_is_the_prompt_at_once(kind, lengths, is_new, data):
    model, rng = model_of(kind), np.random.default_rng(sum(lengths))
    tokens, mask, still = coordinates(kind, [rng.integers(0, 50, n).tolist() for n in lengths])
    end = jnp.where(jnp.asarray(is_new), still, 0)
    noise = kv_cache.Cache(*(jax.random.normal(jax.random.key(n), (2, 3, L, 2, 8)) for n in range(2)))
    where = jnp.broadcast_to(jnp.arange(L), (3, L))
    _, once = kv_cache.hidden_at(model, tokens, where, where < end[:, None], mask, noise)
    pieces = jax.jit(kv_cache.with_stretches)(model, tokens, jnp.zeros_like(end), end, mask, noise)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), pieces, once)
    begin = jnp.array([data.draw(st.integers(0, int(n) // 4)) * 4 for n in end])
    some = jax.jit(kv_cache.with_stretches)(model, tokens, begin, end, mask, pieces)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), some, once)


@pytest.fixture
def pieces(monkeypatch):
    """Positions whose attention is computed for the cache alone, as they are."""
    seen, real = [], attention.attention

    def counted(q, *given):
        jax.debug.callback(lambda: seen.append(q.shape[:2]))
        return real(q, *given)

    monkeypatch.setattr(kv_cache, "attention", type("Counted", (), {"attention": staticmethod(counted)}))
    return seen


@pytest.mark.parametrize("kind", ["blocks", "start", "start, guided", "causal"])
def test_a_new_row_costs_its_prompt_whatever_stands_beside_it(pieces, kind):
    model, config = model_of(kind), config_of(kind)
    config = config.for_model(model.config)
    engine = q.Engine(model, config, slots=4, length=256)
    for slot, many in enumerate([20, 70]):
        canvas, inputs = layout.continuation(model.config, [[5] * many], config, 0)
        engine._rows.put(slot, canvas, inputs, engine._own)
    structure = config.structure(model.config)
    program = jax.jit(functools.partial(forward.with_new_rows, structure=structure))
    found = program(
        model,
        engine._state.cache,
        engine._rows.canvas,
        engine._rows.inputs,
        is_new=engine._rows.is_new,
        known=engine._rows.known,
    )
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert set(pieces) == {(1, 32)}  # of one row, in one of the two layers: the last one's give no keys
    assert len(pieces) == (1 + 3) * structure.cfg_branches
