"""Checkpoints of a run: parameters (openable on their own), optimizer state, and what the run was told.

    OUTPUT_DIR/checkpoints/<updates done>/params · ema, if kept · opt · meta · metrics

orbax copies the state to the host, writes it in the background beside its place, and renames it when it is
whole: the next update may give the old state up at once, and a killed run leaves no half step.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from qwen3llada_jax.checkpoint.stored_params import params_handler, writing
from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.io import buckets, objects
from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.model.config import ModelConfig

from ..config.schema import Config, flat
from ..monitor.run_log import warn
from ..runtime.distributed import is_main
from ..runtime.versions import versions
from ..step import State
from .checksums import checksums, first_difference
from .resume_check import (
    OtherRunError,
    check_fork,
    check_same_data,
    check_same_run,
    compare_versions,
    go_on_elsewhere,
    start_from_weights,
    tell_changes,
    tell_fork,
)
from .stored import DamagedError, RefusedError, check_fit, items_of, read_meta, restore, step_folders


class Resumed(NamedTuple):
    """What a run goes on from.

    Attributes:
        place: where the data stood; None: at their beginning.
        ledger: what the run had counted (of `train.loop`); of a checkpoint that another version wrote, empty.
    """

    state: State
    place: Any
    ledger: dict[str, Any]


@contextmanager
def open_checkpoints(output_dir: Path, keep: int | None, *, keep_best: bool) -> Iterator[ocp.CheckpointManager]:
    """The manager of a run's checkpoints: the newest `keep` stay, and the one of lowest held-out loss.

    Opening clears away what an interrupted save left behind; closing waits until everything is on disk.

    Raises:
        InputError: (on closing too) a checkpoint could not be written; earlier ones stay whole.
    """
    folder = buckets.absolute(output_dir / "checkpoints")
    loss = lambda metrics: metrics["eval_loss"]  # noqa: E731
    best = BestN(get_metric_fn=loss, reverse=True, n=int(keep_best), keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
        best_fn=loss,
        best_mode="min",
        cleanup_tmp_directories=True,
    )
    with writing(folder):
        manager = ocp.CheckpointManager(
            folder,
            options=options,
            item_handlers={
                **{item: params_handler() for item in ("params", "ema", "opt")},
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
    try:
        yield manager
    except BaseException:
        with suppress(ValueError, OSError):  # the exception on its way says more than a save that fails as well
            manager.close()
        raise
    with writing(folder):
        manager.close()


def save(
    manager: ocp.CheckpointManager,
    state: State,
    config: Config,
    model: ModelConfig,
    data: dict[str, Any],
    eval_loss: float | None = None,
    ledger: dict[str, Any] | None = None,
) -> None:
    """Begin to save the state under the number of updates it has seen.

    Returns once the state is summed up and copied; if an earlier save is still being written, waits for it first.

    Args:
        data: JSON-able: `fingerprint` of the data and, for data that is not addressed by step, `state`.
        eval_loss: held-out loss of this state, by which the best is kept; None: not measured.
        ledger: JSON-able: what the run has counted, and still owes at this update.

    Raises:
        InputError: the disk is full or the folder cannot be written; earlier checkpoints stay whole.
    """
    step = int(state["step"])
    meta = {"config": flat(config), "model": model.to_hf(), "step": step, "data": data, "versions": versions(),
            "checksums": checksums(state), "ledger": ledger or {}}  # fmt: skip
    if jax.default_backend() == "cpu":
        # Here orbax writes the arrays from where they lie, and an update that gives them up waits until it has.
        state = jax.tree.map(jnp.copy, state)
    with writing(manager.directory):
        manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.PyTreeSave(item) for name, item in items_of(state).items()},
                meta=ocp.args.JsonSave(meta),
            ),
            metrics={"eval_loss": eval_loss} if eval_loss is not None and math.isfinite(eval_loss) else None,
            force=True,
        )


def settle(manager: ocp.CheckpointManager, step: int) -> None:
    """Note in a checkpoint that the run owes nothing any more at that update.

    Raises:
        InputError: it cannot be written.
    """
    path = buckets.place(manager.directory) / str(step) / "meta" / "metadata"
    if is_main() and path.is_file():
        meta = json.loads(path.read_text(encoding="utf-8"))
        write_text(path, json.dumps(meta | {"ledger": meta["ledger"] | {"owes": []}}))


def check_written(manager: ocp.CheckpointManager) -> None:
    """Costs nothing; call it at every update, so that a run does not go on for hours without checkpoints.

    Raises:
        InputError: the save in the background has failed.
    """
    with writing(manager.directory):
        manager.check_for_errors()


def resume(
    run: Path, config: Config, model: ModelConfig, fingerprint: str, shapes: State, shardings: State, *, fork: bool
) -> Resumed:
    """The state of a run's newest readable checkpoint, laid out as `shardings` say, and where its data stood.

    A damaged checkpoint is set aside (`<n>.damaged`) once an earlier one has been read in its place.

    Args:
        fork: go on in another folder: settings and data may differ (differences are printed), the other run's
            folder is left as it is, and the position in the data holds only for the same data.

    Raises:
        InputError: it is a run with other settings, of another model or optimizer, on other data, or none of
            its checkpoints can be read.
    """
    damaged: list[tuple[Path, str]] = []
    for step in step_folders(run):
        reason, refusal, meta, state = "", "", {}, {}
        try:
            meta = read_meta(step)
        except DamagedError as error:
            reason = str(error)
        except RefusedError as error:
            refusal = str(error)
        if not (reason or refusal):
            check_settings(run, step, meta, config, model, shapes, fork=fork)
            if not fork:
                check_same_data(run, meta, config, fingerprint)
            try:
                state = restore(step, shapes, shardings)
            except DamagedError as error:
                reason = str(error)
            except RefusedError as error:
                refusal = str(error)
        is_read = _all_processes(not (reason or refusal))
        if is_read:
            changed = first_difference(state, meta["checksums"])
            if changed is not None:
                is_read, reason = False, f"{changed} is not what was saved: its checksum differs"
        elif not _all_processes(not refusal):
            raise _unreadable(step, refusal or "another process could not")
        if not is_read:
            damaged.append((step, reason or "another process could not read it"))
            continue
        for other, why in damaged:
            _set_aside(other, why, instead=step, leave=fork)
        if fork:
            tell_fork(run, meta, config, model, fingerprint)
        else:
            tell_changes(meta, config)
        compare_versions(meta["versions"])
        same_data = meta["data"]["fingerprint"] == fingerprint
        # Another run's lines of metrics are not gone on with, nor what it owed.
        ledger = {k: v for k, v in meta["ledger"].items() if not fork or k in ("tokens", "elapsed")}
        return Resumed(state, meta["data"].get("state") if same_data else None, ledger)
    raise InputError(
        f"{run}: none of its checkpoints can be read: "
        + listed((f"{step.name} ({reason})" for step, reason in damaged), "; ")
        + "; restore one from a backup, or choose another project.output_dir"
    )


def check_before_data(run: Path, config: Config, model: ModelConfig, shapes: State, *, fork: bool) -> None:
    """Refuse what `resume` will, as far as it can be told without the data: settings, model and optimizer.

    Raises:
        InputError: as in `resume`.
    """
    for step in step_folders(run):
        try:
            meta = read_meta(step)
        except (DamagedError, RefusedError):  # `resume` says so
            continue
        check_settings(run, step, meta, config, model, shapes, fork=fork)
        return


def check_settings(
    run: Path, step: Path, meta: dict[str, Any], config: Config, model: ModelConfig, shapes: State, *, fork: bool
) -> None:
    """Refuse to go on from a checkpoint under settings that would make it another run (`fork`: another model).

    Raises:
        InputError: naming them, and the way that works.
    """
    try:
        (check_fork if fork else check_same_run)(run, meta, config, model)
        check_fit(step, shapes)
    except OtherRunError as error:
        way = start_from_weights(run)
        with suppress(OtherRunError):  # where even another folder would not do, its weights alone will
            check_fork(run, meta, config, model)
            check_fit(step, shapes)
            way = go_on_elsewhere(run)
        raise InputError(f"{error}; set them back, or {way}") from error


def _unreadable(step: Path, reason: str) -> InputError:
    return InputError(
        f"{step}: cannot be read ({reason}); nothing shows that it is damaged, so it was let be. Mend that, or go on "
        "from an earlier one: training.resume_from RUN/checkpoints/N with a new project.output_dir"
    )


def _set_aside(step: Path, reason: str, *, instead: Path, leave: bool) -> None:
    place = step.with_name(f"{step.name}.damaged")
    number = 1
    while place.exists():
        number += 1
        place = step.with_name(f"{step.name}.damaged-{number}")
    kept = "" if leave else f", now {place.name}"
    warn(f"{step}: damaged ({reason}){kept}; going on from {instead.name}")
    if not leave:
        if is_main():
            (objects.move if buckets.is_bucket(step) else Path.rename)(step, place)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")


def _all_processes(yes: bool) -> bool:
    """Whether all processes say yes: they must take the same checkpoint."""
    return yes if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(yes)).all())
