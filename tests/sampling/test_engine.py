"""The engine: requests that come and go give what each gives alone, by one program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q
from qwen3llada_jax.sampling import loop
from qwen3llada_jax.sampling.layout import bucket

V, MASK = 62, 61
COMMON = q.SamplerConfig(gen_length=8, block_length=4, mask_token_id=MASK, eos_token_ids=())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    wide = torch_model(9, vocab_size=V, hidden_size=32, num_hidden_layers=2, initializer_range=0.35)
    found = q.load(save_torch(wide, tmp_path_factory.mktemp("twin")))
    found.config = q.ModelConfig(**{**vars(found.config), "mask_token_id": MASK, "live_vocab_size": V - 3})
    return found


KINDS = {
    "no cache": dataclasses.replace(
        COMMON, threshold=0.5, temperature=0.7, top_p=0.9, min_length=1, revise=1, eos_token_ids=(3,)
    ),
    "causal": dataclasses.replace(
        COMMON, visibility="block_causal", repetition_penalty=1.1, eos="last", eos_token_ids=(3,)
    ),
    "bias": dataclasses.replace(COMMON, visibility="block_bias", cfg_scale=1.0, entropy_bound=0.5),
}


def requests_of(kind, count=40, seed=0):
    """Of mixed length, settings and keys."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        own = {"gen_length": int(rng.choice([4, 8, 12])), "eos_token_ids": [(), (3, 5, 9)][number % 2]}
        own["forbid"] = [(), (7,), tuple(range(20, 31))][number % 3]
        if kind == "no cache":
            own |= {"threshold": [0.2, 0.5, 0.9][number % 3], "temperature": [0.0, 0.5, 1.2][number % 3]}
            own |= {"top_p": [None, 0.7, 0.95][number % 3], "min_length": number % 4 if own["eos_token_ids"] else 0}
            own |= {"revise": number % 3, "steps": [None, own["gen_length"]][number % 2]}
            own["eos"] = ["free", "free", "free", "never"][number % 4]
        if kind == "causal":
            own |= {"steps": own["gen_length"] // [1, 2, 4][number % 3], "repetition_penalty": [1.0, 1.3][number % 2]}
            own["eos_token_ids"] = own["eos_token_ids"] or (5,)
        if kind == "bias":
            own |= {"cfg_scale": [0.5, 2.0][number % 2], "entropy_bound": [0.1, 1.5][number % 2]}
        prompt = rng.integers(0, V - 4, int(rng.integers(0, 9))).tolist()
        found.append((prompt, dataclasses.replace(KINDS[kind], **own), number))
    return found


ALONE = {}


def alone(model, kind, number):
    """What a request gives by itself; each is asked for once."""
    if (kind, number) not in ALONE:
        prompt, config, key = requests_of(kind)[number]
        ALONE[kind, number] = q.generate(model, [prompt], config, key=key)
    return ALONE[kind, number]


def assert_same(found, expected):
    length = min(found.tokens.shape[1], expected.tokens.shape[1])
    assert found.answers() == expected.answers()
    np.testing.assert_array_equal(found.tokens[:, :length], expected.tokens[:, :length])
    np.testing.assert_array_equal(found.written_at[:, :length], expected.written_at[:, :length])
    np.testing.assert_allclose(found.confidence[:, :length], expected.confidence[:, :length], atol=1e-5)
    assert found.nfe.tolist() == expected.nfe.tolist()
    assert found.passes == expected.passes
    assert found.prompt_length.tolist() == expected.prompt_length.tolist()


@functools.cache
def engine_of(kind, slots):
    return q.Engine(ENGINE_MODEL[0], KINDS[kind], slots=slots, length=20)


ENGINE_MODEL = []


def serve(engine, requests, order, passes, cancelled=()):
    """Admit in this order, as slots become free; some are cancelled after their first passes."""
    waiting, at, found = list(order), {}, {}
    turn = 0
    while waiting or at:
        for slot in engine.free[: passes[turn % len(passes)]]:
            if waiting:
                number = waiting.pop(0)
                prompt, config, key = requests[number]
                engine.admit(slot, prompt, config, key=key)
                at[slot] = number
        done = engine.advance(passes[turn % len(passes)] if turn % 2 else None)
        for slot in [s for s, number in at.items() if number in cancelled and s not in done]:
            engine.cancel(slot)
            del at[slot]
            assert slot in engine.free
        for finished in engine.harvest():
            assert finished.error is None
            found[at.pop(finished.slot)] = finished.result
        turn += 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.soak) for k in KINDS])
def test_forty_requests_give_what_each_gives_alone(model, kind):
    requests = requests_of(kind)
    engine = q.Engine(model, KINDS[kind], slots=4, length=20)
    before = q.compilations()
    order = np.random.default_rng(1).permutation(40).tolist()
    found = serve(engine, requests, order, [2, 3, 1], cancelled=order[5:40:7])
    assert q.compilations() - before <= 2  # one, and one more where the stop list outgrew its place
    assert len(found) >= 35
    for number, result in found.items():
        assert_same(result, alone(model, kind, number))


