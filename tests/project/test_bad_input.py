"""Bad input to train.run, train.plan and train.report: one line that names the thing and the fix, nothing written."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_one_line_error, run_program
from safetensors.numpy import load_file, save_file
from test_train import run as trained
from test_train import settings

import qwen3llada_jax as q
from qwen3llada_jax import cli
from train import plan, report, run
from train.checkpoint.base_model import find_base_model
from train.config import unused_keys
from train.config.parse import read_config
from train.config.schema import Config, TrainingConfig, flat
from train.data import sources
from train.data.batches import load_eval_rows, training_batches
from train.data.shuffle import shares
from train.monitor import samples
from train.optim import bad_updates
from train.planning.hardware import hardware_of


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """An InputError, whose line has these parts."""
    with pytest.raises(q.InputError) as caught:
        yield
    line = " ".join(str(caught.value).split())
    assert all(part in line for part in parts), line


def configured(start: Path, out: Path = Path("unused"), **changes) -> Config:
    return read_config(None, settings(start, out, **{k.replace("__", "."): v for k, v in changes.items()}))


# ---- the configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", flat(Config()))
def test_every_key_refuses_what_is_not_its_type(tmp_path, key):
    """In a file, whose values have types; of a flag any text is a text."""
    *sections, last = key.split(".")
    opened, closed = "".join(f"{s}: {{" for s in sections), "}" * len(sections)
    for text in ("{a: 1}", "[[1]]"):
        (tmp_path / "a.yaml").write_text(f"{opened}{last}: {text}{closed}\n")
        with refused(key):
            read_config(tmp_path / "a.yaml")


OUT_OF_RANGE = {
    "project.seed": {"4294967296": "at most 4294967295", "-1": "0 or more"},
    "project.output_dir": {" ": "must not be ' '"},
    "training.max_steps": {"99999999999": "at most 2147483647", "1e3": "a whole number or nothing, not '1e3'"},
    "training.epochs": {"0": "training.epochs must be above 0, not 0"},
    "training.lr": {"0": "training.lr must be above 0"},
    "optim.betas": {"[0.9]": "a list of 2 numbers", "0.9": "a list of 2 numbers"},
    "dataset.mixture": {"[1]": "dataset.mixture[0] must be {name: …, weight:", "{name: a}": "a list of {name"},
    "evaluation.max_new_tokens": {"0": "at least 1"},
    "evaluation.remasking": {"best": "choose one of low_confidence"},
    "evaluation.wandb": {"": "must not be ''"},
    "distributed.timeout": {"0": "at least 1"},
}


@pytest.mark.parametrize("key", OUT_OF_RANGE)
def test_values_out_of_range(start, key):
    for text, part in OUT_OF_RANGE[key].items():
        with refused(key, part):
            configured(start, **{key: text})


BLOCKS = {"training.block_attention.prompt_sees_answer": True, "training.block_attention.enabled": True}
DIFFUSION = {"training.objective": "block_diffusion"}
# What makes a key of the table have no effect, and beside what it has one; in the table's order.
IN_VAIN = [
    ({"training.loss_smoothing": 0.2}, {"training.loss_impl": "soft_ce"}),
    ({"training.place_bias": 2}, DIFFUSION),
    ({"training.clean_loss": 0.5}, {**DIFFUSION, "training.block_attention.causal_context": True}),
    ({"training.block_attention.causal_context": True}, DIFFUSION),
    ({**DIFFUSION, "training.causal_annealing": 0.5}, {"training.objective": "masked"}),
    ({"training.spike_factor": 5}, {"training.on_spike": "skip"}),
    ({"training.eos_padding": False}, {"training.mode": "sft"}),
    ({"training.block_attention.visibility": "block_causal"}, {"training.block_attention.enabled": True}),
    ({"training.block_attention.prompt_sees_answer": True}, {"training.block_attention.enabled": True}),
    ({**BLOCKS, "training.block_attention.visibility": "block_causal"},
     {"training.block_attention.visibility": "block_bias"}),
    ({"training.block_attention.origin": "start", "training.block_attention.enabled": "false"},
     {"training.block_attention.enabled": True, "training.block_attention.visibility": "block_causal"}),
    ({"training.block_attention.origin": "start", "training.block_attention.visibility": "block_bias",
      "training.block_attention.enabled": True},
     {"training.block_attention.visibility": "block_causal"}),
    ({"optim.betas": "[0, 0]", "optim.name": "adafactor"}, {"optim.name": "lion"}),
    ({"optim.eps": 1e-6, "optim.name": "lion"}, {"optim.name": "muon"}),
    ({"optim.moment_dtype": "bfloat16", "optim.name": "lion8bit"}, {"optim.name": "lion"}),
    ({"optim.decay_ratio": 0.5}, {"optim.scheduler": "wsd"}),
    ({"optim.min_lr_ratio": 0.5, "optim.scheduler": "constant"}, {"optim.scheduler": "wsd"}),
    ({"dataset.num_proc": 2, "dataset.streaming": True}, {"dataset.streaming": False}),
    ({"dataset.shuffle_buffer": 9}, {"dataset.streaming": True}),
    ({"dataset.pack_boundaries": True, "training.mode": "sft"}, {"training.mode": "pretrain"}),
    ({"dataset.template": "plain"}, {"training.mode": "sft"}),
    ({"dataset.enable_thinking": "true"}, {"training.mode": "sft"}),
    ({"dataset.turn_fields": "[name]"}, {"training.mode": "sft"}),
    *(({f"dataset.columns.{name}": "a"}, {"training.mode": "sft"})
      for name in ("messages", "prompt", "completion", "system", "tools")),
    ({"dataset.enable_thinking": "true", "dataset.template": "plain", "training.mode": "sft"},
     {"dataset.template": "chat"}),
    ({"evaluation.eval_name": "x", "evaluation.do_eval_loss": "false"}, {"evaluation.do_eval_loss": True}),
    ({"distributed.timeout": 9, "distributed.initialize": "never"}, {"distributed.initialize": "auto"}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "changes"), list(zip(unused_keys.TABLE, IN_VAIN, strict=True)))
def test_a_key_set_in_vain_is_refused(start, row, changes):
    vain, acting = changes
    assert row.key in vain
    with refused(f"{row.key} has no effect ", "leave it out"):
        configured(start, **vain)
    configured(start, **{**vain, **acting})


def test_keys_of_the_pytorch_system_are_let_be(start):
    configured(start, **{
        "evaluation.sampling_steps": 4, "evaluation.max_new_tokens": 8, "training.block_attention.block_length": 8,
        "training.epochs": 3, "training.mode": "sft", "training.noise.random_length_prob": 0.5,
        "dataset.text_field": "text", "training.loss_smoothing": 0, "dataset.pack_to_max_length": False,
    })  # fmt: skip


# ---- files of settings and flags -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("training: {lr: 1.0e-3, lr: 1.0e-4}", ("line 1: the key 'lr' stands there twice",)),
        ("training.lr: 1.0e-3\ntraining: {lr: 1.0e-4}", ("training.lr stands there twice",)),
        ("- a", ("must hold sections (project, model",)),
        (b"project: {seed: \xff}", ("not valid YAML", "utf-8")),
        ("[" * 3000, ("nested too deeply",)),
        ("training: &a {noise: *a}", ("nested too deeply",)),
        ("zzz:", ("unknown key 'zzz'; the sections are project",)),
        (None, ("cannot be read (No such file",)),
    ],
)
def test_yaml_that_is_none(tmp_path, text, parts):
    file = tmp_path / "a.yaml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(*parts):
        cli.parse(run.Flags, ["--config", str(file)]).read()


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--lr 1 --training.lr 2", "training.lr is given twice"),
        ("--config a.yaml --config b.yaml", "--config is given twice (a.yaml and b.yaml)"),
        ("--log_dir --mode sft", "--log_dir needs a value"),
    ],
)
def test_flags_that_are_none(line, part):
    with refused(part):
        cli.parse(run.Flags, line.split())


# ---- data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.txt", "", "the file is empty"),
        ("a.jsonl", "\n", "the dataset is empty"),
        ("a.jsonl", "{nope\n", "1 × is not valid JSON"),
        ("a.jsonl", '{"text": null}\n', "none of its 1 rows can be used: 1 × its text is empty"),
        ("a.jsonl", '{"text": ["a"]}\n', "its text is a list, not a text"),
        ("a.jsonl", '{"a": "x", "b": "y"}\n', "set dataset.text_field to one of a, b"),
        ("a.pdf", "x", "unknown kind of file; use .txt"),
        ("a.txt", "hi", "less than one row of max_length 32; lower it"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_files_without_text_to_train_on(start, tokenizer, tmp_path, name, text, part, streaming):
    file = tmp_path / name
    file.write_text(text)
    if streaming and part.startswith("less"):
        return  # a stream fills its rows in as many passes as it takes
    with refused(str(file), part):
        training_batches(configured(start, dataset__name=file, dataset__streaming=streaming), tokenizer, 1088)


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
CHAT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"messages": []}, "has no answer: no turn of the assistant"),
        ({"messages": [{"role": "parrot", "content": "x"}, TURNS[1]]}, "a turn has an unknown speaker"),
        ({"system": 3, "conversations": CHAT}, "column system is a number, not a text"),
        ({"instruction": "a", "input": 3, "output": "b"}, "column input is a number, not a text"),
        ({"prompt": "word " * 99, "completion": "b"}, "leaves no room for an answer"),
    ],
)
def test_conversations_that_are_none(start, tokenizer, tmp_path, row, part):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    config = configured(start, training__mode="sft", dataset__name=tmp_path / "a.jsonl")
    with refused(str(tmp_path / "a.jsonl"), part):
        training_batches(config, tokenizer, 1088)


def test_splits_and_weights_that_are_none(start, tokenizer, tmp_path):
    (tmp_path / "train.txt").write_text("a")
    with refused("has no split 'validation'; set evaluation.eval_split to one of train"):
        load_eval_rows(configured(start, evaluation__eval_name=tmp_path), tokenizer, 1088)
    with refused("holds no file of a known kind"):
        (tmp_path / "sub").mkdir()
        sources.load(str(tmp_path / "sub"), None, "train")
    with refused("weights must be above 0 and their sum a number"):
        shares((1e308, 1e308))


# ---- the model, its places, and what is installed ------------------------------------------------------------


def test_mask_tokens_and_templates_that_do_not_do(start, tokenizer, tmp_path):
    with refused(f"model.mask_token_id {tokenizer.eos_token_id} is an EOS", "auto"):
        find_base_model(configured(start, **{"model.mask_token_id": tokenizer.eos_token_id}))
    architecture = find_base_model(configured(start)).config
    few = {"evaluation.prompts": "[a]", "evaluation.max_new_tokens": 64, "evaluation.block_length": 7}
    with refused("evaluation: gen_length 64 is not a multiple of block_length 7", "gen_length is max_new_tokens"):
        samples.check(configured(start, **few), architecture, tokenizer)
    other = find_base_model(configured(start)).tokenizer
    asks = configured(start, **{"evaluation.prompts": "[a]", "training.mode": "sft"})
    for template, part in (
        ("{% if %}", "cannot be read"),
        ("{{ raise_exception('no') }}", "cannot write it: no, a conversation of user"),
    ):
        other.chat_template = template
        with refused(f"chat template {part}", "fix chat_template.jinja"):
            samples.check(asks, architecture, other)


def test_places_that_cannot_hold_a_run(start, tmp_path, monkeypatch):
    def attempt(**changes):
        run.train(configured(start, **{"project.output_dir": tmp_path / "run", **changes}))

    file, model = start / "text.txt", tmp_path / "model"
    shutil.copytree(start, model)
    before = (model / "config.json").read_text()
    for key in ("project.output_dir", "project.log_dir"):
        for place in (file, file / "run"):
            with refused(str(place), f"({file} is a file); choose another place"):
                attempt(**{key: place})
        with refused("File name too long"):
            attempt(**{key: tmp_path / ("a" * 300)})
        with refused("s3:/bucket/run", "is an address, not a path; name a folder of a disk"):
            attempt(**{key: "s3://bucket/run"})
    with refused(f"{model} is a model folder, not a run"):
        attempt(**{"project.output_dir": model})
    assert (model / "config.json").read_text() == before
    for key, package in (("evaluation.tensorboard", "tensorboardX"), ("evaluation.wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        with refused(f"{key} needs {package}: pip install"):
            attempt(**{key: "true" if package != "wandb" else "p"})
    assert not (tmp_path / "run").exists()


# ---- the other programs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["", "v5e", "gpu:8", "v5e:4y4", "cpu:0", "cpu:x"])
def test_machines_that_are_none(topology):
    with refused("--topology", "as in cpu:8"):
        hardware_of(topology)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--json", "nowhere/plan.json"], ("--json nowhere/plan.json: its folder does not exist",)),
        (["--json", "/tmp"], ("/tmp: is a folder; name a file",)),
        (["--training.max_length", "99999"], ("training.max_length 99999 is beyond the 40960 positions",)),
    ],
)
def test_plans_that_cannot_be(more, parts):
    with refused(*parts):
        plan.main(["--config", "configs/plan.yaml", "--topology", "cpu:8", "--model", "qwen3-0.6b", *more])


@pytest.mark.parametrize(
    ("lines", "flags", "parts"),
    [
        ("", [], ("holds no metrics yet",)),
        ('{"step": 1}\n{"st\n{"step": 2}\n', [], ("line 2 is not JSON; fix the file",)),
        ('{"step": true}\n', [], ("line 1 is no record with a step",)),
        ('{"step": 1}\n', ["--out", "a.pdf"], ("--out a.pdf: unknown kind of picture; use .png",)),
        ('{"step": 1}\n', ["--out", "a.png", "--out", "b.png"], ("--out is given twice",)),
        ('{"step": 1}\n', ["--out", "RUN/metrics.jsonl/a.png"], ("metrics.jsonl is a file",)),
        ('{"step": 1}\n', ["--out", "RUN/page.png"], ("page.html: is a folder; name a file",)),
        ('{"step": 1}\n', ["nowhere"], ("nowhere: no such folder; give the output_dir of a run",)),
    ],
)
def test_reports_of_nothing(tmp_path, monkeypatch, lines, flags, parts):
    out = tmp_path / "run"
    (out / "page.html").mkdir(parents=True)
    (out / "metrics.jsonl").write_text(lines)
    monkeypatch.setattr("sys.argv", ["train.report", str(out), *(f.replace("RUN", str(out)) for f in flags)])
    with refused(*parts):
        report.main()
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.slow
def test_as_typed(start, tmp_path):
    flags = [f"--{k}={v}" for k, v in settings(start, tmp_path / "run")]
    for more, part in (
        (["--device", "tpu"], "project.device tpu: JAX finds none here"),
        (["--lr", "1"], "lr is given"),
    ):
        assert_one_line_error(run_program("train.run", *flags, *more, check=None, env={"JAX_PLATFORMS": ""}), part)
    assert not (tmp_path / "run").exists()


def test_k16_a_start_of_nonsense_is_refused(start, tmp_path):
    """Under on_nan: skip the run would skip its updates, all of them, and end well."""
    shutil.copytree(start, tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, file, {"format": "pt"})
    with refused(f"{tmp_path / 'broken'}: weights that are NaN or infinite, in norm"):
        trained(tmp_path / "broken", tmp_path / "run", **{"training.on_nan": "skip"})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_k16_a_bad_first_update_names_no_checkpoint():
    bad = {"status": bad_updates.NOT_FINITE, "loss": np.nan, "grad_norm": 1.0, "skipped": 0}
    for has_saved in (True, False):
        with pytest.raises(q.InputError) as told:
            bad_updates.report(1, bad, TrainingConfig(on_nan="stop"), print, has_saved=has_saved)
        assert ("from the newest checkpoint" in str(told.value)) == has_saved
        assert ("before anything was saved. Start again" in str(told.value)) != has_saved


@pytest.mark.slow
def test_k16_a_run_that_skips_all_updates_does_not_end_well(start, tmp_path, monkeypatch):
    monkeypatch.setattr(bad_updates, "status_of", lambda *_: jnp.int32(bad_updates.NOT_FINITE))
    more = {"training.max_steps": 2, "training.on_nan": "skip", "evaluation.do_eval_loss": False}
    with refused("all 2 updates were skipped"):
        trained(start, tmp_path / "run", **more)
