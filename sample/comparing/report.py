"""What `sample.compare` found: a table, and with --out its figures and their picture."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.pictures import pyplot, write_picture

from . import frontier
from .frontier import Points
from .variants import budgets_of

_SPEED = {"nfe": "NFE", "tokens_per_forward": "tokens a forward", "tokens_per_second": "tokens/s"}


def report(measured: Sequence[dict[str, Any]], points: Points, flags: Any) -> None:
    """The table, and with --out the figures and their picture.

    Args:
        flags: of `sample.compare`.
    """
    has_answers = "log_probability" not in measured[0]
    measure = flags.match.partition("=")[0] if has_answers else "log_probability"
    found = frontier.with_intervals(measured, measure, points, flags.seed)
    areas = frontier.areas(found, measure, points, flags.seed) if has_answers else []
    tables = [_table(found, measure), *([_areas_table(areas)] if any(a["levels"] > 1 for a in areas) else [])]
    for table in tables:  # A pipe has no columns to be cut at.
        Console(width=None if sys.stdout.isatty() else 1 << 12).print(table)
    if flags.out:
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(flags).items()}
        asked |= {"steps": None, "steps_list": budgets_of(flags.steps)}
        everything = {"flags": asked, "results": found, "aup": areas}
        write_text(flags.out / "compare.json", json.dumps(everything, indent=1, allow_nan=False) + "\n")
        draw(found, measure, flags.out / "compare.png")
        print(f"{flags.out}: compare.json, compare.png", file=sys.stderr)


def _table(found: Sequence[Mapping[str, Any]], measure: str) -> Table:
    has_answers = measure != "log_probability"
    heads = [measure if has_answers else "log p a token", "95%", "to the first", "distinct 4-grams", *_SPEED.values()]
    table = Table(Column("rule", overflow="fold", min_width=14), "steps", *heads)

    def shown(value: float | None, sign: str = "") -> str:
        return "—" if value is None else f"{value:{sign}.1%}" if has_answers else f"{value:{sign}.3f}"

    def between(ends: Sequence[float] | None, sign: str = "") -> str:
        return "—" if ends is None else " … ".join(shown(x, sign) for x in ends)

    for i, row in enumerate(found):
        good = shown(row[measure]) + (f" ± {row['standard_error']:.1%}" if has_answers else "")
        gain = f"{shown(row['difference_to_first'], '+')} ({between(row['difference_interval'], '+')})" if i else "—"
        numbers = [f"{row['nfe']:.1f}", f"{row['tokens_per_forward']:.2f}", f"{row['tokens_per_second']:.1f}"]
        distinct = f"{row['distinct_4grams']:.1%}"
        table.add_row(row["rule"], str(row["steps"] or "—"), good, between(row["interval"]), gain, distinct, *numbers)
    return table


def _areas_table(areas: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(Column("sweep", overflow="fold", min_width=14), "levels", "AUP", "95%")
    for area in sorted(areas, key=lambda area: -area["aup"]):
        ends = "—" if area["interval"] is None else " … ".join(f"{x:.1f}" for x in area["interval"])
        table.add_row(area["rule"], str(area["levels"]), f"{area['aup']:.1f}", ends)
    return table


def draw(found: Sequence[Mapping[str, Any]], measure: str, path: Path) -> None:
    """Quality against tokens a forward, and against speed; a line for each rule, 95% intervals drawn."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for rule, at in frontier.sweeps(found).items():
        rows = sorted((found[i] for i in at if found[i][measure] is not None), key=lambda r: r["tokens_per_forward"])
        up = _arms(rows, measure, "interval")
        across = _arms(rows, "tokens_per_forward", "tokens_per_forward_interval")
        for axis, name, wide in zip(axes, ("tokens_per_forward", "tokens_per_second"), (across, None), strict=True):
            axis.errorbar(
                [r[name] for r in rows], [r[measure] for r in rows], up, wide, fmt="o-", capsize=2, label=rule
            )
    what = "log p a token, given all others (nats)" if measure == "log_probability" else f"right answers ({measure})"
    axes[0].set(xlabel="tokens a forward pass", ylabel=what, xscale="log")
    axes[1].set(xlabel="tokens/s", xscale="log")
    axes[0].legend(fontsize="small")
    write_picture(figure, path)
    plt.close(figure)


def _arms(rows: Sequence[Mapping[str, Any]], name: str, ends: str) -> list[list[float]]:
    """How far an interval reaches below and above each point, which a skewed one may not hold."""
    pairs = [(row[name], row[ends] or (row[name], row[name])) for row in rows]
    return [[max(x - low, 0.0) for x, (low, _) in pairs], [max(high - x, 0.0) for x, (_, high) in pairs]]
