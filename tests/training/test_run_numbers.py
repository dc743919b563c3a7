"""Numbers for a person (K14, K9): means of intervals, where a run stands, the banner, early refusals, hints."""

import datetime
import json
import math
import os
import shlex
import shutil
import time
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA
from test_checkpoints import assert_same_lines, at_update  # noqa: F401
from test_train import assert_same, finished, run  # noqa: F401

import qwen3llada_jax as q
from qwen3llada_jax import cli
from sample import generate, inputs
from train import loop
from train.monitor import banner, interval
from train.monitor.jsonl import read_lines
from train.runtime import hints

EVERY = {"evaluation.steps": 3}


def lines(out: Path, field: str = "loss") -> list[dict]:
    return [r for r in read_lines(out / "metrics.jsonl") if field in r]


# ---- means of an interval ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_k14_a_line_is_the_mean_of_its_interval(start, tmp_path, monkeypatch):
    """Against the lines of the same run logged at every update: weighted by tokens, noised tokens, updates."""
    monkeypatch.setattr("train.loop.evaluate", lambda *_: {"eval_loss": 1.0, "eval_noised_perplexity": 1.0})
    out, every = tmp_path / "run", tmp_path / "every"
    whole = {"training.noise.random_length_prob": 0}  # else the tokens told are not those weighed by
    assert_same(run(start, out, **EVERY, **whole), run(start, every, **whole))
    single, found = lines(every), lines(out)
    assert [r["step"] for r in found] == [1, 3, 6]
    for line, part in zip(found, (slice(0, 1), slice(1, 3), slice(3, 6)), strict=True):
        ones = single[part]
        tokens = np.diff([0, *(r["tokens"] for r in single)])[part]
        noised = tokens * [r["noised_share"] for r in ones]
        mean = {
            "loss": np.average([r["loss"] for r in ones], weights=tokens),
            "ce": np.average([r["ce"] for r in ones], weights=noised),
            "noised_share": noised.sum() / tokens.sum(),
            "grad_norm": np.mean([r["grad_norm"] for r in ones]),
            "grad_norm_max": np.max([r["grad_norm"] for r in ones]),
            "update_norm": np.mean([r["update_norm"] for r in ones]),
            "param_norm": ones[-1]["param_norm"],
            "lr": ones[-1]["lr"],
        }
        assert {k: line[k] for k in mean} == pytest.approx(mean, rel=1e-5)
        assert line["noised_perplexity"] == pytest.approx(math.exp(line["ce"]), rel=1e-5)


def test_k14_bands_are_weighted_and_skipped_updates_do_not_count():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])

    def metrics(loss, norm, ce, noised, *, taken=True):
        sums = {"ce": jnp.float32(sum(ce)), "noised": jnp.float32(sum(noised)), "tokens": jnp.float32(64),
                "weight": jnp.float32(4), "band_ce": jnp.asarray(ce, jnp.float32),
                "band_noised": jnp.asarray(noised, jnp.float32), "next_ce": jnp.float32(3 * loss),
                "next": jnp.float32(2)}  # fmt: skip
        scalars = {"loss": loss, "grad_norm": norm, "update_norm": 1.0, "param_norm": 5.0}
        return {"sums": sums, "taken": jnp.bool_(taken)} | {k: jnp.float32(v) for k, v in scalars.items()}

    total = interval.fresh(mesh)
    total = interval.add(total, metrics(2.0, 1.0, [10, 0, 6, 0], [5, 0, 2, 0]))
    total = interval.add(total, metrics(float("nan"), float("inf"), [9, 9, 9, 9], [1, 1, 1, 1], taken=False))
    total = interval.fresh(mesh, json.loads(json.dumps(interval.to_json(total))))  # a stop in between
    total = interval.add(total, metrics(90.0, 7.0, [9, 9, 9, 9], [1, 1, 1, 1], taken=False))  # a spike
    total = interval.add(total, metrics(4.0, 3.0, [1, 8, 0, 0], [5, 2, 0, 0]))
    line = interval.read(total)
    assert (line["loss"], line["grad_norm"], line["grad_norm_max"], line["param_norm"]) == (3.0, 2.0, 7.0, 5.0)
    assert [line[f"ce_t{i}"] for i in range(3)] == pytest.approx([1.1, 4.0, 3.0])
    assert math.isnan(line["ce_t3"])
    assert line["ce"] == pytest.approx(25 / 14)
    assert line["noised_share"] == pytest.approx(14 / 128)
    assert line["next_ce"] == pytest.approx((6 + 12) / 4)
    nothing = interval.read(interval.add(interval.fresh(mesh), metrics(float("nan"), math.inf, [1] * 4, [1] * 4,
                                                                       taken=False)))  # fmt: skip
    assert math.isnan(nothing["loss"])
    assert math.isnan(nothing["grad_norm_max"])


