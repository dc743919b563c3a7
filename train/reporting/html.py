"""A page about training runs: curves, last numbers, settings that differ, and what the models wrote."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from .plots import COLORS, points

_LATEST = 2  # samples of a prompt that are shown at once, the rest behind a click


class Run(NamedTuple):
    """What a run folder tells: records of metrics.jsonl and samples.jsonl, and {"training.lr": 1e-4, …}."""

    name: str
    records: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    config: Mapping[str, Any]

    @property
    def eval_rows(self) -> list[dict[str, Any]]:
        """Records with a held-out loss."""
        return [r for r in self.records if isinstance(r.get("eval_loss"), float)]


def page(runs: Sequence[Run], curves: str) -> str:
    """A whole HTML page that needs no other file; `curves` is an SVG element."""
    title = " · ".join(run.name for run in runs)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<figure>{curves}<figcaption>Strong lines of loss, cross-entropy "
        "and gradient norm are moving averages over a twelfth of the points; faint ones are the points, each the mean "
        "of the updates since the one before."
        "</figcaption></figure>",
        "<h2>Final numbers</h2>",
        _final_numbers(runs),
    ]
    if len(runs) > 1:
        parts += ["<h2>Settings that differ</h2>", _differences(runs)]
    else:
        parts += ["<h2>Settings</h2>", f"<details><summary>all of them</summary>{_settings(runs[0])}</details>"]
    if any(run.samples for run in runs):
        parts += ["<h2>What they wrote</h2>", _samples(runs)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head>\n<body>{body}</body></html>\n'
    )


def summary(run: Run) -> dict[str, str]:
    """The last numbers of a run, by heading. Losses are means over the last tenth of its lines of metrics."""

    def late(field: str) -> float:
        values = points(run.records, field)[1]
        return float(values[-max(1, len(values) // 10) :].mean()) if len(values) else math.nan

    def usual(field: str) -> float:
        values = points(run.records, field)[1]
        return float(np.median(values)) if len(values) else math.nan

    def latest(field: str) -> float:
        values = points(run.records, field)[1]
        return float(values[-1]) if len(values) else math.nan

    with np.errstate(over="ignore"):  # of a run that has blown up: inf
        perplexity = float(np.exp(late("ce")))
    out = {
        "updates": f"{run.records[-1]['step']:,}",
        "loss": _number(late("loss")),
        "cross-entropy": _number(late("ce")),
        "perplexity of noised tokens": _number(perplexity),
    }
    if run.eval_rows:
        best = min(run.eval_rows, key=lambda r: r["eval_loss"])
        out["held-out loss"] = _number(run.eval_rows[-1]["eval_loss"])
        out["lowest held-out loss"] = f"{_number(best['eval_loss'])} (update {best['step']:,})"
        if len(points(run.eval_rows, "eval_bound_perplexity")[1]):
            out["held-out perplexity, at most"] = _number(latest("eval_bound_perplexity"))
            out["the same, of noised tokens"] = _number(latest("eval_noised_perplexity"))
    for field, name in (("tokens", "tokens trained on"), ("epoch", "epochs"), ("elapsed", "hours")):
        if len(points(run.records, field)[1]):
            value = latest(field)
            out[name] = f"{value:,.0f}" if field == "tokens" else f"{value / (3600 if name == 'hours' else 1):,.2f}"
    out["tokens/s"] = f"{usual('tokens_per_second'):,.0f}"
    if len(points(run.records, "mfu")[1]):
        out["FLOP utilization"] = f"{usual('mfu'):.1%}"
    if len(points(run.records, "data_wait")[1]):
        out["waiting for data"] = f"{usual('data_wait'):.1%}"
    if len(points(run.records, "skipped")[1]):
        out["skipped updates"] = f"{latest('skipped'):.0f}"
    return {k: "–" if "nan" in v else v for k, v in out.items()}


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.4f}"


def _names(runs: Sequence[Run]) -> str:
    return "".join(f"<th>{_dot(i)}{escape(run.name)}</th>" for i, run in enumerate(runs))


def _dot(index: int) -> str:
    return f'<i style="background:{COLORS[index % len(COLORS)]}"></i>'


def _table(runs: Sequence[Run], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows.items()
    ]
    return f"<table><thead><tr><th></th>{_names(runs)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _final_numbers(runs: Sequence[Run]) -> str:
    summaries = [summary(run) for run in runs]
    names = dict.fromkeys(name for one in summaries for name in one)
    return _table(runs, {name: [one.get(name, "–") for one in summaries] for name in names})


def _differences(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.config)
    rows = {name: [_value(run, name) for run in runs] for name in names}
    rows = {name: cells for name, cells in rows.items() if len(set(cells)) > 1}
    return _table(runs, rows) if rows else "<p>None.</p>"


def _settings(run: Run) -> str:
    return _table([run], {name: [_value(run, name)] for name in run.config})


def _value(run: Run, name: str) -> str:
    if name not in run.config:
        return "–"
    value = run.config[name]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _samples(runs: Sequence[Run]) -> str:
    prompts = dict.fromkeys(str(s.get("prompt", "")) for run in runs for s in run.samples)
    out = []
    for prompt in prompts:
        out.append(f"<h3>{escape(prompt)}</h3><div class=columns>")
        for index, run in enumerate(runs):
            texts = [
                f"<p><b>{s['step']:,}</b>{escape(str(s.get('answer') or s.get('error', '')))}</p>"
                for s in reversed(run.samples)
                if str(s.get("prompt", "")) == prompt
            ]
            older = "".join(texts[_LATEST:])
            more = f"<details><summary>{len(texts) - _LATEST} earlier</summary>{older}</details>" if older else ""
            out.append(f"<div><h4>{_dot(index)}{escape(run.name)}</h4>{''.join(texts[:_LATEST])}{more}</div>")
        out.append("</div>")
    return "".join(out)


_CSS = """
body{font:15px/1.5 system-ui,sans-serif;color:#22262b;background:#fff;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem}h3{white-space:pre-wrap;font-size:1rem}h4{margin:.3rem 0}
figure{margin:0}figure svg{width:100%;height:auto}figcaption{color:#6b727b;font-size:13px}
table{border-collapse:collapse}th,td{padding:.3rem 1.2rem .3rem 0;text-align:left;border-bottom:1px solid #eceef1}
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}tbody th{font-weight:normal;color:#6b727b}
i{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:1.5rem}
p{white-space:pre-wrap;background:#f6f7f9;padding:.6rem .8rem;border-radius:6px;margin:.4rem 0}
p b{float:right;color:#8b929b;font-weight:normal;font-size:12px;margin-left:1rem}summary{cursor:pointer;color:#6b727b}
"""
