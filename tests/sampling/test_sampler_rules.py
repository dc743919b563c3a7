"""Rules as values: numbers that compile nothing and differ from row to row, short names, and rules of a user's own."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q
from qwen3llada_jax.sampling import rules, slots
from qwen3llada_jax.sampling.config import SETTINGS
from sample import compare, flags, generate, own_rules

V, MASK = 62, 61
PROMPTS = [[5, 6], [7], [1, 2, 3], []]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    wide = torch_model(9, vocab_size=V, hidden_size=32, num_hidden_layers=2, initializer_range=0.35)
    found = q.load(save_torch(wide, folder))
    found.config = q.ModelConfig(**{**vars(found.config), "mask_token_id": MASK, "live_vocab_size": V - 3})
    return found


def config(**options):
    return q.SamplerConfig(gen_length=8, block_length=4, **options)


BOTH = [
    ({"remasking": "margin"}, {"order": rules.Margin()}),
    ({"threshold": 0.3}, {"commit": rules.Threshold(0.3)}),
    ({"factor": 1.5}, {"commit": rules.Factor(1.5)}),
    ({"entropy_bound": 0.4}, {"commit": rules.EntropyBound(0.4)}),
    ({"dynamic": 0.4}, {"commit": rules.Dynamic(0.4)}),
    ({"timesteps": 0.01}, {"commit": rules.Timesteps(0.01)}),
    ({"local_leap": 0.4}, {"commit": rules.LocalLeap(0.4)}),
    ({"klass": 0.4}, {"commit": rules.KLASS(0.4)}),
    ({"less": 0.4}, {"commit": rules.LESS(0.4)}),
    ({"wide_in": 0.4}, {"commit": rules.WideIn(0.4)}),
    ({"finish_below": 0.4}, {"finish": rules.StableAndConfident(0.4)}),
    ({"edit_above": 0.4}, {"edit": rules.Surer(0.4)}),
    ({"temperature": 0.8, "anneal_to": 0.4, "top_k": 9}, {"draw": rules.Annealed(0.8, 0.4, 9)}),
    ({"narrow_out": 0.4}, {"remask": rules.NarrowOut(0.4)}),
    ({"revise": 3, "narrow_out": 0.4}, {"remask": rules.NarrowOut(0.4, 3)}),
    ({"temperature": 0.7, "top_k": 9, "top_p": 0.8}, {"draw": rules.Sample(0.7, 9, 0.8)}),
    ({"revise": 2}, {"remask": rules.LeastCertain(2)}),
    ({"revise": 2, "revise_by": "random"}, {"remask": rules.AtRandom(2)}),
    ({"eos_token_ids": (3, 5)}, {"eos_token_ids": (3, 5), "stop": rules.AtEos()}),
]


@pytest.mark.parametrize(("short", "given"), BOTH)
def test_a_short_name_is_its_rule(short, given):
    named, made = config(**short, mask_token_id=MASK), config(**given, mask_token_id=MASK)
    assert jax.tree.structure(named.parameters()) == jax.tree.structure(made.parameters())
    assert jax.tree.leaves(named.parameters()) == jax.tree.leaves(made.parameters())
    slot = next(name for name in given if name in slots.SLOTS)
    spoken = next(name for name in short if SETTINGS.get(name) and SETTINGS[name].slot in (slot, None))
    if SETTINGS[spoken].slot == slot:
        with pytest.raises(q.InputError, match=f"^{slot} and {spoken} both say {slots.SLOTS[slot]}; give one of them$"):
            config(**short, **given)


def test_rules_of_two_classes_are_two_structures():
    every = [*rules.CONFIDENCE_RULES.values(), rules.EvenShare, rules.Greedy, rules.AtEos]
    trees = [jax.tree.structure(kind()) for kind in every]
    assert all((a == b) == (i == j) for i, a in enumerate(trees) for j, b in enumerate(trees))
    assert jax.tree.structure(rules.LeastCertain(1)) != jax.tree.structure(rules.AtRandom(1))
    assert jax.tree.structure(rules.Sample(1.0, 3)) != jax.tree.structure(rules.Sample(1.0, 4))
    assert jax.tree.structure(rules.Sample(1.0, 3)) == jax.tree.structure(rules.Sample(0.5, 3))


def test_three_levels_are_one_program(model):
    q.generate(model, PROMPTS, config(threshold=0.2))
    before = q.compilations()
    for level in (0.4, 0.9, 1):
        q.generate(model, PROMPTS, config(commit=rules.Threshold(level)))
    assert q.compilations() == before


PER_ROW = [
    ("commit", rules.Threshold, [0.1, 0.4, 0.9, 0.2]),
    ("commit", rules.EntropyBound, [0.1, 3.0, 0.9, 0.2]),
    ("draw", rules.Sample, [0.0, 0.4, 2.0, 1.0]),
    ("draw", lambda x: rules.Sample(0.9, top_p=x), [0.2, 0.9, 1.0, 0.5]),
    ("remask", rules.LeastCertain, [0, 1, 2, 3]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slot", "made", "values"),
    [pytest.param(*rule, marks=[pytest.mark.soak] * (i % 2)) for i, rule in enumerate(PER_ROW)],
)
def test_a_number_for_each_row_gives_each_what_it_gets_alone(model, slot, made, values):
    keys = jax.random.split(jax.random.key(3), 4)
    together = q.generate(model, PROMPTS, config(**{slot: made(np.array(values))}), key=keys)
    alone = [
        q.generate(model, [p], config(**{slot: made(x)}), key=keys[i : i + 1])
        for i, (p, x) in enumerate(zip(PROMPTS, values, strict=True))
    ]
    assert together.answers() == [one.answers()[0] for one in alone]
    assert together.nfe.tolist() == [int(one.nfe[0]) for one in alone]
    assert len(set(together.nfe.tolist())) > 1 or slot != "commit"


@q.rule
class Halves:
    share: float = 0.5

    def commit(self, is_masked):
        return jnp.ceil(self.share * is_masked.sum())


@q.rule
class Slow:
    def commit(self, even_share, step):
        return jnp.where(step == 0, even_share, 1)


@pytest.mark.slow
def test_a_counting_rule_of_ones_own(model):
    half = q.generate(model, PROMPTS, config(commit=Halves()))
    assert half.nfe.tolist() == [2 * 3] * 4  # of four masks 2, 1 and 1
    before = q.compilations()
    assert q.generate(model, PROMPTS, config(commit=Halves(1.0))).nfe.tolist() == [2] * 4
    assert q.compilations() == before
    assert not config(commit=Halves()).has_budget
    assert config(commit=Slow()).has_budget
    assert q.generate(model, PROMPTS, config(commit=Slow(), steps=2)).nfe.tolist() == [2] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"commit": rules.Threshold(2)}, "threshold must be above 0 and at most 1, not 2"),
        ({"commit": rules.Threshold(np.array([0.5, 0]))}, "threshold must be above 0 and at most 1, not 0.0"),
        ({"commit": rules.Threshold}, r"commit must be a rule: make one of the class, Threshold\(…\)"),
        ({"commit": rules.Margin()}, "Margin decides who is written first; give it as order"),
        ({"commit": 0.9}, "commit must be a rule of how many tokens a pass writes; float is none"),
        ({"commit": Halves("x")}, "share must be a number, not 'x'"),
        ({"draw": rules.Sample(-1)}, "temperature must be 0 or more"),
        ({"draw": rules.Sample(1.0, top_k=0)}, "top_k must be at least 1"),
        ({"remask": rules.LeastCertain(-1)}, "revise must be at least 0"),
    ],
)
def test_what_is_no_rule_is_refused(options, said):
    with pytest.raises(q.InputError, match=said):
        config(**options)


def test_as_many_numbers_as_rows(model):
    with pytest.raises(q.InputError, match="threshold has 3 numbers, and there are 4 rows"):
        q.generate(model, PROMPTS, config(commit=rules.Threshold(np.array([0.1, 0.2, 0.3]))))


# ---- from a file of the user's ---------------------------------------------------------------------------------

FILE = """
import functools
import jax.numpy as jnp
import qwen3llada_jax as q

