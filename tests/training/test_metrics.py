"""Seeing a run: FLOPs and rates, updates that are refused, trackers, the prefetcher, the trace and the report."""

import html.parser
import json
import shutil
import struct
import sys
import threading
import time
import types
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import DATA, TINY, assert_one_line_error, run_program
from flax import nnx
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q
from qwen3llada_jax import sharding
from qwen3llada_jax.model import model
from qwen3llada_jax.model.config import PRESETS
from train import step as training
from train.config.parse import read_config
from train.config.schema import TrainingConfig
from train.data.loader import Batch
from train.data.prefetch import prefetch
from train.monitor import model_flops, trackers
from train.monitor.console import Progress
from train.monitor.jsonl import JsonLines, read_lines
from train.monitor.profiler import Profile
from train.monitor.throughput import MEASURED, Throughput, peak_of_run
from train.objective import objective_of
from train.objectives.example import DeviceBatch
from train.optim import bad_updates
from train.optim.optimizer import optimizer
from train.reporting.html import Run, summary
from train.reporting.plots import moving_average

SMALL = q.ModelConfig(64, 16, 32, 2, 4, 2, 8, tie_word_embeddings=True, mask_token_id=63)


def config_of(**changes):
    base = {"dataset.name": "x", "model.base_model_path": "x", "training.batch_size": 4, "training.max_length": 16}
    return read_config(None, [(k, str(v)) for k, v in {**base, **changes}.items()])


# ---- FLOPs and rates -----------------------------------------------------------------------------------------


