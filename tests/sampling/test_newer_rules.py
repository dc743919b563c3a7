"""Rules that look at neighbors, at the passes before, and at what is written already, each against a port in numpy.

Batches of mixed progress: every row the tokens, the passes and the trajectory that it has alone in the port, from
`generate`, from an engine, and whatever the numbers are, from one program.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_rules as published
import pytest
from conftest import trained
from torch_families import Close
from torch_twins import wide_twin

import qwen3llada_jax as q
from qwen3llada_jax.sampling.passes import memory

V, MASK = 62, 60
S, GEN = 8, 16
MARGIN = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("twin")


@pytest.fixture(scope="module")
def twin(folder):
    with wide_twin(folder, 11, V) as (reference, model):
        yield reference, trained(model, MASK)


def clear(reference, rule_of, seed, rows=5, **options):
    """Prompts of different lengths with the port's (answer, passes, when), none of them near a tie."""
    draw, found = np.random.default_rng(seed), []
    while len(found) < rows:
        close = Close()
        prompt = draw.integers(0, MASK, 1 + len(found) * 2).tolist()
        answer = published.written(
            reference,
            prompt,
            rule_of,
            gen_length=GEN,
            block_length=S,
            never=[MASK, MASK + 1],
            mask=MASK,
            close=close,
            **options,
        )
        if close.margin > MARGIN:
            found.append((prompt, *answer))
    return found


def assert_same(result, found, what):
    for row, (prompt, answer, passes, at) in enumerate(found):
        assert result.answers()[row] == answer, f"{what}, row {row}"
        assert int(result.nfe[row]) == passes, f"{what}, row {row}"
        assert result.written_at[row, len(prompt) : len(prompt) + GEN].tolist() == [at[i] for i in sorted(at)], what


def settings(**rules):
    return q.SamplerConfig(gen_length=GEN, block_length=S, stop_at_eos=False, **rules)


def assert_generated(model, found, config):
    assert_same(q.generate(model, [prompt for prompt, *_ in found], config), found, config)


def assert_in_an_engine(model, found, config):
    """Two rows, which requests take and leave."""
    engine = q.Engine(model, config, slots=2, length=32)
    waiting, rows = list(enumerate(found)), {}
    while waiting or len(engine.free) < 2:
        for slot in engine.free[: len(waiting)]:
            rows[slot], (prompt, *_) = waiting.pop(0)
            engine.admit(slot, prompt)
        engine.advance()
        for done in engine.harvest():
            assert_same(done.result, [found[rows[done.slot]]], f"engine, {config}")


def check(twin, cases):
    """Each (ours, the port's) from one program, the last in an engine too; they differ in their passes."""
    reference, model = twin
    before, passes = None, set()
    for number, (rules, rule_of, *options) in enumerate(cases):
        found = clear(reference, rule_of, number, **dict(*options))
        assert_generated(model, found, settings(**rules))
        before = before or q.compilations()
        passes |= {tuple(one[2] for one in found)}
    assert q.compilations() == before, "a number was compiled for"
    assert len(passes) > 1
    assert_in_an_engine(model, found, settings(**rules))
    return found


@pytest.mark.slow
def test_local_leap(twin):
    rule = q.rules.LocalLeap
    found = check(
        twin,
        [
            ({"commit": rule(anchor, near, radius)}, lambda c, x=(anchor, near, radius): published.LocalLeap(c, *x))
            for anchor, near, radius in [(0.9, 0.75, 4), (0.5, 0.2, 4), (0.4, 0.1, 1), (0.35, 0.15, 2)]
        ],
    )
    assert 2 < np.mean([passes for *_, passes, _ in found]) < GEN


@pytest.mark.slow
def test_klass(twin):
    rule = q.rules.KLASS
    check(
        twin,
        [
            ({"commit": rule(*x)}, lambda c, x=x: published.KLASS(c, *x))
            for x in [(0.9, 0.01, 2), (0.3, 0.4, 1), (0.15, 0.6, 2), (0.2, 0.3, 3)]
        ],
    )


@pytest.mark.slow
def test_less(twin):
    rule = q.rules.LESS
    check(
        twin,
        [
            ({"commit": rule(*x, top=5)}, lambda c, x=x: published.LESS(c, *x, 5))
            for x in [(0.9, 0.01, 2), (0.3, 0.1, 1), (0.15, 0.2, 2), (0.1, 0.05, 1)]
        ],
    )