@q.rule
class Halves:
    share: float = 0.5

    def commit(self, is_masked):
        return jnp.ceil(self.share * is_masked.sum())

def backwards(log_p, token, place, key):
    return place

@q.rule
class Broken:
    def commit(self, is_masked):
        return is_masked.nothing()

@q.rule
class Many:
    def commit(self, probability):
        return probability

@q.rule
class Blind:
    def commit(self, the_future):
        return 1

class Bare:
    def commit(self, is_masked):
        return 1

@q.rule
class Both:
    def commit(self, is_masked):
        return 1

    def draw(self, logits, key):
        return 0

@q.rule
class Named:
    def commit(self, *, is_masked):
        return is_masked.sum()

@q.rule
class Tied:
    tie: float = 0.1

    def order(self, log_p, token, place, key):
        return place

@q.rule
class Calm:
    passes: int = 2

    def blank(self, V):
        return jnp.zeros(V), jnp.int32(0)

    def remember(self, log_p, token, before):
        return log_p, jnp.where(token == before[0].argmax(), before[1] + 1, 0)

    def commit(self, is_masked, memory):
        return is_masked & (memory[1] >= self.passes)

@q.rule
class Never:
    def finish(self, memory):
        return False

@q.rule
class Anew:
    edit_passes: int = 0

    def edit(self, probability, now):
        return probability > 2 * now

