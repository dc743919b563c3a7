"""One checkpoint on the disk: which there are, what it says of itself, its arrays; and whether it is damaged."""

import json
import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from qwen3llada_jax.checkpoint.stored_params import cause_of, params_handler, reading
from qwen3llada_jax.errors import brief
from qwen3llada_jax.io import buckets

from ..step import State
from .resume_check import OtherRunError


class DamagedError(Exception):
    """A checkpoint whose files are missing, cut short or not what was written; the one before may be whole."""


class RefusedError(Exception):
    """A checkpoint that cannot be read for another reason, which may hold of all of them."""


def step_folders(run: Path) -> list[Path]:
    """The finished checkpoints of a run, newest first; of a checkpoint's own folder, that one.

    Their paths are absolute: orbax takes no others.
    """
    run = run if buckets.is_bucket(run) else Path(os.path.abspath(run))
    if (run / "params").is_dir():  # its name is the number of its update, a link's is not
        return [buckets.place(buckets.real(run))] if buckets.is_whole(run) else []
    found = [p for p in (run / "checkpoints").glob("*") if p.name.isdigit() and p.is_dir() and buckets.is_whole(p)]
    return sorted(found, key=lambda p: -int(p.name))


def read_meta(step: Path) -> dict[str, Any]:
    """What a checkpoint says of its run: settings, model, data, versions, checksums and counts.

    Raises:
        DamagedError, RefusedError: it cannot be read.
    """
    try:
        meta = json.loads((step / "meta" / "metadata").read_text(encoding="utf-8"))
        if meta["step"] != int(step.name):
            raise ValueError(f"its meta is that of update {meta['step']}")
        if not isinstance(meta["data"]["fingerprint"], str):
            raise ValueError("its meta names no data")
        for newer in ("checksums", "ledger"):  # older checkpoints have none
            meta.setdefault(newer, {})
        return {k: dict(meta[k]) for k in ("config", "model", "data", "versions", "checksums", "ledger")}
    except (ValueError, FileNotFoundError, KeyError, TypeError) as error:
        raise DamagedError(f"meta: {type(error).__name__} {brief(cause_of(error), 180)}") from error
    except OSError as error:
        raise RefusedError(f"meta: {error.strerror}") from error
    except Exception as error:
        if not buckets.is_answer(error):
            raise
        raise RefusedError(f"meta: {brief(error, 180)}") from error


def restore(step: Path, shapes: State, shardings: State) -> State:
    """The arrays of a checkpoint, laid out as `shardings` say.

    Raises:
        OtherRunError: they are another model's or optimizer's.
        DamagedError, RefusedError: they cannot be read.
    """
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    restored = {}
    handler = params_handler()  # used bare: orbax's `Checkpointer` would wait for a process that could not read
    for name, part in items_of(target).items():
        item = epath.Path(step / name)
        arguments = ocp.args.PyTreeRestore(item=part, restore_args=ocp.checkpoint_utils.construct_restore_args(part))
        with _reading(step / name):
            _check_fits(step / name, handler.metadata(item).tree, part)
            restored[name] = handler.restore(item, args=arguments)
    if int(restored["opt"]["step"]) != int(step.name):
        raise DamagedError(f"opt: it is the state of update {int(restored['opt']['step'])}")
    opt = restored.pop("opt")
    return {**restored, **opt}


def items_of(state: State) -> dict[str, Any]:
    """What a checkpoint's items hold, by name."""
    items = {name: state[name] for name in ("params", "ema") if name in state}
    return items | {"opt": {"opt": state["opt"], "step": state["step"]}}


def check_fit(step: Path, shapes: State) -> None:
    """Refuse a checkpoint of other arrays, as far as its items' descriptions can be read; `restore` says which cannot.

    Raises:
        OtherRunError: they are another model's or optimizer's.
    """
    for name, part in items_of(shapes).items():
        with suppress(DamagedError, RefusedError), _reading(step / name):
            _check_fits(step / name, params_handler().metadata(epath.Path(step / name)).tree, part)


def _check_fits(item: Path, stored: Any, wanted: Any) -> None:
    """Arrays of other names or shapes are no damage: they are another model's, or another optimizer's."""
    have, want = ({k: tuple(v.shape) for k, v in ocp.tree.to_flat_dict(t, sep=".").items()} for t in (stored, wanted))
    differ = [f"{name} {have.get(name, 'absent')} → {want.get(name, 'absent')}" for name in sorted({**have, **want})
              if have.get(name) != want.get(name)]  # fmt: skip
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise OtherRunError(f"{item}: the state of another model or optimizer: {'; '.join(differ[:3])}{more}")


def _reading(item: Path) -> AbstractContextManager[None]:
    """Errors of an item's reading as damage or refusal; without its path, which whoever tells them has named."""

    def told(reason: str) -> str:
        return f"{item.name}: {brief(reason.replace(f' at {item}', '').removesuffix('.'), 200)}"

    return reading(lambda reason: DamagedError(told(reason)), lambda reason: RefusedError(told(reason)))
