"""What a run says of itself before it begins: on what it runs, how large it is, and whether the disk will hold it."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.buckets import is_bucket

from ..config.schema import Config
from ..optim import freeze as freezing
from ..step import State


def banner(
    config: Config, mesh: Mesh, kernels: Sequence[str], shapes: State, roles: Any, output: Path, first: int, steps: int
) -> list[str]:
    """Its lines.

    Args:
        kernels: attention that the rows' lengths get.
        first, steps: updates done, and when the run ends.
    """
    t, devices = config.training, jax.devices()
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    axes = " × ".join(f"{axis} {mesh.shape[axis]}" for axis in mesh.axis_names)
    all_, trained = _parameters(shapes["params"], roles, t.freeze)
    some = "" if trained == all_ else f", {trained:,} of them trained"
    pieces = f" in {config.micro_batches} forward passes" if config.micro_batches > 1 else ""
    most = "" if config.is_packed else "at most "
    tokens = t.batch_size * t.max_length
    left = f"{steps - first:,} updates to go ({first:,} of {steps:,} done)" if first else f"{steps:,} updates"
    size = state_bytes(shapes)
    kept = "every one is kept" if t.save_total_limit is None else f"{_kept(config)} at most on the disk at once"
    room = f", {_bytes(_kept(config) * size)}" if t.save_total_limit is not None else ""
    return [
        f"devices: {len(devices)} × {devices[0].device_kind} ({devices[0].platform}){hosts}; mesh {axes}; "
        f"attention {' and '.join(dict.fromkeys(kernels))}; computing in {config.dtype}",
        f"model: {all_:,} parameters{some}",
        f"updates: {left}, each of {t.batch_size:,} rows{pieces}, {most}{tokens:,} tokens, "
        f"{most}{(steps - first) * tokens:,} in all",
        f"checkpoints: {_bytes(size)} each, {kept}{room}"
        + ("" if is_bucket(output) else f"; {_bytes(shutil.disk_usage(_standing(output)).free)} free there"),
    ]


def check_disk(output: Path, shapes: State) -> None:
    """Refuse a disk on which not even one checkpoint fits.

    Raises:
        InputError: naming both sizes.
    """
    if is_bucket(output):
        return
    size, disk = state_bytes(shapes), shutil.disk_usage(_standing(output))
    if disk.total and disk.free < size:  # some file systems know of neither
        raise InputError(
            f"{output}: a checkpoint takes {_bytes(size)} and only {_bytes(disk.free)} are free there; make room, or "
            "choose another project.output_dir"
        )


def state_bytes(shapes: State) -> int:
    """Bytes of a checkpoint: weights, moments and average as they lie on the devices."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def _parameters(params: Any, roles: Any, freeze: tuple[str, ...]) -> tuple[int, int]:
    """(all, trained)."""
    all_ = trained = 0
    for x, mark in zip(jax.tree.leaves(params), jax.tree.leaves(freezing.frozen(params, roles, freeze)), strict=True):
        size = int(np.prod(x.shape))
        all_ += size
        trained += round(size * (1 - float(np.mean(mark))))
    return all_, trained


def _kept(config: Config) -> int:
    """Checkpoints on the disk at once: the newest, the best, and the one being written."""
    t = config.training
    assert t.save_total_limit is not None
    return t.save_total_limit + (t.keep_best and config.evaluation.do_eval_loss) + 1


def _standing(folder: Path) -> Path:
    """What is there already of a path."""
    path = Path(os.path.abspath(folder / "checkpoints"))
    return next(p for p in (path, *path.parents) if p.exists())


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB" if number < 1000 else f"{number:,.0f} TB"
