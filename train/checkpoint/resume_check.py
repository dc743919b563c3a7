"""Is a run that goes on the one that was begun? Settings, model, data and versions against those of a checkpoint."""

import os
import shlex
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets
from qwen3llada_jax.model.config import ModelConfig

from ..config.schema import FREE_ON_RESUME, FREE_SECTIONS_ON_RESUME, Config, flat
from ..monitor.run_log import warn
from ..runtime.versions import versions

# A continuation in another folder may be taught another visibility or mask token; its weights stay what they are.
_FREE_IN_A_FORK = ("mask_token_id", "live_vocab_size", "visibility", "block_length", "prompt_sees_answer", "shift",
                   "block_origin", "causal_context", "enable_thinking")  # fmt: skip
# What runs did whose version had no choice.
_SETTINGS_BEFORE = {
    "training.shift": False,
    "training.block_attention.origin": "prompt",
    "training.block_attention.causal_context": False,
    "training.block_attention.schedule": None,
    "training.objective": "masked",
    "training.mix": None,
    "training.clean_loss": 0.0,
    "training.complementary": False,
    "training.place_bias": 0.0,
    "training.causal_annealing": 0.0,
    "training.normalization": None,
}
_MODEL_BEFORE = {"shift": False, "block_origin": "prompt", "causal_context": False}
# What the held-out loss is of.
_HELD_OUT = ("evaluation.eval_name", "evaluation.eval_split", "evaluation.eval_max_batches")
# Known to who starts the run, and different for every one.
_UNTOLD = ("project.output_dir", "project.log_dir", "training.resume_from")


class OtherRunError(InputError):
    """Settings under which a run would not be the one that was begun, without what to do about it."""


def check_same_run(folder: Path, meta: dict[str, Any], config: Config, model: ModelConfig) -> None:
    """Refuse to continue a run under settings that would make it another one.

    Args:
        meta: of the checkpoint.
    """
    free, differences = _free(config), _settings_that_differ(meta, config)
    changed = [text for name, text in differences.items() if name not in free]
    changed += [f"model's {text}" for text in _model_differences(meta, model).values()]
    if changed:
        raise OtherRunError(f"{folder} holds a run with other settings ({'; '.join(changed)})")


def check_same_data(folder: Path, meta: dict[str, Any], config: Config, fingerprint: str) -> None:
    """Refuse to continue a run on other data.

    Args:
        fingerprint: of the data at hand.
    """
    if meta["data"]["fingerprint"] != fingerprint:
        name = config.dataset.name or "dataset.mixture"
        raise InputError(
            f"{folder} holds a run on other data: what {name} gives has changed since; bring the old data back, or "
            f"{go_on_elsewhere(folder)}"
        )


def tell_changes(meta: dict[str, Any], config: Config) -> None:
    """Say what may differ between a run and its continuation, and does."""
    differences = _settings_that_differ(meta, config)
    if differences:
        warn(f"changed since that checkpoint: {'; '.join(differences.values())}")
    if config.training.keep_best and any(name in differences for name in _HELD_OUT):
        warn("held-out losses before and after that do not compare, so the best checkpoint may not be the best")


def check_fork(folder: Path, meta: dict[str, Any], config: Config, model: ModelConfig) -> None:
    """Refuse another architecture or optimizer than those of the run that is gone on from."""
    of_model = _model_differences(meta, model)
    wrong = [f"model's {text}" for name, text in of_model.items() if name not in _FREE_IN_A_FORK]
    if (meta["config"].get("training.ema_decay") or 0) == 0 < config.training.ema_decay:
        wrong.append("training.ema_decay, an average that it did not keep")
    if meta["config"].get("optim.name") != config.optim.name:
        wrong.append(f"optim.name {meta['config'].get('optim.name')!r} → {config.optim.name!r}")
    if wrong:
        raise OtherRunError(
            f"training.resume_from {folder}: the state of another model or optimizer ({'; '.join(wrong)})"
        )


def tell_fork(folder: Path, meta: dict[str, Any], config: Config, model: ModelConfig, fingerprint: str) -> None:
    """Say what differs from the run that is gone on from."""
    changed = [*_settings_that_differ(meta, config).values()]
    changed += [f"model's {text}" for text in _model_differences(meta, model).values()]
    if meta["data"]["fingerprint"] != fingerprint:
        changed.append("the data")
    if changed:
        warn(f"unlike {folder}: {'; '.join(changed)}")


def go_on_elsewhere(folder: Path) -> str:
    """The way that works where the optimizer's state still fits."""
    return (
        "go on from it in another folder: --project.output_dir NEW "
        f"--training.resume_from {shlex.quote(_shown(folder))}"
    )


def start_from_weights(folder: Path) -> str:
    """The way that works where only the weights fit."""
    return (
        "start anew from its weights: --project.output_dir NEW "
        f"--model.qwen3llada_model_path {shlex.quote(_shown(folder))}"
    )


def _shown(folder: Path) -> str:
    return str(folder) if buckets.is_bucket(folder) else os.path.relpath(folder)


def compare_versions(old: dict[str, str]) -> None:
    """A continuation is bitwise only under the same versions."""
    new = versions()
    changed = [f"{name} {old.get(name)} → {new.get(name)}" for name in sorted({**old, **new})
               if old.get(name) != new.get(name)]  # fmt: skip
    if changed:
        warn(f"versions have changed since that checkpoint: {', '.join(changed)}")


def _free(config: Config) -> set[str]:
    """Settings that may differ between a run and its continuation."""
    free = {name for name in flat(config) if name in FREE_ON_RESUME or name.split(".")[0] in FREE_SECTIONS_ON_RESUME}
    if config.optim.scheduler == "constant" and config.training.warmup_ratio == 0:
        free |= {"training.max_steps", "training.epochs"}  # nothing else depends on where the run ends
    return free


def _settings_that_differ(meta: dict[str, Any], config: Config) -> dict[str, str]:
    """Keys that an older version had not are as if left out then."""
    found = _differences(flat(Config()) | _SETTINGS_BEFORE | meta["config"], flat(config))
    return {name: text for name, text in found.items() if name not in _UNTOLD}


def _model_differences(meta: dict[str, Any], model: ModelConfig) -> dict[str, str]:
    return _differences(_MODEL_BEFORE | meta["model"], model.to_hf())


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    return {name: f"{name} {old.get(name)!r} → {new[name]!r}" for name in sorted(new) if old.get(name) != new[name]}
