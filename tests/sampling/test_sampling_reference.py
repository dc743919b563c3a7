"""Greedy sampling against the same rules in plain PyTorch (torch_sampler.py), token for token and pass for pass."""

import functools
import itertools
import random

import pytest
import torch_sampler
from torch_twins import wide_twin

import qwen3llada_jax as q

V, MASK, LIVE = 61, 60, 58
EOS = (7, 11, 19)
LENGTH = 24
GRID_LENGTH = 32  # four blocks, each in length / 8 passes together
MARGIN = 2e-5  # of the reference's closest decision: far above what float32 rounds away here

ORDERS = ["low_confidence", "margin", "entropy", "left_to_right"]
COUNTS = [{}, {"threshold": 0.6}, {"factor": 1.1}, {"entropy_bound": 1.5}]
ALONE = [{"remasking": order} for order in ORDERS] + COUNTS[1:]
PLACES = [("full", "none"), *itertools.product(("block_bias", "block_causal"), ("none", "prefix", "dual"))]
ENDS = [
    {"stop_at_eos": False},
    {"eos_token_ids": EOS, "eos": "never"},
    {"eos_token_ids": EOS, "eos": "last"},
    {"eos_token_ids": EOS, "min_length": 7},
]


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    with wide_twin(tmp_path_factory.mktemp("twin"), 9, V) as (reference, model):
        model.config = q.ModelConfig(**{**vars(model.config), "mask_token_id": MASK, "live_vocab_size": LIVE})
        yield reference, model


def expected(reference, options, make, rows, seed):
    """`rows` texts made by `make(draw)`, and what the reference writes into them.

    A text that brings the reference to a near-tie is replaced by another: right samplers may differ there.
    """
    options = {"eos_token_ids": (), **options, "forbid": [*range(LIVE, V), *options.get("forbid", ())]}
    for name in ("gen_length", "cache", "parallel_blocks"):
        options.pop(name, None)
    draw, found = random.Random(repr(seed)), []
    for _ in range(4 * rows):
        text = make(draw, len(found))
        written = torch_sampler.sample(reference, text, mask_token_id=MASK, **options)
        if written.margin > MARGIN:
            found.append((text, written))
            if len(found) == rows:
                return found
    raise AssertionError(f"{len(found)} of {4 * rows} texts without a near-tie: the model's confidences are too close")


def prompt_and_holes(draw, number, length=LENGTH):
    return [draw.randrange(V) for _ in range((5, 1, 11)[number])] + [None] * length


def assert_equal(got, found, options):
    """Every row: tokens, the pass that wrote each, forward passes; confidences up to rounding."""
    for row, (text, written) in enumerate(found):
        L = len(text)
        if options.get("parallel_blocks") and options.get("stop_at_eos", True):
            # later blocks are under way when an earlier one ends the row: what stands behind the end may differ
            ends = [i for i in range(L) if text[i] is None and written.tokens[i] in options["eos_token_ids"]]
            L = min([L, *(i + 1 for i in ends)])
        what = f"{options}\nprompt {[t for t in text if t is not None]}, margin {written.margin:.1e}"
        assert got.tokens[row, :L].tolist() == written.tokens[:L], what
        if not options.get("parallel_blocks"):
            assert got.written_at[row, :L].tolist() == written.written_at, what
            assert int(got.nfe[row]) == written.nfe, what
        assert got.confidence[row, :L].tolist() == pytest.approx(written.confidence[:L], abs=1e-4), what


def check(twin, options):
    reference, model = twin
    options = {"gen_length": LENGTH, **options}
    text = functools.partial(prompt_and_holes, length=options["gen_length"])
    found = expected(reference, options, text, 3, options)
    prompts = [[token for token in text if token is not None] for text, _ in found]
    assert_equal(q.generate(model, prompts, q.SamplerConfig(**options)), found, options)


# ---- every option with every other: a covering of all pairs


def is_comparable(case) -> bool:
    """Whether the reference, which takes block after block without a cache, writes the same.

    A repetition penalty makes blocks that are written together see what stands in each other.
    """
    if case["parallel"] and (case["visibility"] != "block_bias" or case["penalty"] != 1):
        return False
    return case["visibility"] != "full" or case["cache"] == "none"


def all_pairs(axes):
    """Few cases in which every two values of different axes meet, found greedily among random ones."""
    draw = random.Random(0)

    def pairs(case):
        return {(a, repr(case[a]), b, repr(case[b])) for a, b in itertools.combinations(axes, 2)}

    def some():
        while True:
            case = {name: draw.choice(values) for name, values in axes.items()}
            if is_comparable(case):
                return case

    missing = set().union(*(pairs(some()) for _ in range(5000)))
    cases = []
    while missing:
        best = max((some() for _ in range(200)), key=lambda case: len(pairs(case) & missing))
        if pairs(best) & missing:
            cases.append(best)
            missing -= pairs(best)
    return cases