@pytest.mark.slow
def test_a_stable_and_confident_block_is_written_whole(twin):
    rule = q.rules.StableAndConfident
    check(
        twin,
        [
            ({"finish": rule(*x)}, lambda c, x=x: published.StableAndConfident(c, *x))
            for x in [(0.005, 1), (3.0, 1), (2.5, 2), (2.5, 0)]
        ],
    )


@pytest.mark.slow
def test_wino(twin):
    drafts, checks = q.rules.WideIn, q.rules.NarrowOut
    found = check(
        twin,
        [
            ({"commit": drafts(wide), "remask": checks(narrow)}, lambda c, x=(wide, narrow): published.WINO(c, *x))
            for wide, narrow in [(0.6, 0.9), (0.3, 0.2), (0.2, 0.05), (0.15, 0.4)]
        ],
    )
    assert any(sorted(set(at.values())) != [*range(passes)] for *_, passes, at in found), "nothing was masked again"


@pytest.mark.slow
@pytest.mark.soak
def test_a_token_failing_late_is_left_where_the_passes_would_not_suffice(twin):
    """`steps` are the most that may be taken, whatever is masked again."""
    _, model = twin
    prompts = [[1, 2, 3], [4], [50, 9]]
    for steps in (2, 4, 6, 8):
        config = settings(commit=q.rules.WideIn(0.1), remask=q.rules.NarrowOut(1.0), steps=steps)
        assert q.generate(model, prompts, config).nfe.max() <= steps
    again = q.generate(model, prompts, settings(commit=q.rules.WideIn(0.1), remask=q.rules.NarrowOut(1.0)))
    assert again.nfe.min() > 2
    limited = q.generate(model, prompts, settings(commit=q.rules.WideIn(0.1), remask=q.rules.NarrowOut(1.0, 0)))
    alone = q.generate(model, prompts, settings(commit=q.rules.WideIn(0.1)))
    assert limited.answers() == alone.answers()


@pytest.mark.slow
def test_edits(twin):
    rule = q.rules.Surer
    cases = [(0.5, 0.9, 16), (0.3, 0.25, 3), (0.2, 0.15, 1), (0.4, 0.2, 4)]
    check(
        twin,
        [
            (
                {"commit": q.rules.Threshold(level), "edit": rule(edit, most)},
                lambda c, x=(level, edit): published.Edits(c, *x),
                {"stays": most},
            )
            for level, edit, most in cases
        ],
    )


@pytest.mark.slow
@pytest.mark.soak
def test_the_temperature_falls_over_a_blocks_passes(twin):
    _, model = twin
    logits = jax.random.normal(jax.random.key(1), (V,))
    for step in range(9):
        key, now = jax.random.key(step), 0.4 + 0.5 * max(8 - step, 0) / 8
        annealed = q.rules.Annealed(0.9, 0.4, top_p=0.9).draw(logits, key, jnp.int32(step), jnp.int32(8))
        assert annealed == q.rules.Sample(now, top_p=0.9).draw(logits, key)
    prompts, wide = [[3, 4], [5]], {"temperature": 3.0}
    even = q.generate(model, prompts, settings(**wide)).answers()
    assert q.generate(model, prompts, settings(**wide, anneal_to=3.0)).answers() == even
    assert q.generate(model, prompts, settings(**wide, anneal_to=0.0)).answers() != even
    # Two blocks of one pass each: no pass but the first, at the first temperature.
    once = [q.generate(model, prompts, settings(steps=2, **wide, anneal_to=to)).answers() for to in (3.0, 0.0)]
    assert once[0] == once[1]