@pytest.mark.soak
@pytest.mark.slow
def test_k14_a_stop_within_an_interval_changes_no_line(start, tmp_path, monkeypatch, at_update):  # noqa: F811
    monkeypatch.setattr("train.loop.evaluate", lambda *_: {"eval_loss": 1.0, "eval_noised_perplexity": 1.0})
    run(start, tmp_path / "whole", **EVERY)
    with monkeypatch.context():
        at_update(5, lambda: os.kill(os.getpid(), 15))
        run(start, tmp_path / "run", **EVERY)
    run(start, tmp_path / "run", **EVERY)
    assert_same_lines(tmp_path / "run", tmp_path / "whole")
    times = [r["elapsed"] for r in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert times == sorted(times)  # of both starts


# ---- where a run stands --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_k14_every_record_says_when_and_how_far(finished, start):  # noqa: F811
    records = read_lines(finished[0] / "metrics.jsonl")
    rows = 244  # full rows of the text
    for record in records:
        assert datetime.datetime.fromisoformat(record["time"]).tzinfo is not None
        assert record["elapsed"] > 0
        assert record["epoch"] == record["step"] * 8 / rows
        assert 0 < record["tokens"] <= record["step"] * 8 * 32


@pytest.mark.slow
def test_k14_samples_and_streams(start, tmp_path):
    """A stream has no epochs that anybody knows of."""
    more = {"dataset.streaming": True, "training.max_steps": 1, "evaluation.prompts": '["A"]',
            "evaluation.max_new_tokens": 2, "evaluation.sampling_steps": 2}  # fmt: skip
    run(start, tmp_path / "run", **more)
    (sample,) = read_lines(tmp_path / "run" / "samples.jsonl")
    assert {"time", "elapsed", "tokens", "epoch"} < set(sample)
    assert sample["epoch"] is None
    assert sample["tokens"] == 8 * 32


@pytest.mark.soak
@pytest.mark.slow
def test_k14_no_speed_holds_a_compile(start, finished, tmp_path, monkeypatch):  # noqa: F811
    """Neither of a fresh run nor of one that goes on, and neither of a shape that is new later."""
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    for step in ("4", "6"):
        shutil.rmtree(out / "checkpoints" / step)
    real = loop.compiler

    def slow(step_fn):
        compile_step, times = real(step_fn), []

        def one(*rest):
            times.append(1)
            if len(times) in (1, 4):  # made ready, and before the third update
                time.sleep(3)
            compile_step(*rest)

        return one

    monkeypatch.setattr("train.run.compiler", slow)
    run(start, out)
    assert all(r["seconds_per_update"] < 2 for r in lines(out)), [r["seconds_per_update"] for r in lines(out)]


@pytest.mark.soak
@pytest.mark.slow
def test_k14_the_banner(start, tmp_path, capsys):
    more = {"training.max_steps": 2, "evaluation.do_eval_loss": False, "training.micro_batch_size": 4,
            "training.freeze": "[embed_tokens]"}  # fmt: skip
    run(start, tmp_path / "run", devices=2, **more, **{"mesh.data": 2})
    said = capsys.readouterr().out
    weights = 56_544
    for part in (
        "devices: 2 × cpu (cpu); mesh data 2 × fsdp 1 × tensor 1; attention xla; computing in float32",
        f"model: {weights:,} parameters, {weights - 1088 * 32:,} of them trained",
        "updates: 2 updates, each of 8 rows in 2 forward passes, 256 tokens, 512 in all",
        "4 at most on the disk at once",
        "free there",
        "compiling the training step for 8 rows of 32 tokens",
    ):
        assert part in said, part
    size = sum(p.stat().st_size for p in (tmp_path / "run/checkpoints/2").rglob("*") if p.is_file())
    told = float(said.split("checkpoints: ")[1].split(" kB each")[0]) * 1000
    assert told == pytest.approx(size, rel=0.2)


# ---- refused before the data are read ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"training.freeze": "[nothing]"}, "'nothing' matches no parameter"),
        ({"mesh.data": 1, "mesh.tensor": 3}, "the mesh does not divide"),
        ({"project.profile": 9}, "project.profile 9 needs 11 updates"),
        ({"evaluation.eval_name": "null"}, "so nothing is held out"),
        ({"training.lr": 0.5, "project.output_dir": "run"}, "training.lr 0.001 → 0.5"),
        ({"training.grad_clip": 0, "training.resume_from": "run"}, "the state of another model or optimizer"),
        ({"training.resume_from": "never", "project.output_dir": "run"}, "holds the checkpoints of another run"),
        ({"model.base_model_path": "noweights"}, "noweights: no weights in it"),
        ({"model.base_model_path": "others"}, "weights and config.json do not agree"),
        ({"project.output_dir": "full"}, r"full: a checkpoint takes 679 kB and only 5 B are free there; make room"),
    ],
)
def test_k14_what_is_cheap_to_refuse_is_refused_first(start, finished, tmp_path, monkeypatch, changes, part):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.run.training_batches", lambda *_: pytest.fail("data were read"))
    shutil.copytree(finished[0], "run")
    shutil.copytree(start, "noweights")
    Path("noweights/model.safetensors").unlink()
    shutil.copytree(start, "others")
    config = json.loads(Path("others/config.json").read_text())
    Path("others/config.json").write_text(json.dumps(config | {"intermediate_size": 49}))
    if "full" in changes.values():
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(banner.shutil, "disk_usage", lambda _: usage(9, 4, 5))
    out = Path(str(changes.get("project.output_dir", "new")))
    before = sorted(p for p in Path().rglob("*") if p.name != ".lock")
    with pytest.raises(q.InputError) as caught:
        run(start, out, devices=3 if "mesh.tensor" in changes else 1, **changes)
    assert part in str(caught.value)
    assert sorted(p for p in Path().rglob("*") if p.name != ".lock") == before


