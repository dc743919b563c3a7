"""TensorBoard and Weights & Biases: each gets the records that metrics.jsonl gets."""

import importlib
import math
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.io.buckets import is_bucket

from ..config.schema import Config, flat


class Tracker(NamedTuple):
    """Where records also go."""

    write: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


def require(config: Config) -> None:
    """Refuse a configuration whose packages are not installed.

    Raises:
        InputError: naming the package to install.
    """
    if config.evaluation.tensorboard:
        _package("tensorboardX", "evaluation.tensorboard")
    if config.evaluation.wandb:
        _package("wandb", "evaluation.wandb")


def open_trackers(config: Config, logs: Path, first: int) -> list[Tracker]:
    """The trackers that the configuration names, for a run that has seen `first` updates."""
    trackers = []
    if config.evaluation.tensorboard:
        trackers.append(_tensorboard(logs / "tensorboard", first))
    if config.evaluation.wandb:
        trackers.append(_wandb(config, logs))
    return trackers


def _tensorboard(folder: Path, first: int) -> Tracker:
    package = _package("tensorboardX", "evaluation.tensorboard")
    # What an interrupted run had written after its checkpoint (or before its first one) is written again: hide that.
    writer = package.SummaryWriter(logdir=str(folder), purge_step=first + 1)

    def write(record: Mapping[str, Any]) -> None:
        for name, value in _grouped(record).items():
            writer.add_scalar(name, value, record["step"])
        if not is_bucket(folder):  # else it writes all of it anew each time; it does so by itself every two minutes
            writer.flush()

    return Tracker(write, writer.close)


def _wandb(config: Config, logs: Path) -> Tracker:
    package = _package("wandb", "evaluation.wandb")
    remembered = logs / "wandb_id.txt"
    if not remembered.exists():
        write_text(remembered, uuid.uuid4().hex[:12])
    folder = tempfile.mkdtemp(prefix="wandb-") if is_bucket(logs) else str(logs)
    run = package.init(
        project=config.evaluation.wandb, name=Path(config.project.output_dir).name, dir=folder,
        id=remembered.read_text(encoding="utf-8").strip(), resume="allow", config=flat(config),
    )  # fmt: skip
    # W&B's own step counter never goes back, as a resumed run's does; so the step is a metric like others.
    run.define_metric("*", step_metric="step")
    return Tracker(lambda record: run.log({"step": record["step"], **_grouped(record)}), run.finish)


def _grouped(record: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by chart: `loss` → `train/loss`, `eval_loss` → `eval/loss`; what has no value is left out."""
    return {
        (f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"): float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
    }


def _package(name: str, key: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(f"{key} needs {name}: pip install {name}") from error