def matmul_flops(jaxpr) -> int:
    """2 · m · n · k of every dot_general of a jaxpr, a scan's body as often as it runs."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * int(np.prod([left[i] for i in contracted]))
        inner = jax.core.jaxprs_in_params(eqn.params)
        total += eqn.params.get("length", 1) * sum(matmul_flops(j) for j in inner)
    return total


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_of_the_matmuls_of_forward_and_backward(tied):
    config = q.ModelConfig(96, 24, 40, 3, 4, 2, 10, tie_word_embeddings=tied)
    graphdef, shapes, _ = model.abstract(config, runtime=model.Runtime(attention="xla"))
    B, L = 2, 12
    tokens = jnp.zeros((B, L), jnp.int32)
    forward = lambda params: nnx.merge(graphdef, params)(tokens).sum()  # noqa: E731
    ours = model_flops.training_flops_per_token(config, L) * B * L
    assert matmul_flops(jax.make_jaxpr(forward)(shapes).jaxpr) * 3 == ours
    assert matmul_flops(jax.make_jaxpr(jax.grad(forward))(shapes).jaxpr) == ours


def test_flops_by_hand():
    # Qwen3-0.6B: 28 layers of (q 1024·2048, k and v 1024·1024, o 2048·1024, MLP 3·1024·3072), head 151936·1024.
    config = PRESETS["qwen3-0.6b"]
    layer = 1024 * 2048 * 2 + 1024 * 1024 * 2 + 3 * 1024 * 3072
    assert model_flops.matmul_parameters(config) == 28 * layer + 151_936 * 1024
    assert (
        model_flops.training_flops_per_token(config, 4096) == 6 * (28 * layer + 151_936 * 1024) + 12 * 28 * 4096 * 2048
    )


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197), ("TPU v5", 459), ("TPU v5p", 459),
        ("TPU v6 lite", 918), ("TPU v6e", 918), ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4), ("NVIDIA A100-SXM4-40GB", 311.9), ("NVIDIA A10G", 70), ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362), ("NVIDIA GB200", 2500), ("cpu", None), ("NVIDIA L40", None), ("TPU v3", None),
    ],
)  # fmt: skip
def test_published_peaks(kind, tflops):
    assert model_flops.peak_flops(SimpleNamespace(device_kind=kind)) == (None if tflops is None else tflops * 1e12)


def test_peak_of_a_run():
    assert peak_of_run(config_of()) is None  # a CPU
    assert peak_of_run(config_of(peak_tflops=2)) == 2e12 * jax.device_count()


def test_meter_leaves_out_pauses_and_counts_padding():
    now = [100.0]
    throughput = Throughput(SMALL, 1e9, clock=lambda: now[0])
    numbers = np.zeros(2, np.int32)
    for real in (8, 5):
        with throughput.waiting():
            now[0] += 0.5
        now[0] += 1.5
        throughput.count(
            Batch(np.zeros((2, 8), np.int32), numbers, np.array([8, real], np.int32), numbers, numbers + 8)
        )
    with throughput.paused(jnp.zeros(3)):
        now[0] += 1000
    rates = throughput.read()
    expected = {
        "tokens_per_second": 32 / 4, "real_tokens_per_second": 29 / 4, "seconds_per_update": 2.0, "data_wait": 0.25,
        "mfu": 32 * model_flops.training_flops_per_token(SMALL, 8) / 4 / 1e9,
    }  # fmt: skip
    assert rates == pytest.approx(expected)
    assert set(rates) == set(MEASURED) - {"elapsed", "time"}
    throughput = Throughput(SMALL, None, clock=lambda: now[0])
    throughput.count(Batch(np.zeros((2, 8), np.int32), numbers, numbers + 8, numbers, numbers + 8))
    now[0] += 2
    assert set(throughput.read()) == {"tokens_per_second", "seconds_per_update", "data_wait"}


# ---- bad updates ---------------------------------------------------------------------------------------------


def test_judge_against_numpy():
    draw = np.random.default_rng(0)
    history = np.full((2, bad_updates.WINDOW), np.nan, np.float32)
    for n in (0, bad_updates.FEWEST - 1, bad_updates.FEWEST, bad_updates.WINDOW):
        if n:
            history[:, -n:] = draw.lognormal(size=(2, n))
        medians = np.nanmedian(history, axis=1) if n else np.ones(2)
        for factors in ([2.9, 2.9], [3.1, 2.9], [2.9, 3.1]):
            now = (medians * factors).astype(np.float32)
            is_spike = n >= bad_updates.FEWEST and max(factors) > 3
            assert int(bad_updates.status_of(jnp.asarray(now), jnp.asarray(history), 3.0)) == (
                bad_updates.SPIKE if is_spike else bad_updates.GOOD
            )
        assert int(bad_updates.status_of(jnp.array([1e30, 1.0]), jnp.asarray(history), None)) == bad_updates.GOOD
    for bad in (np.nan, np.inf, -np.inf):
        for now in ([bad, 1.0], [1.0, bad]):
            for factor in (3.0, None):
                assert (
                    int(bad_updates.status_of(jnp.array(now), jnp.asarray(history), factor)) == bad_updates.NOT_FINITE
                )


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("rule", ["on_nan", "on_spike"])
def test_a_skipped_update_leaves_optimizer_and_weights_bitwise(rule):
    settings = TrainingConfig(**{rule: "skip"}, spike_factor=4.0)
    tx, plain = bad_updates.skip_bad_updates(optax.adamw(1e-2), settings), optax.adamw(1e-2)
    params = {"w": jnp.array([1.0, -2.0, 0.0, -0.0, 3e-20]), "b": jnp.array([jnp.pi])}
    update = jax.jit(tx.update)
    state, reference = tx.init(params), plain.init(params)
    expected = params
    draw = np.random.default_rng(1)
    for i in range(30):
        gradient = jax.tree.map(lambda p: jnp.asarray(draw.normal(size=p.shape), jnp.float32), params)
        loss = jnp.float32(draw.uniform(1, 2))
        before = bits((params, state.inner))
        is_bad = i in (20, 25)
        if is_bad:
            gradient["b"] = jnp.array([np.nan if rule == "on_nan" else 1e6])
        updates, state = update(gradient, state, params, loss=loss)
        params = optax.apply_updates(params, updates)
        if is_bad:
            assert bits((params, state.inner)) == before
        else:
            assert bits(params) != before[: len(bits(params))]
            updates, reference = plain.update(gradient, reference, expected)
            expected = optax.apply_updates(expected, updates)
        assert int(state.verdict) == (
            (bad_updates.NOT_FINITE if rule == "on_nan" else bad_updates.SPIKE) if is_bad else bad_updates.GOOD
        )
    assert int(state.skipped) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)  # as if never met
    assert np.isfinite(np.asarray(state.history[0])).sum() == (28 if rule == "on_nan" else 30)


@pytest.mark.slow
def test_the_training_step_skips_and_compiles_once():
    config = config_of(**{"training.on_nan": "skip", "training.on_spike": "skip", "training.ema_decay": 0.5})
    automatic = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((1, 1, 1), sharding.MESH_AXES, automatic, devices=jax.devices()[:1])
    graphdef, _, roles = model.abstract(SMALL)
    tx = bad_updates.skip_bad_updates(optimizer(config, 10, roles), config.training)
    _, shardings = training.state_shardings(SMALL, tx, mesh, ema=True)
    with jax.set_mesh(mesh):
        fresh = lambda: nnx.to_pure_dict(nnx.state(q.Qwen3LLaDA(SMALL, rngs=nnx.Rngs(0)), nnx.Param))  # noqa: E731
        params = jax.jit(fresh, out_shardings=shardings["params"])()
        opt = jax.jit(tx.init, out_shardings=shardings["opt"])(params)
        state = {"params": params, "opt": opt, "step": jax.device_put(jnp.int32(0), shardings["step"])}
        state["ema"] = jax.tree.map(lambda x: x + 1, params)
        step_fn = training.make_train_step(
            graphdef, config, tx, shardings, jax.random.key(0), objective_of(config, 63, 63)
        )
        rows = jnp.zeros(4, jnp.int32)
        batch = DeviceBatch(jnp.ones((4, 16), jnp.int32), rows, rows + 16, jnp.arange(4))
        batch = jax.tree.map(lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P(("data", "fsdp")))), batch)

        before, average = bits(state["params"]), bits(state["ema"])
        state, metrics = step_fn(state, batch)
        assert bits(state["params"]) != before
        assert bits(state["ema"]) != average
        assert (int(metrics["status"]), int(metrics["skipped"])) == (bad_updates.GOOD, 0)

        usual = jax.device_put(jnp.full((2, bad_updates.WINDOW), 1e-6, jnp.float32), shardings["opt"].history)
        state["opt"] = state["opt"]._replace(history=usual)
        before = bits((state["params"], state["opt"].inner, state["ema"]))
        state, metrics = step_fn(state, batch)
        assert (int(metrics["status"]), int(metrics["skipped"])) == (bad_updates.SPIKE, 1)
        assert bits((state["params"], state["opt"].inner, state["ema"])) == before
        assert float(metrics["update_norm"]) == 0

        norm = jax.device_put(state["params"]["norm"].at[3].set(jnp.nan), shardings["params"]["norm"])
        state["params"]["norm"] = norm
        before = bits((state["params"], state["opt"].inner, state["ema"]))
        state, metrics = step_fn(state, batch)
        assert (int(metrics["status"]), int(metrics["skipped"]), int(state["step"])) == (bad_updates.NOT_FINITE, 2, 3)
        assert bits((state["params"], state["opt"].inner, state["ema"])) == before
    assert step_fn._cache_size() == 1


def test_what_the_person_watching_is_told():
    said = []
    metrics = {"status": bad_updates.NOT_FINITE, "loss": float("nan"), "grad_norm": 3.0, "skipped": 1}
    bad_updates.report(7, metrics, TrainingConfig(on_nan="skip"), said.append)
    assert said == ["update 7: loss nan, gradient norm 3: not finite; skipped (training.on_nan), 1 so far"]
    with pytest.raises(q.InputError, match=r"update 7: loss nan, gradient norm 3: not finite; stopped"):
        bad_updates.report(7, metrics, TrainingConfig(), said.append)
    metrics |= {"status": bad_updates.SPIKE, "loss": 55.5}
    with pytest.raises(q.InputError, match=r"above 10 × its running median; stopped \(training\.on_spike\)"):
        bad_updates.report(8, metrics, TrainingConfig(on_spike="stop"), said.append)
    bad_updates.report(9, metrics | {"status": bad_updates.GOOD}, TrainingConfig(), said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"training.on_nan": "ignore"}, "training.on_nan 'ignore' is unknown; choose one of stop, skip"),
        ({"training.on_spike": "warn"}, "choose one of none, stop, skip"),
        ({"training.spike_factor": 1}, "training.spike_factor must be above 1"),
        ({"project.profile": -1}, "project.profile must be 0 or more"),
        ({"project.peak_tflops": 0}, "project.peak_tflops must be above 0"),
    ],
)
def test_impossible_settings(changes, part):
    with pytest.raises(q.InputError) as caught:
        config_of(**changes)
    assert part in str(caught.value)


# ---- prefetching ---------------------------------------------------------------------------------------------


def test_prefetch_keeps_order_and_runs_no_further_than_its_queue():
    made = []

    def source():
        for i in range(10):
            made.append(i)
            yield i, f"state {i}"

    ahead = prefetch(source(), depth=2)
    assert next(ahead) == (0, "state 0")
    time.sleep(0.3)
    assert len(made) <= 4  # the one taken, two queued, one in hand
    assert list(ahead) == [(i, f"state {i}") for i in range(1, 10)]


def test_prefetch_hands_on_exceptions_in_their_place_and_ends_its_thread():
    def source():
        yield 1
        raise q.InputError("row 2 is bad")

    ahead = prefetch(source())
    assert next(ahead) == 1
    with pytest.raises(q.InputError, match="row 2 is bad"):
        next(ahead)
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


# ---- trackers, files and the terminal ------------------------------------------------------------------------

RECORD = {"step": 7, "loss": 2.5, "ce_t0": float("nan"), "skipped": 1}
HELD_OUT = {"step": 7, "eval_loss": 3.5}


@pytest.mark.parametrize(("key", "value", "package"), [("tensorboard", True, "tensorboardX"), ("wandb", "p", "wandb")])
def test_a_missing_tracker_names_its_package(monkeypatch, key, value, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(q.InputError, match=rf"evaluation.{key} needs {package}: pip install {package}$"):
        trackers.require(config_of(**{f"evaluation.{key}": value}))
    trackers.require(config_of())


def test_tensorboard_gets_the_records(monkeypatch, tmp_path):
    calls, made = [], []
    writer = SimpleNamespace(
        add_scalar=lambda *a: calls.append(a), flush=lambda: None, close=lambda: calls.append("closed")
    )
    fake = types.ModuleType("tensorboardX")
    fake.SummaryWriter = lambda **settings: made.append(settings) or writer
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    (tracker,) = trackers.open_trackers(config_of(tensorboard=True), tmp_path, 4)
    tracker.write(RECORD)
    tracker.write(HELD_OUT)
    tracker.close()
    assert made == [{"logdir": str(tmp_path / "tensorboard"), "purge_step": 5}]
    assert calls == [("train/loss", 2.5, 7), ("train/skipped", 1.0, 7), ("eval/loss", 3.5, 7), "closed"]


def test_tensorboard_events_are_read_back(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    (tracker,) = trackers.open_trackers(config_of(tensorboard=True), tmp_path, 0)
    tracker.write(RECORD)
    tracker.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, values = file.read_bytes(), {}
    while data:  # a record: length, its checksum, the event, its checksum
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        values |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
        data = data[16 + size :]
    assert values == {"train/loss": (7, 2.5), "train/skipped": (7, 1.0)}


def test_wandb_goes_on_in_the_same_run(monkeypatch, tmp_path):
    logged, made = [], []
    run = SimpleNamespace(
        log=logged.append, finish=lambda: logged.append("finished"), define_metric=lambda *a, **k: made.append((a, k))
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **settings: made.append(settings) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = config_of(wandb="diffusion", output_dir="runs/a")
    for _ in range(2):
        (tracker,) = trackers.open_trackers(config, tmp_path, 0)
    tracker.write(RECORD)
    tracker.close()
    first, _, second, (names, steps) = made
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("diffusion", "a", "allow")
    assert first["config"]["training.batch_size"] == 4
    assert (names, steps) == (("*",), {"step_metric": "step"})
    assert logged == [{"step": 7, "train/loss": 2.5, "train/skipped": 1.0}, "finished"]


def test_other_processes_write_and_print_nothing(monkeypatch, tmp_path, capsys):
    from train.monitor.run_log import RunLog, info

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    line = dict.fromkeys(
        ("loss", "ce", "grad_norm", "grad_norm_max", "lr", "tokens_per_second", "seconds_per_update", "data_wait"), 1.0
    )
    with RunLog(config_of(tensorboard=True), tmp_path, 0, 9) as log:
        log.metrics({"step": 1, **line})
        log.sample({"step": 1, "prompt": "a", "answer": "b"})
        log.info("hello")
        log.advance()
        info("hello")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_lines_on_the_terminal(capsys):
    progress = Progress(0, 100)
    line = {
        "loss": 2.0, "ce": 1.5, "grad_norm": 0.5, "grad_norm_max": 0.75, "lr": 1e-3,
        "tokens_per_second": 12345.6, "seconds_per_update": 2.0,
        "data_wait": 0.5, "mfu": 0.4321, "skipped": 3,
    }  # fmt: skip
    progress.show({"step": 1, **line})
    progress.show({"step": 40, **line})
    first, second = capsys.readouterr().out.splitlines()
    assert "left" not in first  # the compiler's time says nothing of the rest
    for part in ("40/100", "loss 2.0000", "12,346 tokens/s", "MFU 43.2%", "data 50%", "skipped 3", "left 0:02:00"):
        assert part in second


@pytest.mark.parametrize(
    ("text", "part"),
    [('{"step": 1}\nx\n{"step": 2}', "line 2 is not JSON"), ("[1]\n", "line 1 is no record"), ('{"a": 1}', "line 1")],
)
def test_broken_metrics_are_named(tmp_path, text, part):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(q.InputError, match=part):
        read_lines(tmp_path / "metrics.jsonl")


def test_reopened_metrics_forget_what_comes_after(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = JsonLines(path, 2)
    log.write({"step": 3, "loss": float("nan")})
    log.close()
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": None}]


# ---- the report ----------------------------------------------------------------------------------------------


def write_run(folder, *, loss: float, lr: float, logs=None, lines: int = 60):
    logs = logs or folder
    for path in (folder, logs):
        path.mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(1, lines + 1):
        records.append({
            "step": i * 10, "lr": lr, "loss": loss + 1 / i, "ce": loss, "ce_t0": None, "ce_t3": loss, "grad_norm": 1.0,
            "update_norm": 0.1, "param_norm": 9.0, "tokens_per_second": 10.0 if i == 1 else 5000.0, "data_wait": 0.0,
        })  # fmt: skip
    records.append({"step": lines * 10, "eval_loss": loss + 0.25, "eval_ce": loss})
    (logs / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    samples = [{"step": s, "prompt": "Who <is> it?", "answer": f"It & {s}"} for s in (100, 200, 300)]
    (logs / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in samples))
    place = "null" if logs == folder else str(logs)
    (folder / "training.yaml").write_text(f"project: {{log_dir: {place}}}\ntraining: {{lr: {lr}, bf16: true}}\n")


class Texts(html.parser.HTMLParser):
    """The texts of a page by element, and whether its elements are closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.cells, self.links = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "p", "h2", "h3", "summary"):
            self.cells.append(data)