# ---- what a refusal and an end advise works ------------------------------------------------------------------


def advised(message: str) -> dict[str, str]:
    """The flags that a message names, as a shell splits them."""
    words = shlex.split(message[message.index("--project.output_dir") :])
    return {words[i].removeprefix("--"): words[i + 1] for i in (0, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training.lr": 0.5}, "training.resume_from"),
        pytest.param({"training.max_steps": 7}, "training.resume_from", marks=pytest.mark.soak),
        pytest.param({"dataset.name": "other.txt"}, "training.resume_from", marks=pytest.mark.soak),
        ({"optim.name": "lion"}, "model.qwen3llada_model_path"),
        pytest.param({"training.grad_clip": 0}, "model.qwen3llada_model_path", marks=pytest.mark.soak),
    ],
)
def test_k14_a_refusal_on_resume_names_the_way_that_works(start, finished, tmp_path, monkeypatch, changes, key):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.loop.evaluate", lambda *_: {"eval_loss": 1.0, "eval_noised_perplexity": 1.0})
    shutil.copytree(finished[0], "a run")
    shutil.rmtree("a run/checkpoints/6")
    Path("other.txt").write_text((start / "text.txt").read_text().replace("e", "a"))
    with pytest.raises(q.InputError) as caught:
        run(start, Path("a run"), **changes)
    way = advised(str(caught.value))
    assert way == {"project.output_dir": "NEW", key: "a run"}
    run(start, Path("NEW"), **{k: v for k, v in (changes | way).items() if k != "project.output_dir"})
    assert lines(Path("NEW"))[0]["step"] == (5 if key == "training.resume_from" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pretrain", "sft"])
def test_k14_the_hint_at_the_end_runs_as_pasted(start, tmp_path, monkeypatch, capsys, mode):
    monkeypatch.chdir(tmp_path)
    more = {"training.max_steps": 1, "evaluation.do_eval_loss": False, "training.mode": mode, "training.max_length": 64}
    if mode == "sft":
        more["dataset.name"] = DATA / "dialogue" / "valid.jsonl"
    run(start, Path("my runs/it's one"), **more)
    hint = capsys.readouterr().out.splitlines()[-1].split("sample from it with: ")[1]
    python, dash, program, *arguments = shlex.split(hint)
    assert shutil.which(python) is not None
    assert (dash, program) == ("-m", "sample.generate")
    asked = cli.parse(generate.Flags, arguments)
    generate.settings_of(asked)
    assert generate.asked(asked)
    folder = inputs.open_model(asked)
    assert folder.path == Path("my runs/it's one")
    (request,) = inputs.requests_of(generate.asked(asked), folder, chat=asked.chat)
    assert request.ids


def test_k14_a_hint_names_this_python(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shlex.split(hints.command("train.report", "a b"))[1:] == ["-m", "train.report", "a b"]
    assert os.path.samefile(shlex.split(hints.command("x"))[0], os.path.realpath(hints.sys.executable))
    (tmp_path / "python").symlink_to(hints.sys.executable)
    assert not hints.command("x").startswith("python ")  # a link of another environment finds other packages


# ---- perplexities --------------------------------------------------------------------------------------------


def test_k9_each_perplexity_is_what_its_name_says(finished, capsys):  # noqa: F811
    for record in lines(finished[0], "eval_loss"):
        assert record["eval_bound_perplexity"] == pytest.approx(math.exp(record["eval_loss"]), rel=1e-5)
        assert record["eval_noised_perplexity"] == pytest.approx(math.exp(record["eval_ce"]), rel=1e-5)
        assert not {"eval_perplexity", "perplexity"} & set(record)
    for record in lines(finished[0]):
        assert record["noised_perplexity"] == pytest.approx(math.exp(record["ce"]), rel=1e-5)


@pytest.mark.slow
def test_k9_under_random_tokens_nothing_is_bounded(start, tmp_path, capsys):
    run(start, tmp_path / "run", **{"training.noise.noise_type": "random_replace", "training.max_steps": 1})
    (record,) = lines(tmp_path / "run", "eval_loss")
    assert "eval_bound_perplexity" not in record
    said = capsys.readouterr().out
    assert "at most" not in said.split("held out")[1].splitlines()[0]