@q.rule
class Cools:
    def draw(self, logits, key, step):
        return (logits / (1 + step)).argmax()

@q.rule
class Late:
    def stop(self, is_end, is_masked):
        return is_end.shape[0] / 2

@q.rule
class Again:
    revise: float = 2.0
    limit: int | None = None

    def remask(self, confidence, key):
        return confidence

def scaled(log_p, token, place, key, scale):
    return scale * place

twice = functools.partial(scaled, scale=2)
limit = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(FILE)
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    (tmp_path / "torn.py").write_text("def (\n")
    return tmp_path


SHORT = ["--mask-token-id", str(MASK), "--gen-length", "8", "--block-length", "8"]


@pytest.mark.soak
@pytest.mark.slow
def test_a_users_file_with_a_counting_rule_is_run(here, start, capsys):
    common = ["--model", str(start), *SHORT]
    for share, passes in {"": 4, ":share=1": 1, ":share=0.25": 6}.items():
        generate.main([*common, "--prompt", "x", "--rule", "my.py:Halves" + share, "--rule", "my.py:backwards"])
        assert f"NFE {passes} ·" in capsys.readouterr().err
    told = generate.own_rules.fingerprint(["my.py:Halves"])
    assert told == generate.own_rules.fingerprint(["my.py:Halves"])
    (here / "asks.jsonl").write_text(json.dumps({"prompt": "x"}) + "\n")
    ways = "my.py:Halves:share=0.25,my.py:Halves:share=1+margin,threshold=0.9,low_confidence"
    compare.main(
        [*common, "--data", "asks.jsonl", "--rules", ways, "--rule", "my.py:Halves", "--out", "out", "--steps", "8"]
    )
    rows = json.loads((here / "out" / "compare.json").read_text())["results"]
    assert [row["rule"] for row in rows] == ways.split(",")
    assert [row["nfe"] for row in rows][:2] == [6, 1]
    assert rows[3]["nfe"] == 4  # what the flags say


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("my", "takes FILE:NAME, as my.py:Halves"),
        ("no.py:Halves", "there is no such file"),
        ("my.py:Halfs", "has no 'Halfs'; did you mean 'Halves'?"),
        ("my.py:limit", "limit is no rule; that is a class with @q.rule"),
        ("my.py:Halves:part=1", "Halves has no number 'part'; it has share"),
        ("my.py:Halves:share=x", "share must be a number, not 'x'"),
        ("my.py:Halves:share", "'share' must be NUMBER=VALUE"),
        ("my.py:backwards:share=1", "backwards has no number 'share'"),
        ("my.py:Broken", "Broken: AttributeError: "),
        ("my.py:Many", r"commit must give one number, not an array of shape \[32\]"),
        ("my.py:Halves:share=0.2:share=0.3", "share is given twice; give it once"),
        ("my.py:Halves:share=nan", "share must be a finite number .at most 3.4e.38., not nan"),
        ("my.py:Again:revise=2.7", "revise must be a whole number, not 2.7"),
        ("my.py:Again:limit=2.7", "limit must be a whole number, not '2.7'"),
        ("my.py:Bare", "Bare is no rule: it has the method commit, and needs @q.rule above its class"),
        ("my.py:Both", "Both is no rule: it has the methods commit and draw, and a rule decides one thing"),
        ("my.py:Tied", "Tied has a field `tie`, which names no number of a rule; rename it"),
        ("my.py:Blind", "Blind.commit takes 'the_future'; there is probability, entropy, is_masked"),
        ("my.py:Never", "Never.finish takes 'memory'; there is probability, entropy, is_masked"),
        ("wrong.py:Halves", "cannot be run: ZeroDivisionError: division by zero"),
        ("torn.py:Halves", "cannot be run: SyntaxError: "),
        ("my.py:Halves --threshold 0.9", "commit and threshold both say how many tokens a pass writes"),
        ("my.py:Halves --rule my.py:Halves", "another one says how many tokens a pass writes too; give one"),
    ],
)
def test_a_file_without_such_a_rule_is_refused_in_a_line(here, rule, said):
    with pytest.raises(q.InputError, match=said) as refused:
        generate.main(["--model", "m", "--prompt", "x", "--rule", *rule.split()])
    assert "\n" not in str(refused.value)


