"""Every key of the PyTorch system's YAML acts: the file runs in both modes, and a changed value changes the run."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import DATA, on_devices
from test_train import params_of

from train.config.parse import read_config
from train.monitor.jsonl import read_lines
from train.run import train

pytestmark = [pytest.mark.slow, pytest.mark.soak]
MAX_LENGTH = {"pretrain": 32, "sft": 64}  # the chat template takes half of a row, and two batches are held out


def reference_yaml(start, out, mode: str) -> dict:
    """A file with all of that system's keys."""
    return {
        "project": {"seed": 1, "output_dir": str(out), "log_dir": str(out / "logs"), "device": "cpu"},
        "model": {"base_model_path": str(start), "qwen3llada_model_path": str(start / "none"), "mask_token_id": 1060},
        "training": {
            "mode": mode, "loss_impl": "soft_ce", "loss_smoothing": 0.1, "epochs": 1, "max_steps": 3, "batch_size": 8,
            "micro_batch_size": 8, "max_length": MAX_LENGTH[mode], "lr": "1e-3", "weight_decay": 0.1,
            "warmup_ratio": 0.0,
            "gradient_accumulation_steps": 1, "fp16": False, "bf16": False, "save_steps": 2, "save_total_limit": 3,
            "resume_from": None, "keep_best": False,
            "noise": {"eps": 0.001, "schedule": "uniform", "random_length_prob": 0.0, "noise_type": "mask",
                      "min_masking_rate": 0.0, "mask_contiguous_region_prob": 0.0, "reweight_cap": None},
            "block_attention": {"enabled": True, "block_length": 8},
        },
        "optim": {"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "scheduler": "cosine"},
        "dataset": {"name": str(out.parent / mode), "config": None, "split": "train", "text_field": "text",
                    "streaming": False, "num_proc": 1, "pack_to_max_length": True},
        "evaluation": {"steps": 1, "do_eval_loss": True, "eval_every_steps": 2, "eval_split": "validation",
                       "eval_max_batches": 1, "max_new_tokens": 8, "sampling_steps": 4, "block_length": 8,
                       "temperature": 0.0, "remasking": "low_confidence", "prompts": ["My lord", "Who is there?"]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a dataset of two splits for each mode, as `save_to_disk` leaves them."""
    import datasets

    folder = tmp_path_factory.mktemp("reference")
    text = (DATA / "shakespeare" / "valid.txt").read_text()
    speeches = re.split(r"\n\n", text)[:150]
    half = len(speeches) // 2
    texts = {"train": speeches[:half], "validation": speeches[half:], "other": speeches[10 : half + 10]}
    datasets.DatasetDict(
        {k: datasets.Dataset.from_dict({"text": v, "twice": [f"{x} {x}" for x in v]}) for k, v in texts.items()}
    ).save_to_disk(folder / "pretrain")
    lines = [json.loads(line) for line in (DATA / "dialogue" / "valid.jsonl").read_text().splitlines()[:80]]
    parts = {"train": lines[:40], "validation": lines[40:], "other": lines[5:45]}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(folder / "sft")
    return folder


def outcome(start, room, mode: str, *changes) -> dict:
    """What a run under the file leaves behind: all that a key may name."""
    out = room / f"run{len(list(room.iterdir()))}"
    tree = reference_yaml(start, out, mode)
    tree["dataset"]["name"] = str(room / mode)
    for name, value in changes:
        *sections, last = name.split(".")
        functools.reduce(lambda tree, part: tree[part], sections, tree)[last] = value
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tree))
    config = read_config(file)
    with on_devices(1):
        train(config)
    logs = Path(config.project.log_dir or out)
    records = read_lines(logs / "metrics.jsonl")
    steps = [p.name for p in (Path(config.project.output_dir) / "checkpoints").iterdir()]
    return {
        "weights": {k: v.tobytes() for k, v in params_of(Path(config.project.output_dir)).items()},
        "loss": [r["loss"] for r in records if "loss" in r],
        "lines": [r["step"] for r in records if "loss" in r],
        "evaluated": [r["step"] for r in records if "eval_loss" in r],
        "eval_loss": [r["eval_loss"] for r in records if "eval_loss" in r],
        "samples": [r["answer"] for r in read_lines(logs / "samples.jsonl")],
        "checkpoints": sorted(steps, key=lambda name: name.zfill(9)),
        "logs": logs,
    }


@pytest.fixture(scope="module")
def unchanged(start, room):
    """The run of the file as it is, in both modes."""
    runs = {mode: outcome(start, room, mode) for mode in ("pretrain", "sft")}
    for mode, run in runs.items():
        assert run["lines"] == [1, 2, 3], mode
        assert run["evaluated"] == [2, 3], mode
        assert run["checkpoints"] == ["2", "3"], mode
        assert len(run["samples"]) == 4, mode
        assert run["logs"].name == "logs", mode
    return runs


# Keys of loss_impl and noise are shown to act on the loss itself, in test_train.py.
TRAINING = {
    "project.seed": 2, "model.mask_token_id": 1055, "training.max_length": 16, "training.lr": 2e-3,
    "training.weight_decay": 0.9, "training.warmup_ratio": 0.5, "training.bf16": True,
    "training.block_attention.enabled": False, "training.block_attention.block_length": 4, "optim.name": "lion8bit",
    "optim.betas": [0.5, 0.6], "optim.eps": 1e-2, "optim.scheduler": "linear", "dataset.split": "other",
    "dataset.text_field": "twice", "dataset.streaming": True, "dataset.pack_to_max_length": False,
}  # fmt: skip
NEEDED = {  # what must change with a key
    "optim.name": [("optim.eps", None)], "dataset.streaming": [("dataset.num_proc", None)],
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINING)
def test_a_key_of_training_changes_what_is_learned(start, room, unchanged, name):
    quiet = [("evaluation.do_eval_loss", False), ("evaluation.prompts", [])]
    changed = outcome(start, room, "pretrain", (name, TRAINING[name]), *NEEDED.get(name, ()), *quiet)
    assert changed["weights"] != unchanged["pretrain"]["weights"]
    assert np.isfinite(changed["loss"]).all()


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("training.max_steps", 2, "lines", [1, 2]),
        ("training.save_steps", 1, "checkpoints", ["1", "2", "3"]),
        ("training.save_total_limit", 1, "checkpoints", None),
        ("evaluation.steps", 3, "lines", [1, 3]),
        ("evaluation.eval_every_steps", 3, "samples", None),
        ("evaluation.eval_split", "other", "eval_loss", None),
        ("evaluation.eval_max_batches", 2, "eval_loss", None),
        ("evaluation.max_new_tokens", 16, "samples", None),
        ("evaluation.sampling_steps", 1, "samples", None),
        ("evaluation.block_length", 4, "samples", None),
        ("evaluation.temperature", 3.0, "samples", None),
        ("evaluation.remasking", "random", "samples", None),
    ],
)
def test_a_key_of_saving_or_seeing_changes_what_it_names(start, room, unchanged, name, value, field, expected):
    changed = outcome(start, room, "sft", (name, value))
    if expected is not None:
        assert changed[field] == expected
    else:
        assert changed[field] != unchanged["sft"][field]
    if name not in ("training.max_steps",):
        assert changed["weights"] == unchanged["sft"]["weights"]


def test_rows_of_a_forward_pass_change_nothing_but_rounding(start, room, unchanged):
    pieces = [("training.micro_batch_size", 2), ("training.gradient_accumulation_steps", 4)]
    changed = outcome(start, room, "pretrain", *pieces)
    np.testing.assert_allclose(changed["loss"], unchanged["pretrain"]["loss"], rtol=1e-4)


def test_epochs_count_where_max_steps_is_not_set(start, room):
    more = [("training.max_steps", None), ("training.batch_size", 16), ("training.micro_batch_size", 16)]
    quiet = [("evaluation.do_eval_loss", False), ("evaluation.prompts", []), ("training.save_steps", 1000)]
    one, two = (len(outcome(start, room, "sft", ("training.epochs", n), *more, *quiet)["lines"]) for n in (1, 2))
    assert one > 0
    assert abs(two - 2 * one) <= 1
