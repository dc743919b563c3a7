"""Whose records a folder holds: every run has a name of its own, in RUN/run.json and in that of its `project.log_dir`.

Many runs may be told the same log_dir (a YAML file that they share), but metrics.jsonl, samples.jsonl, traces and
trackers' files are one run's: a second run in that folder would erase or mix them, so it is refused.
"""

import json
import uuid
from pathlib import Path
from typing import NamedTuple

import yaml

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets
from qwen3llada_jax.io.atomic_files import write_text

NAME = "run.json"
RECORDS = ("metrics.jsonl", "samples.jsonl")


class Owner(NamedTuple):
    """A run: its name, which it keeps when its folder is moved, and where it and its records last were."""

    id: str
    output_dir: str
    log_dir: str


def owner_of(folder: Path) -> Owner | None:
    """The run that a folder belongs to; None where no run.json says so.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Owner(*(str(found[field]) for field in Owner._fields))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: does not say whose folder this is ({error}); move it away") from error


def check_owner(output: Path, logs: Path) -> Owner:
    """Who the run in `output` is, whose records go to `logs`: a new run, or the one that was there.

    Raises:
        InputError: `logs`, or `output`, holds another run's records.
    """
    here, place = buckets.real(output), buckets.real(logs)
    own = owner_of(output)
    if own is not None and own.output_dir != here and not (output / "checkpoints").is_dir():
        raise InputError(
            f"{output} is the log_dir of the run {own.output_dir}, whose records it holds; choose another "
            "project.output_dir"
        )
    known = own is not None and not _is_copy(own, here)
    name = own.id if own is not None and known else uuid.uuid4().hex[:12]
    if place != here:
        theirs = owner_of(logs)
        if theirs is not None and theirs.id != name:
            raise _of_another(logs, f"the run {theirs.output_dir}")
        holds = any((logs / record).exists() for record in RECORDS)
        if theirs is None and holds and not _was_its_log_dir(output, place):  # written by an older version
            raise _of_another(logs, "another run")
    return Owner(name, here, place)


def write_owner(output: Path, logs: Path, owner: Owner) -> None:
    """Say in both folders whose they are."""
    before = owner_of(output)
    if before is not None and before.id != owner.id:  # a copied folder goes on as a run of its own, to trackers too
        (output / "wandb_id.txt").unlink(missing_ok=True)
    for folder in (output, logs):
        write_text(folder / NAME, json.dumps(owner._asdict(), indent=2) + "\n")


def _is_copy(owner: Owner, here: str) -> bool:
    """Whether the folder was copied from one that still is that run's; a moved one has left nothing there."""
    if owner.output_dir == here:
        return False
    if not buckets.is_there(owner.output_dir):
        return False
    there = owner_of(buckets.place(owner.output_dir))
    return there is not None and there.id == owner.id


def _was_its_log_dir(output: Path, place: str) -> bool:
    settings = output / "training.yaml"
    if not settings.is_file():
        return False
    try:
        tree = yaml.safe_load(settings.read_text(encoding="utf-8"))
        told = tree["project"]["log_dir"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return False
    return told is not None and buckets.real(told) == place


def _of_another(logs: Path, whom: str) -> InputError:
    return InputError(
        f"project.log_dir {logs} holds the records of {whom}; choose another project.log_dir for this run (without "
        "one they lie in project.output_dir)"
    )
