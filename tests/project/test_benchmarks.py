"""benchmarks.run_all, scaling and accelerator: what is made of given readings, how they are taken, and that the ways of
a row do the same work; and, on a machine that may be busy, that ours stays near PyTorch."""

import json
import math
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import run_program

import qwen3llada_jax as q
from benchmarks import accelerator, scaling
from benchmarks.measuring import collecting, growth, machine, rows, table
from benchmarks.measuring.collecting import Collection, Row, collect, continued
from benchmarks.peers import reading, torch_models, training, writing
from benchmarks.peers.shapes import LARGE, QWEN3_06B, SMALL, TINY, attention_flops, forward_flops, training_flops
from train.monitor.model_flops import training_flops_per_token

MACHINE = {
    "cpu": "A processor", "cores": 2, "vectors": ["avx2"], "memory_gb": 16.0, "system": "Linux",
    "commit": "0123456789abc-dirty", "versions": {"jax": "1", "torch": "2", "transformers": "3"}, "code": "x",
}  # fmt: skip


def readings(*seconds: float, **more) -> list[dict]:
    return [{"seconds": s, "peak_gb": 1.5, "user": 3.0, "system": 1.0, "others": 0.0, **more} for s in seconds]


# ---- what is made of readings --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [TINY, SMALL, LARGE, QWEN3_06B])
def test_flops_are_those_that_training_reports(shape):
    config = q.ModelConfig(**shape, rope_theta=1e6)
    assert training_flops(shape, 3, 64) == 3 * 64 * training_flops_per_token(config, 64)
    assert q.PRESETS["qwen3-0.6b"].hidden_size == QWEN3_06B["hidden_size"]


def test_the_shape_called_06b_is_qwen3s():
    preset = q.PRESETS["qwen3-0.6b"]
    assert {name: getattr(preset, name) for name in QWEN3_06B} == QWEN3_06B


def test_the_table_of_given_readings(tmp_path):
    chosen = [
        Row("matmul", "a product", "matmul", ("ours", "torch"), flops=rows.MATMUL_FLOPS),
        Row("step", "a step", "training", ("ours", "torch", "compile", "dllm"), flops=30e9),
        Row("texts", "texts", "writing", ("ours", "torch"), same_text=True),
        Row("others", "other", "writing", ("ours", "torch"), same_text=True),
        Row("half", "half a step", "training", ("ours", "torch"), {"dtype": "bfloat16"}, flops=300e9),
        Row("unread", "not read", "writing", ("ours", "torch")),
    ]
    product = rows.MATMUL_FLOPS / 100e9  # 100 GFLOP/s
    found = {
        "matmul": {"ours": readings(product, product), "torch": readings(2 * product, 2 * product)},
        "step": {
            "ours": readings(2.0, 1.0, 4.0),
            "torch": readings(2.0, 3.0, 2.0),  # one by one: 1, 3 and 0.5 times ours
            "dllm": readings(5.0, 5.0, 5.0),
        },
        "texts": {"ours": readings(0.25, text="a"), "torch": readings(0.5, text="a", others=0.2)},
        "others": {"ours": readings(0.25, text="a"), "torch": readings(0.5, text="b")},
        "half": {"ours": readings(1.0), "torch": readings(1.0)},
    }
    text = table.markdown(Collection(tmp_path / "x.json", MACHINE, found), chosen)
    assert text == (
        "|  | ours | torch | torch.compile | dllm's manner | memory, GB | system | of the limit |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| a product | 172 ms (172 … 172) | 344 ms (344 … 344): **2.00×** (2.00 … 2.00) | – | – | 1.50 / 1.50 | "
        "25% / 25% | 100 GFLOP/s, 100% |\n"
        "| a step | 2 s (1 … 4) | 2 s (2 … 3): **1.00×** (0.50 … 3.00) | – | 5 s (5 … 5): **2.50×** (1.25 … 5.00) | "
        "1.50 / 1.50 / 1.50 | 25% / 25% / 25% | 15 GFLOP/s, 15% |\n"
        "| texts = | 250 ms (250 … 250) | 500 ms (500 … 500): **2.00×** (2.00 … 2.00) | – | – | 1.50 / 1.50 | "
        "25% / 25% | – |\n"
        "| other ≠ | 250 ms (250 … 250) | 500 ms (500 … 500): **2.00×** (2.00 … 2.00) | – | – | 1.50 / 1.50 | "
        "25% / 25% | – |\n"
        "| half a step | 1 s (1 … 1) | 1 s (1 … 1): **1.00×** (1.00 … 1.00) | – | – | 1.50 / 1.50 | 25% / 25% | "
        "300 GFLOP/s |\n"
        "\nA processor, 2 cores (avx2), 16 GB, Linux; jax 1, torch 2, transformers 3, commit 0123456789ab-dirty. "
        "1 to 3 readings of each, medians and ranges; of all 19 readings, others used over 5% of it in 1. "
        "The limit: 100 GFLOP/s."
    )