def test_what_is_set_anew_takes_the_place_of_a_rule(here):
    mine = own_rules.with_rules(q.SamplerConfig(), ["my.py:Halves:share=0.3"])
    assert mine.commit.share == 0.3
    assert flags.changed(mine, {"temperature": "0.5"}).commit == mine.commit
    fixed = flags.changed(mine, {"threshold": "0.9"})
    assert (fixed.commit, fixed.threshold) == (None, 0.9)
    again = flags.changed(fixed, {}, ["my.py:Halves"])
    assert (again.commit.share, again.threshold) == (0.5, None)
    assert flags.told(again)["commit"] == "Halves(share=0.5)"
    assert flags.told(flags.changed(fixed, {}, ["my.py:backwards"]))["order"] == "backwards"
    assert "commit" not in flags.told(fixed)


def test_the_bundled_example_is_a_rule():
    root = ROOT
    assert own_rules.rule_of(f"{root}/examples/custom_rule.py:Halves:share=0.2")[1].share == pytest.approx(0.2)
    assert own_rules.rule_of(f"{root}/examples/custom_rule.py:least_surprise")[0] == "order"


@pytest.mark.parametrize("name", ["Named", "Late", "Again", "Again:limit=3", "twice", "Calm", "Anew", "Cools"])
def test_what_python_takes_the_programs_take(here, name):
    slot, rule = own_rules.rule_of("my.py:" + name)
    assert getattr(q.SamplerConfig(**{slot: rule}), slot) == rule


def test_a_file_imports_what_lies_beside_it(here):
    (here / "beside_it.py").write_text("def least(log_p, token, place, key):\n    return place\n")
    (here / "sub.py").write_text("from beside_it import least\n")
    before = list(sys.path)
    assert own_rules.rule_of("sub.py:least")[0] == "order"
    assert sys.path == before


# ---- what a rule may say, and what becomes of it -----------------------------------------------------------------


@q.rule
class StopsAt:
    place: float

    def stop(self, is_end, is_masked):
        return self.place


@pytest.mark.slow
@pytest.mark.parametrize("place", [-1, 7, 8, 1e9])
def test_a_row_ends_at_no_mask(model, place):
    found = q.generate(model, PROMPTS, config(stop=StopsAt(place)))
    assert all(MASK not in answer for answer in found.answers())
    assert found.answers() == q.generate(model, PROMPTS, config(stop_at_eos=False)).answers()