@pytest.mark.soak
@pytest.mark.slow
@given(
    st.permutations(range(12)),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sets(st.integers(0, 11), max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_the_order_of_arrival_changes_nothing(model, order, passes, cancelled):
    ENGINE_MODEL[:] = [model]
    found = serve(engine_of("no cache", 3), requests_of("no cache"), order, passes, cancelled)
    assert set(found) >= set(order) - cancelled
    for number, result in found.items():
        assert_same(result, alone(model, "no cache", number))


@pytest.mark.soak
@pytest.mark.slow
def test_requests_of_all_sizes_share_a_program_for_each_length(model):
    before, lengths = q.compilations(), (16, 32)
    for length in lengths:
        engine = q.Engine(model, dataclasses.replace(COMMON, threshold=0.9), slots=4, length=length)
        assert engine.length == bucket(length)
        for batch in (1, 2, 3, 4):
            for gen_length in (4, 8, 12):
                for threshold in (0.3, 0.6, 0.9):
                    for ends in ((), (3, 4, 5)):
                        config = dataclasses.replace(
                            COMMON, gen_length=gen_length, threshold=threshold, eos_token_ids=ends
                        )
                        for slot in range(batch):
                            engine.admit(slot, [1, 2][:slot], config)
                        while len(engine.free) < 4:
                            engine.advance()
                            engine.harvest()
    assert q.compilations() - before == len(lengths)


@pytest.mark.slow
def test_holes_are_filled_as_alone(model):
    config = dataclasses.replace(COMMON, threshold=0.5)
    engine = q.Engine(model, config, slots=2, length=16)
    texts = [[5, None, None, 6, None], [None] * 6 + [3, None]]
    for slot, text in enumerate(texts):
        engine.admit(slot, text, config, key=slot)
    found = []
    while len(found) < 2:
        engine.advance(1)
        found += engine.harvest()
    for finished in found:
        expected = q.infill(model, [texts[finished.slot]], config, key=finished.slot)
        assert finished.result.tokens.tolist() == expected.tokens.tolist()
        assert finished.result.answers() == expected.answers()


@pytest.mark.slow
@pytest.mark.parametrize("visibility", ["full", "block_causal"])
def test_a_row_without_numbers_is_told_and_spoils_no_other(model, visibility):
    """A token whose embedding is NaN, in one prompt; whoever has its slot next is written as alone."""
    broken = nnx.clone(model)
    table = broken.embed_tokens[...]
    broken.embed_tokens[...] = table.at[50].set(jnp.nan)
    config = dataclasses.replace(COMMON, visibility=visibility, forbid=(50,))
    engine = q.Engine(broken, config, slots=2, length=16)
    engine.admit(0, [50, 1])
    engine.admit(1, [2, 3], key=1)
    errors, results = {}, {}
    for _ in range(20):
        engine.advance()
        for finished in engine.harvest():
            errors[finished.slot], results[finished.slot] = finished.error, finished.result
    assert isinstance(errors[0], q.NotFiniteError)
    assert errors[1] is None
    engine.admit(0, [4, 5], key=2)
    while not (done := engine.harvest()):
        engine.advance()
    assert done[0].error is None
    assert_same(done[0].result, q.generate(model, [[4, 5]], config, key=2))
    assert_same(results[1], q.generate(model, [[2, 3]], config, key=1))


REFUSED = [
    ({"block_length": 8}, "block_length: this engine is made for 4, the request has 8"),
    ({"visibility": "block_causal"}, "visibility: this engine is made for full, the request has block_causal"),
    ({"threshold": None}, r"commit \(how many tokens a pass writes\): this engine is made for Threshold"),
    ({"temperature": 0.5}, r"draw \(which token is proposed\): this engine is made for Greedy"),
    ({"remasking": "margin"}, r"order \(who is written first\): this engine is made for LowConfidence"),
    ({"revise": 2}, r"remask \(what is masked again\)"),
    ({"cfg_scale": 1.0}, "cfg_scale: this engine is made for off, the request has on"),
    ({"min_length": 2, "eos_token_ids": (3,)}, "min_length: this engine is made for off"),
    ({"eos": "last", "eos_token_ids": (3,)}, "eos: this engine is made for free or never, the request has last"),
    ({"gen_length": 40}, "the request has 41 tokens with what is written; this engine's rows 16"),
]


def test_another_program_is_refused(model):
    base = dataclasses.replace(COMMON, threshold=0.5)
    engine = q.Engine(model, base, slots=2, length=16)
    assert engine.takes(base)
    assert engine.takes(q.SamplerConfig(threshold=0.9, block_length=4))
    for options, said in REFUSED:
        config = dataclasses.replace(base, **options)
        with pytest.raises(q.InputError, match=said):
            engine.admit(0, [1], config)
        assert engine.takes(config) == ("gen_length" in options)  # how long a request is, is no matter of settings
    engine.admit(0, [1])
    with pytest.raises(q.InputError, match=r"slot 0 is not free; free are \[1\]"):
        engine.admit(0, [1])
    with pytest.raises(q.InputError, match=r"slot 1 has no request; taken are \[0\]"):
        engine.cancel(1)
    with pytest.raises(q.InputError, match="parallel_blocks: an engine writes one block"):
        q.Engine(model, dataclasses.replace(base, visibility="block_bias", parallel_blocks=True))
    engine.cancel(0)
    assert engine.free == [0, 1]
    assert engine.advance() == []


def test_the_host_looks_once_for_each_advance(model, monkeypatch):
    """A row of 8 tokens in 8 passes is one call of the program."""
    calls, real = [], loop.serve[False]
    monkeypatch.setitem(loop.serve, False, lambda *given: calls.append(0) or real(*given))
    engine = q.Engine(model, dataclasses.replace(COMMON, steps=8), slots=2, length=16)
    engine.admit(0, [1])
    assert engine.advance() == [0]
    assert engine.harvest()[0].result.nfe.tolist() == [8]
    assert len(calls) == 1


@pytest.mark.soak
def test_on_a_mesh(model, tmp_path):
    with jax.set_mesh(q.make_mesh(data=4, fsdp=1, tensor=2)):
        graph, params = nnx.split(model)
        everywhere = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec())
        spread = nnx.merge(graph, jax.device_put(params, everywhere))
        spread.config = model.config
        engine = q.Engine(spread, KINDS["causal"], slots=4, length=20)
        found = serve(engine, requests_of("causal"), range(8), [2, 3])
    for number, result in found.items():
        assert result.answers() == alone(model, "causal", number).answers()


@pytest.mark.slow
def test_holes_of_every_block_have_a_place(model):
    """A block length that does not divide the row's: the last block's holes were cut off, and the row never done."""
    engine = q.Engine(model, dataclasses.replace(COMMON, gen_length=12, block_length=12), slots=1, length=16)
    text = [5] + [None] * 14
    engine.admit(0, text)
    assert engine.advance(20) == [0]
    expected = q.infill(model, [text], dataclasses.replace(COMMON, block_length=12))
    assert engine.harvest()[0].result.answers() == expected.answers()


@pytest.mark.slow
def test_ends_count_where_nothing_stops_at_them(model):
    config = dataclasses.replace(COMMON, stop_at_eos=False, eos_token_ids=tuple(range(40)), min_length=4)
    engine = q.Engine(model, config, slots=1, length=16)
    engine.admit(0, iter([5, 6, 7]))
    engine.advance()
    assert_same(engine.harvest()[0].result, q.generate(model, [[5, 6, 7]], config))


def test_what_an_engine_does_not_take_is_refused(model):
    @q.rule
    class Third:
        def stop(self, is_end, is_masked):
            return 2

    with pytest.raises(q.InputError, match="stop: a rule of one's own looks at a whole answer"):
        q.Engine(model, dataclasses.replace(COMMON, stop=Third()))
    engine = q.Engine(model, COMMON, slots=2, length=16)
    for slot in (True, 2, -1):
        with pytest.raises(q.InputError, match="slot"):
            engine.admit(slot, [1])
    engine.admit(0, [1])
    for passes in (0, -5, 2**40):
        with pytest.raises(q.InputError, match=r"passes must be 1"):
            engine.advance(passes)


@pytest.mark.slow
def test_a_call_that_fails_frees_all_slots(model, monkeypatch):
    config = dataclasses.replace(COMMON, visibility="block_causal")
    engine = q.Engine(model, config, slots=2, length=16)
    engine.admit(0, [5, 6, 7])

    def interrupted(cache, *_):
        cache.keys.delete()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "serve", {False: interrupted, True: interrupted})
        with pytest.raises(KeyboardInterrupt):
            engine.advance()
    assert engine.free == [0, 1]
    engine.admit(1, [5, 6, 7])
    engine.advance()
    assert_same(engine.harvest()[0].result, q.generate(model, [[5, 6, 7]], config))