@pytest.mark.slow
def test_report_of_two_runs(tmp_path, monkeypatch, capsys):
    from train import report

    write_run(tmp_path / "a", loss=2.0, lr=0.001)
    write_run(tmp_path / "b", loss=3.0, lr=0.002, logs=tmp_path / "logs of b")
    out = tmp_path / "new" / "loss.png"
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)])
    report.main()
    assert "a: held-out loss 2.2500 after 600 updates" in capsys.readouterr().out
    import matplotlib.image

    pixels = matplotlib.image.imread(out)
    assert pixels.shape[1] > 1500
    for color in ((0x25, 0x63, 0xC9), (0xE0, 0x70, 0x2A)):  # both runs are drawn
        assert (np.abs(pixels[..., :3] * 255 - color).max(axis=-1) < 3).sum() > 500
    page = out.with_suffix(".html").read_text()
    texts = Texts(page)
    assert texts.open == []
    assert texts.links == []  # nothing from elsewhere
    assert page.count("<svg") == 1
    cells = texts.cells
    row = lambda name: cells[cells.index(name) + 1 : cells.index(name) + 3]  # noqa: E731
    assert row("held-out loss") == ["2.2500", "3.2500"]
    assert row("lowest held-out loss") == ["2.2500 (update 600)", "3.2500 (update 600)"]
    assert row("tokens/s") == ["5,000", "5,000"]
    assert row("training.lr") == ["0.001", "0.002"]
    assert "training.bf16" not in cells  # the same in both
    assert "Who <is> it?" in cells
    assert "It & 300" in cells
    assert "1 earlier" in cells
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


