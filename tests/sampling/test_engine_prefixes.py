"""A chat's second turn, with the first one's keys and values: the same tokens, and nothing of it is computed again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_cases import KINDS, config_of, model_of, some
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3llada_jax as q
from qwen3llada_jax.model import kv_cache
from qwen3llada_jax.sampling import layout
from qwen3llada_jax.sampling.passes import forward
from qwen3llada_jax.sampling.rows.keeping import Prefix

KEEPING = {"start": 4, "start, shifted": 4, "causal": 1, "causal, shifted": 1, "autoregressive": 1, "speculating": 1}
ENGINES = {}


def engine_of(kind, slots=2, length=64):
    if (kind, slots, length) not in ENGINES:
        ENGINES[kind, slots, length] = q.Engine(model_of(kind), config_of(kind), slots=slots, length=length)
    engine = ENGINES[kind, slots, length]
    for slot in set(range(slots)) - set(engine.free):
        engine.cancel(slot)
    return engine


def finished(engine, slot):
    while True:
        engine.advance(1)
        kept = engine.keep(slot) if engine.keeps else None
        if done := engine.harvest():
            return done[0].result, kept


def encoded(kind, ids, length):
    """Keys and values of a text that is read once, as context."""
    model, config = model_of(kind), config_of(kind).for_model(model_of(kind).config)
    canvas, inputs = layout.continuation(model.config, [ids], config, 0, room=length)
    mask = forward.coordinates_of(
        model.config, config.structure(model.config), inputs.block, canvas.length, canvas.tokens.shape[1]
    )
    L = canvas.tokens.shape[1]
    cache = kv_cache.blank(model, 1, L)
    where = jnp.arange(L)[None]
    return jax.jit(kv_cache.hidden_at)(model, canvas.tokens, where, where < len(ids), mask, cache)[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(KEEPING, "start", "speculating"))
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 20), st.integers(1, 12), st.integers(1, 12), st.sampled_from([(), (3, 5, 9, 14, 20, 31)]))
def test_what_is_kept_are_the_keys_of_the_text_read_once(kind, prompt, gen_length, passes, ends):
    """At any moment, and when it is done."""
    engine = engine_of(kind)
    ids = np.random.default_rng(prompt * 31 + gen_length).integers(0, 50, prompt).tolist()
    whole = 1 if "start" in kind or kind == "speculating" else engine.config.block_length
    config = config_of(kind, gen_length=-(-gen_length // whole) * whole, eos_token_ids=ends)
    engine.admit(1, ids, config, key=gen_length)
    engine.advance(passes)
    for number in range(2):
        if number:
            engine.advance()
        kept = engine.keep(1)
        many = len(kept.ids)
        assert many % KEEPING[kind] == 0
        assert kept.ids[:prompt] == ids[:many]
        fresh = encoded(kind, kept.ids, 64)
        np.testing.assert_allclose(kept.keys[:, :many], fresh.keys[:, 0, :many], atol=2e-5)
        np.testing.assert_allclose(kept.values[:, :many], fresh.values[:, 0, :many], atol=2e-5)
    (result,) = engine.harvest()
    text = ids + result.result.answers()[0]
    assert many <= len(text) + 4
    assert kept.ids[: len(text)] == text[:many]
    if not ends:
        assert many >= len(text) - 2 * engine.config.block_length


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(KEEPING, "start", "speculating"))
def test_a_second_turn_is_written_as_without_the_first(kind):
    """In an engine of another size; a prefix that differs later is of use as far as it is the same."""
    first, second = engine_of(kind), engine_of(kind, slots=3, length=96)
    prompt = np.random.default_rng(3).integers(0, 50, 22).tolist()
    first.admit(0, prompt)
    result, kept = finished(first, 0)
    turn = prompt + result.answers()[0] + [40, 41, 42, 43, 44]
    block = KEEPING[kind]
    for number, ids in enumerate([turn, [*turn[:10], 1, 2, 3], [9] * 7, [*turn[:10], turn[10] ^ 1, *turn[11:]]]):
        prefix = jax.device_get(kept) if number % 2 else kept
        known = second.admit(2, ids, key=5, prefix=prefix)
        same = next(n for n in range(99) if n >= min(len(ids), len(kept.ids)) or ids[n] != kept.ids[n])
        unchanged = len(ids) if KINDS[kind][0].get("block_origin") != "start" else len(ids) // 4 * 4
        if kind == "autoregressive":
            unchanged = len(ids)
        assert known == min(same, unchanged) // block * block
        if number == 0:
            assert second.resize(5) == {2: 2}  # it waits for its first pass
        found, _ = finished(second, 2)
        alone = q.generate(model_of(kind), [ids], config_of(kind), key=5)
        assert found.answers() == alone.answers()
        assert found.nfe.tolist() == alone.nfe.tolist()
        assert second.resize(3) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["start", "causal, shifted", "speculating"])
def test_nothing_of_it_is_computed_again(kind):
    """Whoever reads token 50 gets a NaN, and the first turn, read by a sound model, has one."""
    model, config = model_of(kind), config_of(kind, forbid=(50,))
    broken = nnx.clone(model)
    broken.embed_tokens[...] = broken.embed_tokens[...].at[50].set(jnp.nan)
    engine = q.Engine(model, config, slots=1, length=64)
    engine.admit(0, [1, 2, 50, 4, 5, 6, 7, 8, 9])
    result, kept = finished(engine, 0)
    turn = [1, 2, 50, 4, 5, 6, 7, 8, 9, *result.answers()[0], 30, 31]
    other = q.Engine(broken, config, slots=2, length=64)
    assert other.admit(0, turn, prefix=kept) >= 8
    other.admit(1, turn)
    errors, answers = {}, {}
    while len(errors) < 2:
        other.advance()
        for done in other.harvest():
            errors[done.slot], answers[done.slot] = done.error, done.result.answers()
    assert errors[0] is None
    assert isinstance(errors[1], q.NotFiniteError)
    assert answers[0] == q.generate(model, [turn], config).answers()
    other.admit(1, turn)
    other.advance()
    with pytest.raises(q.InputError, match="slot 1: its logits were not finite; nothing of it is kept"):
        other.keep(1)


def test_where_nothing_is_kept_and_what_is_no_prefix_of_this_engine():
    for kind in set(KINDS) - set(KEEPING):
        engine = q.Engine(model_of(kind), config_of(kind), slots=1, length=16)
        assert not engine.keeps
        engine.admit(0, [1])
        with pytest.raises(q.InputError, match="this engine keeps nothing"):
            engine.keep(0)
    engine = q.Engine(model_of("start"), config_of("start"), slots=1, length=16)
    assert engine.keeps
    with pytest.raises(q.InputError, match="slot 0 has no request"):
        engine.keep(0)
    engine.admit(0, [1])
    with pytest.raises(q.InputError, match="slot 0: its request has not begun; advance first"):
        engine.keep(0)
    engine.cancel(0)
    x = np.zeros((2, 16, 2, 8), np.float32)
    assert engine.admit(0, [1] * 9, config_of("start", gen_length=3), prefix=Prefix([1] * 6, x, x, 4)) == 4
    engine.cancel(0)
    for prefix, said in [
        (([1] * 6, x, x, 1), "it was read in blocks of 1, and this engine reads blocks of 4"),
        (
            ([1] * 6, x[:1], x, 4),
            r"keys of shape \[1, 16, 2, 8\] \(float32\) are not this model's, which are \[2, n, 2, 8\]",
        ),
        (([1] * 17, x, x, 4), "keys of shape"),
        (([1] * 6, x, x.astype(np.float16), 4), r"values of shape \[2, 16, 2, 8\] \(float16\)"),
    ]:
        with pytest.raises(q.InputError, match=said):
            engine.admit(0, [1] * 9, config_of("start", gen_length=3), prefix=Prefix(*prefix))
    assert engine.free == [0]
    other = q.Engine(model_of("full"), config_of("full"), slots=1, length=16)
    with pytest.raises(q.InputError, match=r"prefix: this engine keeps none \(Engine.keeps\)"):
        other.admit(0, [1], prefix=Prefix([1] * 6, x, x, 4))
