"""Show one or several runs: a picture of their curves, and a page with the numbers, settings and texts beside it.

python -m train.report runs/adapted runs/scratch --out loss.png      # also writes loss.html
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError, brief
from qwen3llada_jax.io.atomic_files import check_file, make_folder, write_text
from qwen3llada_jax.io.buckets import is_bucket, place, real
from qwen3llada_jax.pictures import pyplot, write_picture

from .monitor.jsonl import read_lines
from .reporting.html import Run, page
from .reporting.plots import draw, svg
from .runtime.run_owner import owner_of


@dataclass(frozen=True, kw_only=True)
class Flags:
    runs: list[Path] = flag("run folders (while they run, too)", positional=True)
    out: Path = flag("picture to write; the page lies beside it as .html (default: %(default)s)", Path("loss.png"))


def main() -> None:
    flags = cli.parse(Flags)
    if flags.out.suffix != ".png":
        raise InputError(f"--out {flags.out}: unknown kind of picture; use .png")
    if len({real(run) for run in flags.runs}) < len(flags.runs):
        raise InputError("a run is named twice")
    names = [place(run if is_bucket(run) else os.path.abspath(run)).name for run in flags.runs]  # of `.` too
    unique = len(set(names)) == len(names)
    runs = [read_run(run, name if unique else str(run)) for run, name in zip(flags.runs, names, strict=True)]
    for target in (flags.out, flags.out.with_suffix(".html")):
        check_file(target)
    curves = {run.name: run.records for run in runs}
    make_folder(flags.out.parent)
    figure = draw(curves)
    write_picture(figure, flags.out, dpi=150)
    write_text(flags.out.with_suffix(".html"), page(runs, svg(figure)))
    pyplot().close(figure)
    for run in runs:
        if run.eval_rows:
            last = run.eval_rows[-1]
            bound = last.get("eval_bound_perplexity")
            most = f", perplexity at most {bound:,.2f}," if isinstance(bound, float) else ""
            print(f"{run.name}: held-out loss {last['eval_loss']:.4f}{most} after {last['step']} updates")
    print(f"{flags.out}, {flags.out.with_suffix('.html')}: {len(runs)} run(s)")


def read_run(folder: Path, name: str) -> Run:
    """What a run folder tells: its metrics, samples and settings; logs are sought where its settings put them.

    Raises:
        InputError: no run there, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the output_dir of a run")
    config: dict[str, object] = {}
    if (folder / "training.yaml").is_file():
        config = _settings(folder / "training.yaml")
    logs = _logs(folder, config)
    if not (logs / "metrics.jsonl").is_file():
        raise InputError(f"{logs / 'metrics.jsonl'}: no such file; is {folder} a run folder?")
    records = read_lines(logs / "metrics.jsonl")
    if not records:
        raise InputError(f"{logs / 'metrics.jsonl'}: holds no metrics yet")
    samples = read_lines(logs / "samples.jsonl") if (logs / "samples.jsonl").is_file() else []
    return Run(name, records, samples, config)


def _logs(folder: Path, config: Mapping[str, object]) -> Path:
    """Where a run's records lie.

    Raises:
        InputError: what lies there is another run's.
    """
    told, own = config.get("project.log_dir"), owner_of(folder)
    if own is not None and own.log_dir == own.output_dir:
        return folder
    logs = place(str(told or folder))
    if own is not None and place(own.log_dir).is_dir():  # the setting may be relative, and this be another place
        logs = place(own.log_dir)
    theirs = owner_of(logs)
    if own is not None and theirs is not None and own.id != theirs.id:
        raise InputError(f"{logs} holds the records of the run {theirs.output_dir}, not those of {folder}")
    return logs


def _settings(path: Path) -> dict[str, object]:
    """{"training.lr": 1e-4, …}, unchecked: the run may be of an older version."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({brief(error)})") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: does not hold the settings of a run")
    flat: dict[str, object] = {}

    def walk(node: dict, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    walk(tree, "")
    return flat


if __name__ == "__main__":
    cli.run(main)