def test_times_on_both_sides_of_a_second_are_no_powers_of_ten():
    assert table._seconds([{"seconds": x} for x in (0.583, 0.868, 1.27)]) == "868 ms (583 … 1,270)"


def test_what_grows_by_a_line_lies_on_it_and_what_does_not_is_off():
    sizes = [256, 512, 1024, 2048]
    straight = growth.line(sizes, [0.5 + 0.001 * x for x in sizes])
    np.testing.assert_allclose([straight.base, straight.slope], [0.5, 0.001], rtol=1e-6)
    assert straight.off < 1e-6
    assert growth.line(sizes, [1e-6 * x * x for x in sizes]).off > 0.3


def test_judgments_of_given_series():
    def points(sizes, seconds, tokens, memory):
        return [
            growth.Measured(x, s, s / n * 1e6, m) for x, s, n, m in zip(sizes, seconds, tokens, memory, strict=True)
        ]

    even = points([1, 4], [0.1, 0.44], [256, 1024], [1, 1])
    uneven = points([1, 4], [0.1, 0.52], [256, 1024], [1, 1])
    assert growth.judgments({"batch": even})[0].endswith("differs by 10% over 1 to 4 rows (within 15%)")
    assert "30% over 1 to 4 rows (beyond 15%)" in growth.judgments({"batch": uneven})[0]
    layers = points([2, 4, 8], [0.03, 0.05, 0.09], [1024] * 3, [1] * 3)
    assert growth.judgments({"layers": layers}) == [
        "layers: 10 ms + 10 ms a layer, the steps off that line by 0% at most"
    ]
    lengths = [256, 512, 1024]
    squares = points(lengths, [1e-4 * n * (1 + n / 1024) for n in lengths], lengths, [0.5 + 1e-4 * n for n in lengths])
    time, memory = growth.judgments({"length": squares})
    share = attention_flops(SMALL, 1, 1024) / forward_flops(SMALL, 1, 1024)
    assert f"off a line in L by 0% at most; at L 1,024 what grows is 50% of it, attention {share:.0%}" in time
    assert memory == "length: memory is 0.50 GB + 100 KB a token, off that line by 0% at most"
    assert growth.judgments({"texts": even[:1]}) == []


def test_a_kernel_that_is_further_off_than_xla_is_named():
    def found(error):
        return [{"errors": {"none": {"result": error, "gradients": 0.02}}}]

    assert accelerator.worse_than_xla({"xla": found(0.02), "cudnn": found(0.04)}, "cudnn") == []
    for error in (0.3, math.nan):
        (line,) = accelerator.worse_than_xla({"xla": found(0.02), "cudnn": found(error)}, "cudnn")
        assert line.startswith("cudnn under mask none: result off by")


# ---- how they are taken --------------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch):
    """Every reading that was asked for, in order; each is quick, and says so."""
    calls = []

    def take(work, way, arguments, environment, timeout):
        calls.append((work, way))
        return {"seconds": float(len(calls)), "peak_gb": 1.0}

    monkeypatch.setattr(reading, "take", take)
    return calls


ROWS = [Row("a", "", "matmul", ("ours", "torch")), Row("b", "", "opening", ("ours",))]


