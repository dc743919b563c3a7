"""What lm-evaluation-harness made of a model's answers: a table, and files with every question.

`results.json` has the harness's figures and the command, `samples_TASK.jsonl` its lines, each with `measured`: of every
request of the question, in their order, what the harness has no place for (`Harness.notes`).
"""

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qwen3llada_jax.errors import listed
from qwen3llada_jax.io.atomic_files import write_text


def report(results: Mapping[str, Any], notes: Mapping[tuple[str, int], Any]) -> None:
    """Print the table: a line for each metric."""
    table = Table("task", "examples", "metric", "value", "± standard error", "questions", "NFE")
    every = {**results.get("groups", {}), **results["results"]}
    for task, values in every.items():
        nfe = sum(said["nfe"] for (name, _), of_question in notes.items() if name == task for _, said in of_question)
        for name, value in sorted(values.items()):
            metric, comma, kind = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            said = f"{error:.4f}" if isinstance(error, float) and math.isfinite(error) else "—"
            many = results.get("n-samples", {}).get(task, {}).get("effective", 0)
            shots = results.get("n-shot", {}).get(task, "")
            title = metric if kind == "none" else f"{metric}, {kind}"
            table.add_row(
                task, str(shots), title, f"{value:.4f}", said, f"{many:,}" if many else "", f"{nfe:,}" if nfe else ""
            )
    Console(width=None if sys.stdout.isatty() else 1 << 12).print(table)


def write(results: Mapping[str, Any], notes: Mapping[tuple[str, int], Any], flags: Any) -> None:
    """Write results.json, and the questions of each task with their answers as samples_TASK.jsonl."""
    kept = (
        "results", "groups", "group_subtasks", "configs", "versions", "n-shot", "n-samples", "higher_is_better",
        "lm_eval_version",
    )  # fmt: skip
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(flags).items()}
    whole = {"flags": asked, **{name: results[name] for name in kept if name in results}}
    files = []
    for task, samples in results["samples"].items():
        lines = []
        for sample in samples:
            said = [said for _, said in sorted(notes[task, sample["doc_id"]], key=lambda note: note[0])]
            lines.append(json.dumps(_plain({**sample, "measured": said}), ensure_ascii=False, allow_nan=False) + "\n")
        files.append(f"samples_{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}.jsonl")
        write_text(flags.out / files[-1], "".join(lines))
    write_text(flags.out / "results.json", json.dumps(_plain(whole), indent=1, allow_nan=False) + "\n")
    print(f"{flags.out}: results.json, {listed(files)}", file=sys.stderr)


def _plain(value: Any) -> Any:
    """What JSON has a place for; numbers that are none are null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(x) for x in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
