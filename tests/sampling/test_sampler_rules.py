"""Rules as values: numbers that compile nothing and differ from row to row, short names, and rules of a user's own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, save_torch, torch_model

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


@pytest.mark.parametrize(("slot", "made", "values"), PER_ROW)
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
    def commit(self, is_masked):
        return is_masked

@q.rule
class Blind:
    def commit(self, the_future):
        return 1

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
        ("my.py:Many", r"commit must give one number, not an array of shape \[4\]"),
        ("my.py:Blind", "Blind.commit takes 'the_future'; there is probability, entropy, is_masked"),
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