def test_ways_take_turns_and_a_killed_run_goes_on_where_it_was(tmp_path, taken, monkeypatch):
    path = tmp_path / "new" / "readings.json"
    said = []

    def killed(row, way, folder, timeout):
        if len(taken) == 3:
            raise KeyboardInterrupt
        return original(row, way, folder, timeout)

    original = collecting._taken
    monkeypatch.setattr(collecting, "_taken", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(continued(path), ROWS, 2, said.append)
    assert taken == [("matmul", "ours"), ("matmul", "torch"), ("matmul", "ours")]
    monkeypatch.setattr(collecting, "_taken", original)
    collection = continued(path)
    collect(collection, ROWS, 2, said.append)
    assert taken[3:] == [("matmul", "torch"), ("opening", "ours"), ("opening", "ours")]
    assert [x["seconds"] for x in collection.found["a"]["ours"]] == [1, 3]
    assert said[-1] == "[6/6] b, ours, 2 of 2: 6 s"
    assert json.loads(path.read_text())["rows"] == collection.found
    collect(continued(path), ROWS, 3, said.append)  # more of them: only those are read
    assert len(taken) == 9


def test_readings_of_another_machine_or_code_are_not_mixed(tmp_path, taken, monkeypatch):
    path = tmp_path / "readings.json"
    collect(continued(path), ROWS, 1, [].append)
    described = machine.describe()
    assert machine.describe() == described  # asked again, it says the same
    monkeypatch.setattr(machine, "describe", lambda: described | {"commit": "another", "cores": described["cores"]})
    continued(path)  # the same code under another commit's name
    monkeypatch.setattr(machine, "describe", lambda: described | {"cpu": "another", "code": "another"})
    with pytest.raises(q.InputError, match=r"readings\.json: its readings are of another cpu and code"):
        continued(path)
    path.write_text("{")
    with pytest.raises(q.InputError, match="no file of readings"):
        continued(path)


def test_what_the_time_does_not_allow_is_named(tmp_path, monkeypatch):
    def late(work, way, arguments, environment, timeout):
        assert 0 < timeout <= 100
        raise subprocess.TimeoutExpired(work, timeout)

    monkeypatch.setattr(reading, "take", late)
    now = collecting.time.monotonic()
    for until in (now + 100, now - 1):
        assert collect(continued(tmp_path / "x.json"), ROWS, 1, [].append, until) == ["a ours", "a torch", "b ours"]


def test_the_others_of_a_machine_are_those_that_are_not_ours(monkeypatch):
    at = {"busy": 10.0, "own": 3.0, "elapsed": 100.0}
    monkeypatch.setattr(machine, "_busy_seconds", lambda: at["busy"])
    monkeypatch.setattr(machine, "_own_seconds", lambda: at["own"])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: at["elapsed"])
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    others = machine.Others()
    at.update(busy=19.0, own=8.0, elapsed=110.0)  # 9 s of work in 10 s on 2 cores, 5 of them ours
    assert others.share() == pytest.approx(0.2)
    at.update(busy=None)
    assert others.share() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("run_all", "--only", "mdlm,mdml"), "--only mdml: no such row; choose of matmul, training-small"),
        (("run_all", "--readings", "0"), "--readings must be at least 1"),
        (("run_all", "--table", "--out", "nowhere.json"), "nowhere.json is not there"),
        (("scaling", "--only", "width"), "--only width: no such series; choose of batch, layers, length, texts"),
        (("scaling", "--longest", "256"), "--longest 512"),
    ],
)
def test_wrong_flags_are_told_in_a_line(words, part):
    done = run_program(f"benchmarks.{words[0]}", *words[1:], check=2)
    assert part in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# ---- the ways do the same work -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: tmp_path_factory.mktemp("models") / kind for kind in ("full", "causal")}
    for kind, folder in made.items():
        # Wide weights, so that no two choices are nearer to each other than rounding.
        torch_models.make_folder(folder, {**TINY, "initializer_range": 0.35}, is_causal=kind == "causal")
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ways"),
    [("full", ("ours", "torch")), ("cached", ("ours", "torch", "dllm")), ("autoregressive", ("ours", "torch"))],
)
@pytest.mark.parametrize("steps", [4, 16])
def test_all_ways_of_writing_write_the_same(folders, kind, ways, steps):
    folder = folders["causal" if kind == "autoregressive" else "full"]
    settings = {"mask": 511, "rows": 2, "gen_length": 16, "block_length": 8, "steps": steps, "times": 1}
    written = [writing.read(way, folder=str(folder), kind=kind, **settings)["text"] for way in ways]
    assert len(set(written)) == 1