def test_k1_a_run_is_named_from_within(tmp_path, monkeypatch, capsys):
    """`.` and `..` are relative paths too, and have no name of their own."""
    from train import report

    (tmp_path / "mine" / "inner").mkdir(parents=True)
    (tmp_path / "mine" / "metrics.jsonl").write_text(json.dumps({"step": 1, "eval_loss": 2.0}) + "\n")
    for place, path in (("mine", "."), ("mine/inner", "..")):
        monkeypatch.chdir(tmp_path / place)
        monkeypatch.setattr(sys, "argv", ["report", path, "--out", str(tmp_path / "l.png")])
        report.main()
        assert capsys.readouterr().out.startswith("mine: held-out loss 2.0000 after 1 updates")


def test_report_of_a_run_without_settings_samples_or_evaluation(tmp_path, monkeypatch):
    from train import report

    write_run(tmp_path / "a", loss=2.0, lr=0.1, lines=1)
    (tmp_path / "a" / "training.yaml").unlink()
    (tmp_path / "a" / "samples.jsonl").unlink()
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "loss": null, "ce": null}\n')
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "a"), "--out", str(tmp_path / "l.png")])
    report.main()
    assert "–" in Texts((tmp_path / "l.html").read_text()).cells


def test_summary_means_over_the_last_tenth():
    records = [{"step": i, "ce": float(i), "loss": 0.0, "tokens_per_second": 1.0} for i in range(1, 101)]
    numbers = summary(Run("a", records, [], {}))
    assert numbers["cross-entropy"] == f"{np.mean(range(91, 101)):.4f}"
    assert numbers["updates"] == "100"
    assert "held-out loss" not in numbers


