"""Checkpoints of a run: parameters (openable on their own), optimiser state, and what the run was told.

    OUTPUT_DIR/checkpoints/<updates done>/params · opt · meta

orbax writes a step beside its place and renames it when it is whole, so a killed run leaves no half step.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from qwen3llada_jax.checkpoint import params_handler, params_item, short, writing
from qwen3llada_jax.config import ModelConfig
from qwen3llada_jax.errors import InputError
from train.config import FREE_ON_RESUME, FREE_SECTIONS_ON_RESUME, Config, flat


def open_checkpoints(output_dir: Path, keep: int | None) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints, of which the newest `keep` stay."""
    return ocp.CheckpointManager(
        (output_dir / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False),
        item_handlers={"params": params_handler(), "opt": params_handler(), "meta": ocp.JsonCheckpointHandler()},
    )


def save(manager: ocp.CheckpointManager, state: dict[str, Any], config: Config, model: ModelConfig) -> None:
    """Save the state under the number of updates it has seen.

    Raises:
        InputError: the disk is full or the folder cannot be written; earlier checkpoints stay whole.
    """
    step = int(state["step"])
    with writing(manager.directory / str(step)):
        manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(state["params"]),
                opt=ocp.args.PyTreeSave({"opt": state["opt"], "step": state["step"]}),
                meta=ocp.args.JsonSave({"config": flat(config), "model": model.to_hf(), "step": step}),
            ),
            force=True,
        )


def restore(folder: Path, shapes: dict[str, Any], shardings: dict[str, Any]) -> dict[str, Any]:
    """The state of a run's newest checkpoint, laid out as `shardings` say.

    Raises:
        InputError: it is damaged, or of another model.
    """
    newest = params_item(folder)
    assert newest is not None
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    parts = {"params": target["params"], "opt": {"opt": target["opt"], "step": target["step"]}}
    restored = {}
    try:
        for name, part in parts.items():
            arguments = ocp.args.PyTreeRestore(
                item=part, restore_args=ocp.checkpoint_utils.construct_restore_args(part)
            )
            with ocp.Checkpointer(params_handler()) as checkpointer:
                restored[name] = checkpointer.restore((newest.parent / name).absolute(), args=arguments)
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(newest.parent, error) from error
    return {"params": restored["params"], **restored["opt"]}


def check_same_run(folder: Path, config: Config, model: ModelConfig) -> None:
    """Refuse to continue a run under settings that would make it another one.

    Raises:
        InputError: naming every key that differs, with both values.
    """
    newest = params_item(folder)
    assert newest is not None
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            meta = checkpointer.restore((newest.parent / "meta").absolute())
        old, old_model = meta["config"], meta["model"]
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise _unreadable(newest.parent, error) from error
    new, new_model = flat(config), model.to_hf()
    free = set(FREE_ON_RESUME)
    if new["optim.scheduler"] == "constant" and new["training.warmup_ratio"] == 0:
        free |= {"training.max_steps", "training.epochs"}  # nothing else depends on where the run ends
    changed = [
        f"{name} {old.get(name)!r} → {new[name]!r}"
        for name in sorted(new)
        if name not in free and name.split(".")[0] not in FREE_SECTIONS_ON_RESUME and old.get(name) != new[name]
    ]
    changed += [
        f"model's {name} {old_model.get(name)!r} → {new_model[name]!r}"
        for name in sorted(new_model)
        if old_model.get(name) != new_model[name]
    ]
    if changed:
        raise InputError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); "
            "set them back, or choose another project.output_dir"
        )


def _unreadable(step: Path, error: Exception) -> InputError:
    return InputError(
        f"{step}: damaged checkpoint, or one of another model or optimiser ({short(error)}); if it is damaged, "
        "move this folder away to go on from the one before"
    )


def notice(text: str) -> None:
    """A line for the person watching."""
    print(text, file=sys.stderr, flush=True)