@pytest.mark.slow
def test_both_torch_losses_are_llada_s():
    rows_of_ids = np.random.default_rng(0).integers(0, 511, (2, 32), dtype=np.int32)
    losses = []
    for way in ("torch", "dllm"):
        torch.manual_seed(0)
        run = training.in_torch(way, TINY, 2, 32, "float32")
        losses.append([run(rows_of_ids) for _ in range(3)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(set(losses[0])) == 3


@pytest.mark.slow
def test_torchs_model_sees_what_comes_later(folders):
    tokens = torch.arange(16)[None]
    other = tokens.clone()
    other[0, -1] = 99
    for model in (torch_models.drawn(TINY), torch_models.opened(folders["full"])):
        with torch.no_grad():
            first, second = (model(ids).logits[0, 0] for ids in (tokens, other))
        assert (first - second).abs().max() > 1e-3


# ---- whole programs ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_all_reads_prints_and_reads_nothing_twice(tmp_path):
    command = ("benchmarks.run_all", "--only", "matmul", "--readings", "2", "--out", tmp_path / "readings.json")
    done = run_program(*command)
    assert [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("[")] == [
        "[1/4] matmul, ours, 1 of 2", "[2/4] matmul, torch, 1 of 2", "[3/4] matmul, ours, 2 of 2",
        "[4/4] matmul, torch, 2 of 2",
    ]  # fmt: skip
    assert "| one product of 2048² × 2048² numbers |" in done.stdout
    assert "GFLOP/s, " in done.stdout
    again = run_program(*command)
    assert again.stdout == done.stdout
    assert "[" not in again.stderr
    assert run_program(*command, "--table").stdout == done.stdout


@pytest.mark.soak
def test_scaling_reads_draws_and_judges(tmp_path):
    command = ("benchmarks.scaling", "--only", "length", "--longest", "512", "--readings", "1")
    done = run_program(*command, "--out", tmp_path / "scaling.json")
    assert "| tokens of the row | 512 |" in done.stdout
    assert "length: memory is " in done.stdout
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_scaling_draws_a_panel_for_each_series_and_memory():
    by_name = {name: [growth.Measured(n, n, 10.0, 1.0) for n in (1, 2, 4)] for name in scaling.HEADS}
    figure = scaling.draw(by_name)
    assert len(figure.axes) == 5
    scaling.pyplot().close(figure)


@pytest.mark.soak
def test_accelerator_runs_its_small_form_where_there_is_none(tmp_path):
    out = tmp_path / "accelerator.json"
    done = run_program("benchmarks.accelerator", "--out", out)
    assert "no accelerator: a tiny shape, whose times say nothing" in done.stdout
    for name in ("forward pass", "training step", "1 × 16 tokens written", "4 × 16 tokens written"):
        assert name in done.stdout
    assert "| block_diffusion | " in done.stdout
    assert "left out" not in done.stdout
    errors = json.loads(out.read_text())["rows"]["attention"]
    assert set(errors) == {"xla", "splash_interpret"}
    for of_way in errors.values():
        for error in of_way[0]["errors"].values():
            assert 0 < error["result"] < 0.1
            assert 0 < error["gradients"] < 0.2
    late = run_program("benchmarks.accelerator", "--minutes", "0", "--out", tmp_path / "other.json", check=2)
    assert "--minutes 0 were over before the devices were found" in late.stderr


# ---- how fast it is ------------------------------------------------------------------------------------------

# Others' time over ours may not fall below these: about half of what two quiet cores showed. What does was made slower,
# whatever else the machine does.
LEAST = {"training-small": 0.4, "mdlm": 0.6}


@pytest.mark.soak
def test_ours_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # as users compile
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    chosen = [replace(row, ways=("ours", "torch")) for row in rows.all_rows(compiles=False) if row.name in LEAST]
    collection = continued(tmp_path / "readings.json")
    for readings in (1, 3):  # more where the first says that it is behind, which others' work may have done
        assert collect(collection, chosen, readings) == []
        ratios = {name: table.ratio(of_row["torch"], of_row["ours"]) for name, of_row in collection.found.items()}
        assert set(ratios) == set(LEAST)
        behind = {name: r for name, r in ratios.items() if r.median < LEAST[name]}
        chosen = [row for row in chosen if row.name in behind]
    assert behind == {}
