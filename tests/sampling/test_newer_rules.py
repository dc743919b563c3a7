"""Rules that look at neighbors, at the passes before, and at what is written already, each against a port in numpy.

Batches of mixed progress: every row the tokens, the passes and the trajectory that it has alone in the port, from
`generate`, from an engine, and whatever the numbers are, from one program.
"""

import numpy as np
import numpy_rules as published
import pytest
from conftest import trained, wide_twin
from torch_families import Close

import qwen3llada_jax as q

V, MASK = 61, 60
S, GEN = 8, 16
MARGIN = 2e-5


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    with wide_twin(tmp_path_factory.mktemp("twin"), 11, V) as (reference, model):
        yield reference, trained(model, MASK)


def clear(reference, rule_of, seed, rows=5, **options):
    """Prompts of different lengths with the port's (answer, passes, when), none of them near a tie."""
    draw, found = np.random.default_rng(seed), []
    while len(found) < rows:
        close = Close()
        prompt = draw.integers(0, MASK, 1 + len(found) * 2).tolist()
        answer = published.written(
            reference, prompt, rule_of, gen_length=GEN, block_length=S, never=[MASK], mask=MASK, close=close, **options
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
