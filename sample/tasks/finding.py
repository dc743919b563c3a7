"""Tasks of lm-evaluation-harness by name, by pattern or from files, their data read, before anything else is done."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen3llada_jax import cli
from qwen3llada_jax.errors import InputError, brief, listed


def imported() -> Any:
    """The harness, which says nothing beside what it raises.

    Raises:
        InputError: it is not installed.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError("--tasks needs lm-evaluation-harness: pip install lm-eval") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from . import harness

    return harness


def ready(names: str, include_path: Path | None) -> list[Any]:
    """Tasks and groups of the harness, their data read.

    Args:
        names: joined by commas: names and patterns that the harness knows or `include_path` holds, or .yaml files.

    Raises:
        InputError: one that there is not, or whose data cannot be had.
    """
    asked = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not asked:
        raise InputError("--tasks names no task; give names, as gsm8k,hellaswag, or a .yaml file")
    manager = _manager(asked, include_path)
    specs: list[str] = []
    for name in asked:
        if _is_file(name):
            if not Path(name).expanduser().is_file():
                raise InputError(f"--tasks {name}: there is no such file")
            if re.search(r"^group:", Path(name).expanduser().read_text(encoding="utf-8"), re.M):
                raise InputError(f"--tasks {name}: a group of tasks; give its folder as --include-path, and its name")
            specs.append(name)
            continue
        matches = manager.match_tasks([name])
        if not matches:
            hint = cli.nearest(name, manager.all_tasks)
            raise InputError(f"--tasks {name}: no such task{hint or '; a file of one ends in .yaml'}")
        specs += matches
    found: list[Any] = []
    complaints = _complaints()
    for spec in dict.fromkeys(specs):
        complaints.clear()
        try:
            loaded = manager.load([spec])
        except Exception as error:  # of datasets, the hub, YAML, or a task's own code
            frames = traceback.walk_tb(error.__traceback__)
            is_of_data = any(frame.f_globals["__name__"].split(".")[0] == "datasets" for frame, _ in frames)
            hint = "; its data come from the hub, once, or from files that dataset_kwargs names" if is_of_data else ""
            said = brief(" ".join([f"{type(error).__name__}:", *complaints, str(error)]), 200)
            raise InputError(f"--tasks {spec}: cannot be made ready ({said}){hint}") from error
        groups = loaded.get("groups", {})
        inner = {child for children in loaded.get("group_map", {}).values() for child in children}
        tops = [group for name, group in groups.items() if name not in inner]
        grouped = {task.task_name for group in tops for task in group.get_all_tasks()}
        found += [*tops, *(task for name, task in loaded["tasks"].items() if name not in grouped)]
    own = [task.task_name for task in leaves_of(found)]
    twice = sorted({name for name in own if own.count(name) > 1})
    if twice:
        raise InputError(f"--tasks: {listed(twice)} stands there twice; name each once")
    return found


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _manager(asked: Sequence[str], include_path: Path | None) -> Any:
    """The harness's finder of tasks; of its own thousands only where one is named, for to read them takes seconds."""
    from lm_eval.tasks import TaskManager

    include = str(include_path) if include_path else None
    own = TaskManager(include_path=include, include_defaults=False)
    is_own = all(_is_file(name) or own.match_tasks([name]) for name in asked)
    return own if is_own and not own.all_groups else TaskManager(include_path=include)


def _complaints() -> list[str]:
    """What the harness logs as errors from now on: some of what it raises later says less."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lm_eval")
    logger.handlers, logger.propagate = [handler], False
    return said


def leaves_of(found: Sequence[Any]) -> list[Any]:
    """The tasks of tasks and groups."""
    return [task for one in found for task in (one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one])]


def asks_greedy(leaves: Sequence[Any]) -> frozenset[str]:
    """Tasks whose metric looks at whether greedy decoding writes a continuation."""
    metrics = {"loglikelihood": "acc", "multiple_choice": "exact_match"}
    found = set()
    for task in leaves:
        has_own = callable(task.config.process_results) and task.OUTPUT_TYPE in metrics
        if has_own or metrics.get(task.OUTPUT_TYPE) in getattr(task, "_metric_fn_list", {}):
            found.add(task.task_name)
    return frozenset(found)