def test_a_row_ends_at_a_place_that_is_written(model):
    found = q.generate(model, PROMPTS, config(stop=StopsAt(1), remasking="left_to_right"))
    assert found.nfe.tolist() == [2] * 4
    assert all(len(set(answer[1:])) == 1 for answer in found.answers())


@q.rule
class Draws:
    id: int

    def draw(self, logits, key):
        return self.id


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [MASK, V - 2, V, -1, 2**31 - 1])
def test_a_token_that_may_not_be_written_never_is(model, wrong):
    assert (
        q.generate(model, PROMPTS, config(draw=Draws(wrong))).answers()
        == q.generate(model, PROMPTS, config()).answers()
    )
    assert q.generate(model, [[1]], config(draw=Draws(5))).answers() == [[5] * 8]


@q.rule
class One:
    def commit(self):
        return 1


@q.rule
class Every:
    def commit(self, probability):
        return probability


@q.rule
class Fractions:
    revise: float

    def remask(self, confidence, key):
        return confidence


@pytest.mark.slow
def test_methods_of_other_kinds(model):
    assert q.generate(model, PROMPTS, config(commit=One())).nfe.tolist() == [8] * 4
    revised = [q.generate(model, PROMPTS, config(remask=kind(2))).answers() for kind in (Fractions, rules.LeastCertain)]
    assert revised[0] == revised[1]
    with pytest.raises(
        q.InputError, match=r"^Every.commit must give one number, not an array of shape \[4\]"
    ) as refused:
        q.generate(model, PROMPTS, config(commit=Every()))
    assert "\n" not in str(refused.value)


@q.rule
class Perhaps:
    revise: int | None = None

    def remask(self, confidence, key):
        return confidence


@q.rule
class Chosen:
    ids: tuple = dataclasses.field(default=(1, 2), metadata={"static": True})
    whole: int = 1
    maybe: "int | None" = None

    def draw(self, logits, key):
        return jnp.asarray(self.ids)[0]


def test_a_choice_of_several_is_no_number_of_a_row(model):
    assert q.generate(model, PROMPTS, config(draw=Chosen())).answers() == [[1] * 8] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draw": rules.Sample(0.7, top_k=np.array([3]))}, "top_k is one for all rows"),
        ({"draw": Chosen([1, 2])}, r"ids must be hashable, as a tuple is; \[1, 2\] is not"),
        ({"draw": Chosen(whole=2.7)}, "whole must be a whole number, not 2.7"),
        ({"draw": Chosen(whole=2**40)}, "whole must be at most 2147483647"),
        ({"draw": Chosen(whole=np.array([1, 2**40]))}, "whole must be at most 2147483647"),
        ({"draw": Chosen(maybe=float("nan"))}, "maybe must be a whole number, not nan"),
        ({"commit": Halves(float("nan"))}, "share must be a finite number"),
        ({"commit": Halves(float("inf"))}, "share must be a finite number"),
        ({"commit": Halves(None)}, "share must be a number, not None"),
        ({"commit": rules.Threshold(None)}, "threshold must be a number, not None"),
        ({"remask": Fractions(None)}, "revise must be a whole number, not None"),
        ({"remask": Perhaps()}, "revise must be a whole number, not None"),
        ({"remasking": rules.Margin}, r"order must be a rule: make one of the class, Margin\(…\)"),
        ({"remasking": rules.Margin()}, r"remasking is a name or a function; give the rule as order=Margin\(\)"),
        ({"order": lambda log_p: 0}, r"order must be a function of \(log_p, token, place, key\)"),
    ],
)
def test_what_a_field_cannot_be(options, said):
    with pytest.raises(q.InputError, match="^" + said) as refused:
        config(**options)
    assert "\n" not in str(refused.value)


def test_configs_are_equal_by_value():
    levels = [rules.Threshold(np.array(x)) for x in ([0.1, 0.2], [0.1, 0.2], [0.1, 0.3])]
    one, same, other = (config(commit=level) for level in levels)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != config(commit=rules.Threshold(0.1))
    assert rules.LeastCertain(1) != rules.AtRandom(1)