def test_settings_are_taken_as_admit_takes_them(model):
    """Of holes and of prompts, complete or not, by engines that differ; what is impossible is said at once."""
    base = dataclasses.replace(COMMON, threshold=0.5, mask_token_id=None)
    kinds = [base, dataclasses.replace(base, visibility="block_causal"), dataclasses.replace(base, block_length=2)]
    kinds += [dataclasses.replace(base, block_length=None), dataclasses.replace(base, revise=1)]
    kinds += [dataclasses.replace(base, stop_at_eos=False, eos="last", eos_token_ids=(3,))]
    kinds += [dataclasses.replace(base, eos="last", eos_token_ids=(3,))]
    taken = 0
    for own in kinds:
        engine = q.Engine(model, own, slots=1, length=32)
        for config in [*kinds, dataclasses.replace(base, cache="none", gen_length=1, block_length=1, steps=7)]:
            for request in ([1, 2], [1, None, 2, None], [None] * 8):
                holes = request.count(None)
                try:
                    says = engine.takes(config, holes=holes)
                except q.InputError as error:
                    says = str(error)
                try:
                    engine.admit(0, request, config)
                    does = True
                except q.InputError as error:
                    does = False if "this engine" in str(error) else str(error)
                if does is True:
                    engine.cancel(0)
                taken += does is True
                assert says == does or (config.steps and holes)  # what steps divide depends on where the holes stand
    assert taken >= 20