AXES = {
    "visibility": ["full", "block_bias", "block_causal"],
    "cache": ["none", "prefix", "dual"],
    "blocks": [1, 4],
    "ratio": [1, 2, 3],
    "cfg": [0.0, 1.5],
    "order": ORDERS,
    "count": COUNTS,
    "capped": [True, False],
    "revise": [0, 3],
    "penalty": [1.0, 1.4],
    "end": ENDS,
    "forbid": [(), (3, 4)],
    "parallel": [False, True],
}
COVERING = all_pairs(AXES)


def options_of(case) -> dict:
    capped = case["capped"] or not case["count"]
    return {
        "visibility": case["visibility"],
        "cache": case["cache"],
        "block_length": LENGTH // case["blocks"],
        "steps": LENGTH // case["ratio"] if capped else None,
        "cfg_scale": case["cfg"],
        "remasking": case["order"],
        "revise": case["revise"],
        "repetition_penalty": case["penalty"],
        "forbid": case["forbid"],
        "parallel_blocks": case["parallel"],
        **case["count"],
        **case["end"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_many_options_together_equal_the_reference(twin, number):
    check(twin, options_of(COVERING[number]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.soak] * (n % 2)) for n in range(2, len(COVERING))]
)
def test_every_pair_of_options_equals_the_reference(twin, number):
    check(twin, options_of(COVERING[number]))


# ---- the whole grid of the algorithm itself


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("rule", ALONE, ids=lambda rule: "-".join(map(str, rule.values())))
@pytest.mark.parametrize("cfg", [0.0, 1.5])
@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize(("visibility", "cache"), PLACES)
def test_the_whole_grid_equals_the_reference(twin, visibility, cache, blocks, cfg, rule):
    places = {
        "gen_length": GRID_LENGTH,
        "visibility": visibility,
        "cache": cache,
        "block_length": GRID_LENGTH // blocks,
        "cfg_scale": cfg,
    }
    adaptive = "remasking" not in rule
    for steps in (GRID_LENGTH, GRID_LENGTH // 2, GRID_LENGTH // 8, *[None] * adaptive):
        check(twin, {**places, **rule, "steps": steps, "stop_at_eos": False})


# ---- infilling


def holes_anywhere(draw, number):
    """Holes alone, in runs, at both ends; two to fourteen of them."""
    text = [draw.randrange(V) for _ in range((14, 9, 21)[number])]
    many = (5, 2, 14)[number]
    for i in draw.sample(range(len(text)), many):
        text[i] = None
    return text


@pytest.mark.parametrize(
    "options",
    [
        {"block_length": 4},
        pytest.param({"block_length": 4, "visibility": "block_causal", "eos_token_ids": EOS, "min_length": 5},
                     marks=pytest.mark.slow),
        {"block_length": 3, "visibility": "block_bias", "parallel_blocks": True, "threshold": 0.3},
        pytest.param({"block_length": 5, "visibility": "block_bias", "cfg_scale": 1.0, "remasking": "entropy"},
                     marks=pytest.mark.slow),
        pytest.param({"block_length": 2, "visibility": "block_causal", "revise": 1}, marks=pytest.mark.slow),
        pytest.param({"block_length": 14, "threshold": 0.5, "cfg_scale": 1.0}, marks=pytest.mark.slow),
        pytest.param({"block_length": 3, "remasking": "margin", "revise": 1, "eos": "never", "eos_token_ids": EOS},
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_infilling_equals_the_reference(twin, options):
    reference, model = twin
    options = {"stop_at_eos": False, **options}
    found = expected(reference, options, holes_anywhere, 3, options)
    assert_equal(q.infill(model, [text for text, _ in found], q.SamplerConfig(**options)), found, options)


# ---- the reference itself: every option changes what it writes


@pytest.mark.parametrize(
    "change",
    [
        {"visibility": "block_bias"},
        {"visibility": "block_causal"},
        {"steps": 8},
        {"cfg_scale": 1.5},
        {"repetition_penalty": 1.4},
        *({"remasking": order} for order in ORDERS[1:]),
        *COUNTS[1:],
        {"revise": 3},
        {"forbid": [5, 50]},
        {"eos": "never"},
        {"eos": "last"},
        {"min_length": 7},
        {"eos_token_ids": (37,), "stop_at_eos": True},
    ],
    ids=str,
)
def test_the_reference_acts_on_every_option(twin, change):
    reference, _ = twin
    plain = {"block_length": 12, "steps": 12, "stop_at_eos": False, "mask_token_id": MASK}
    ends = {"eos_token_ids": (37,), "stop_at_eos": True}  # a token that this model writes often
    base = {**plain, **ends} if {"eos", "min_length"} & set(change) else plain
    draw = random.Random(1)
    prompts = [[draw.randrange(V) for _ in range(4)] for _ in range(5)]

    def written(options):
        return [torch_sampler.generate(reference, p, gen_length=LENGTH, **options)[:2] for p in prompts]

    assert written(base) != written({**base, **change})