def test_moving_average_keeps_lines_and_means_at_the_end():
    line = np.arange(50.0)
    np.testing.assert_allclose(moving_average(line, 9)[:-4], line[:-4])  # no lag, from the first value on
    assert moving_average(line, 9)[-1] == pytest.approx(line[-5:].mean())


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda d: None, "no such folder"),
        (lambda d: d.mkdir(), "metrics.jsonl: no such file; is"),
        (lambda d: (d.mkdir(), (d / "metrics.jsonl").write_text("")), "holds no metrics yet"),
        (lambda d: (d.mkdir(), (d / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")), "is not text"),
        (lambda d: (d.mkdir(), (d / "training.yaml").write_text("a: [1")), "training.yaml: cannot be read as YAML"),
        (lambda d: (d.mkdir(), (d / "training.yaml").write_text("- 1")), "does not hold the settings"),
    ],
)
def test_broken_runs_are_named(tmp_path, monkeypatch, make, part):
    from train import report

    make(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "run"), "--out", str(tmp_path / "l.png")])
    with pytest.raises(q.InputError, match=part):
        report.main()
    assert not (tmp_path / "l.png").exists()


# ---- whole runs ----------------------------------------------------------------------------------------------


def test_a_trace_needs_enough_updates(tmp_path):
    with pytest.raises(q.InputError, match=r"project.profile 3 needs 5 updates .* has only 4 to go"):
        Profile(tmp_path, 3, 6, 10)
    Profile(tmp_path, 0, 9, 10)
    Profile(tmp_path, 3, 5, 10)


