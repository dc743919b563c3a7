"""What is seen of a row while it is written: what is final, and what stands in the block that is being written."""

import numpy as np
import pytest
from engine_cases import KINDS, config_of, model_of, some

import qwen3llada_jax as q

CHANGES = ("revising", "editing", "narrowed")


def written(kind, requests, **options):
    """(every look at each request, its result), passes one by one."""
    engine = q.Engine(model_of(kind), config_of(kind, **options), slots=len(requests), length=32)
    for slot, request in enumerate(requests):
        engine.admit(slot, request, config_of(kind, **options), key=slot)
    looks, results = {slot: [look] for slot, look in engine.look().items()}, {}
    while len(results) < len(requests):
        engine.advance(1)
        for slot, look in engine.look().items():
            looks[slot].append(look)
        results |= {done.slot: done.result for done in engine.harvest()}
    return [(looks[slot], results[slot]) for slot in range(len(requests))]


def assert_true(kind, looks, result, block_length):
    (answer,) = result.answers()
    places = result.places[0][result.places[0] < result.tokens.shape[1]]
    at, confidence = result.written_at[0][places], result.confidence[0][places]
    for before, look in zip([None, *looks], looks, strict=False):
        many = len(look.ids)
        assert look.ids == answer[:many]
        assert before is None or many >= len(before.ids)
        assert len(look.written_at) == len(look.confidence) == many + len(look.draft)
        np.testing.assert_array_equal(look.written_at[:many], at[:many])
        np.testing.assert_array_equal(look.confidence[:many], confidence[:many])
        for number, token in enumerate(look.draft, many):
            if token is None:
                assert (look.written_at[number], look.confidence[number]) == (-1, 0)
            elif kind not in CHANGES:  # written, and nothing changes it, but a place before it is masked
                assert token == answer[number]
                assert look.written_at[number] == at[number]
        assert len(look.draft) <= block_length
        if kind not in CHANGES:
            assert look.draft[:1] in ([], [None])
    last = looks[-1]
    assert (last.ids, last.draft) == (answer, [])
    assert [look.nfe for look in looks[1:]] == list(range(1, result.passes + 1)) or KINDS[kind][1].get("cfg_scale")
    assert looks[0].ids == []
    assert looks[0].draft == [None] * len(looks[0].draft) != []


@pytest.mark.slow
@pytest.mark.parametrize("ends", [(), (3, 5, 9, 14, 20, 31)])
@pytest.mark.parametrize("kind", some(KINDS, *CHANGES, "full", "start", "causal", "speculating"))
def test_a_look_tells_what_is_final_and_what_stands_behind_it(kind, ends):
    requests = [[7, 8, 9, 10, 11], [], [3] * 8, [20, 21]]
    options = {"eos_token_ids": ends, "gen_length": 12}
    found = written(kind, requests, **options)
    for looks, result in found:
        assert_true(kind, looks, result, config_of(kind, **options).block_length)
    if kind not in CHANGES and KINDS[kind][1].get("block_length") != 1 and not ends:
        assert any(len(look.ids) % 4 for looks, _ in found for look in looks)  # within a block too
    if kind in CHANGES:
        looks = [look for looks, _ in found for look in looks]
        assert any(look.draft and look.draft[0] is not None for look in looks)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", *CHANGES, "in parts", "bias", "start"])
def test_of_a_text_with_holes_the_holes_are_seen(kind):
    texts = [[5, None, None, 6, None, 7, None, None], [None] * 6 + [3, None], [1] * 9 + [None]]
    for looks, result in written(kind, texts, cache="none"):
        assert_true(kind, looks, result, 4)


@pytest.mark.slow
def test_where_blocks_begin_at_position_0_the_prompts_tail_and_what_fills_up_is_not_seen():
    """A prompt of 5 and an answer of 2 are two blocks of 4: one token is left behind."""
    ((looks, result),) = written("start", [[7, 8, 9, 10, 11]], gen_length=2, steps=1)
    assert [len(look.draft) for look in looks[:1]] == [2]
    assert looks[-1].ids == result.answers()[0]
    assert len(looks[-1].ids) == 2


@pytest.mark.slow
def test_a_row_without_numbers_shows_how_far_it_came():
    model = model_of("full", seed=3)
    table = model.embed_tokens[...]
    model.embed_tokens[...] = table.at[50].set(np.nan)
    engine = q.Engine(model, config_of("full", forbid=(50,)), slots=1, length=16)
    engine.admit(0, [50, 1])
    engine.advance()
    (look,) = engine.look().values()
    assert (look.ids, look.draft) == ([], [None] * 4)
    assert engine.harvest()[0].error is not None
    assert engine.look() == {}