MANY = {
    "klass": {"commit": q.rules.KLASS(0.15, 0.6)},
    "less": {"commit": q.rules.LESS(0.15, 0.2)},
    "finish": {"finish": q.rules.StableAndConfident(2.8), "factor": 1.2},
    "wino": {"commit": q.rules.WideIn(0.2), "remask": q.rules.NarrowOut(0.3)},
    "edits": {"threshold": 0.3, "edit": q.rules.Surer(0.2, 3)},
    "all": {"klass": 0.2, "finish_below": 2.5, "narrow_out": 0.2, "edit_above": 0.3},
}


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", *MANY][: len(MANY)])
def test_caches_and_blocks_at_once_change_no_token(twin, name):
    _, model = twin
    prompts = [[1, 2, 3], [4], [50, 9], [7, 7, 7, 7]]
    ways = {"block_causal": {"cache": "prefix"}, "block_bias": {"parallel_blocks": True}}
    if {"edit", "edit_above"} & {*MANY[name]}:
        with pytest.raises(q.InputError, match="parallel_blocks: blocks written at once cannot end their edits one by"):
            settings(visibility="block_bias", parallel_blocks=True, **MANY[name]).for_model(model.config)
        del ways["block_bias"]
    for visibility, options in ways.items():
        config = settings(visibility=visibility, eos_token_ids=(9, 20, 33), **MANY[name])
        config = dataclasses.replace(config, stop_at_eos=visibility == "block_causal")
        plain = q.generate(model, prompts, dataclasses.replace(config, cache="none"))
        other = q.generate(model, prompts, dataclasses.replace(config, **options))
        assert plain.answers() == other.answers()
        if not options.get("parallel_blocks"):
            assert plain.nfe.tolist() == other.nfe.tolist()
            alone = [q.generate(model, [prompt], config) for prompt in prompts]
            assert [one.answers()[0] for one in alone] == plain.answers()


@pytest.mark.slow
def test_a_mesh_changes_no_token(twin, folder):
    _, model = twin
    prompts, config = [[1, 2, 3], [4], [50, 9], [7, 7, 7, 7]], settings(**MANY["all"])
    mesh = q.make_mesh(data=2, fsdp=2, tensor=2)
    spread = trained(q.load(folder, mesh=mesh), MASK)
    with jax.set_mesh(mesh):
        found = q.generate(spread, prompts, config)
    assert found.answers() == q.generate(model, prompts, config).answers()


@pytest.mark.slow
@pytest.mark.soak
def test_a_request_without_a_rule_is_written_without_it_in_an_engine_that_has_it(twin):
    _, model = twin
    plain = settings(threshold=0.3, temperature=0.7)
    has = dataclasses.replace(plain, finish_below=2.8, narrow_out=0.3, edit_above=0.2, anneal_to=0.2)
    engine = q.Engine(model, has, slots=2, length=32)
    for slot, config in enumerate((plain, has)):
        engine.admit(slot, [3, 4], config, key=5)
    while len(engine.advance()) < 2:
        pass
    for done, config in zip(engine.harvest(), (plain, has), strict=True):
        alone = q.generate(model, [[3, 4]], config, key=5)
        assert done.result.answers() == alone.answers()
        assert done.result.nfe.tolist() == alone.nfe.tolist()


def test_only_what_remembers_has_a_memory(twin):
    _, model = twin

    def of(**rules):
        parameters = settings(mask_token_id=MASK, **rules).parameters()
        return memory.bytes_of_a_place(parameters, model.config.vocab_size)

    assert of(threshold=0.5) == of(narrow_out=0.5) == of(edit_above=0.5) == 0
    assert of(klass=0.5) == 4 * V + 4
    assert of(less=0.5) == 8 * 8 + 4
    assert of(less=0.5, finish_below=0.1) == 8 * 8 + 4 + 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"anneal_to": 0.4}, "anneal_to is what it falls to; it needs a temperature above 0"),
        ({"narrow_out": 0.4, "revise": 2, "revise_by": "random"}, "revise_by and narrow_out both say what is masked"),
        ({"klass": 0.9, "less": 0.9}, "klass and less both say how many tokens a pass writes; give one"),
        ({"finish_below": 0.1, "finish": q.rules.StableAndConfident(0.1)}, "finish and finish_below both say when a"),
        ({"commit": q.rules.LocalLeap(0.9, radius=-1)}, "radius must be at least 0, not -1"),
        ({"commit": q.rules.LESS(0.9, top=0)}, "top must be at least 1, not 0"),
        ({"edit": q.rules.Surer(2)}, "edit_above must be above 0 and at most 1, not 2"),
    ],
)
def test_what_is_no_such_rule_is_refused(options, said):
    with pytest.raises(q.InputError, match=said):
        settings(**options)