@pytest.mark.soak
@pytest.mark.slow
def test_runs_stop_skip_trace_and_wait(tmp_path):
    """As typed: a rate that blows the weights up stops the run, or is skipped; a trace and TensorBoard events."""
    start = tmp_path / "start"
    small = dict(vocab_size=1088, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    save_torch(torch_model(0, **small), start)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, start / name)
    text = DATA / "shakespeare" / "valid.txt"
    settings = {
        "model.base_model_path": start, "model.mask_token_id": "auto", "dataset.name": text, "max_length": 32,
        "batch_size": 8, "max_steps": 6, "save_steps": 1, "do_eval_loss": False, "evaluation.steps": 3,
    }  # fmt: skip

    def flags(**more):
        return [f"--{k}={v}" for k, v in {**settings, **more}.items()]

    good = run_program(
        "train.run", *flags(output_dir=tmp_path / "good", profile=2, peak_tflops=1, log_dir=tmp_path / "l")
    )
    assert "trace of 2 update(s)" in good.stdout
    assert list((tmp_path / "l" / "profile").rglob("*.trace.json.gz"))
    records = read_lines(tmp_path / "l" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 3, 6]
    assert all(0 < r["mfu"] < 1 and 0 <= r["data_wait"] < 1 and "skipped" not in r for r in records)

    stopped = run_program("train.run", *flags(output_dir=tmp_path / "stop", lr=1e30, warmup_ratio=0), check=2)
    assert_one_line_error(stopped, "update 2: loss", "nan: not finite; stopped (training.on_nan)")
    assert [p.name for p in (tmp_path / "stop" / "checkpoints").iterdir()] == ["1"]

    skipping = flags(output_dir=tmp_path / "skip", lr=1e30, warmup_ratio=0, on_nan="skip")
    skipped = run_program("train.run", *skipping)
    assert skipped.stdout.count("skipped (training.on_nan)") == 5
    assert read_lines(tmp_path / "skip" / "metrics.jsonl")[-1]["skipped"] == 5
