"""The curves of training runs as one figure."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qwen3llada_jax.pictures import pyplot

from ..config.schema import OBJECTIVES

Records = Sequence[Mapping[str, Any]]

COLORS = ("#2563c9", "#e0702a", "#1f9d78", "#9a4fc0", "#c93550", "#8a7a1e", "#4a9fd8", "#6b6b6b")
INK, FAINT = "#22262b", "#8b929b"
BAND_NAMES = ("t < ¼", "¼ – ½", "½ – ¾", "t ≥ ¾")
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#c4c9d0",
    "axes.labelcolor": FAINT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
    "svg.hashsalt": "curves",  # the same runs give the same bytes
}


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        fields: metrics to draw, one line for each.
        smooth: draw a moving average over the faint points.
        scale: `linear`, `log` or `percent`.
        names: of the lines, where there are several.
    """

    title: str
    unit: str
    fields: tuple[str, ...]
    smooth: bool = False
    scale: str = "linear"
    names: tuple[str, ...] = ()


PANELS = (
    Panel("Training loss", "nats per token", ("loss",), smooth=True),
    Panel(
        "Training loss by objective",
        "nats per token",
        tuple(f"loss_{name}" for name in OBJECTIVES),
        smooth=True,
        names=OBJECTIVES,
    ),
    Panel("Cross-entropy of noised tokens", "nats", ("ce",), smooth=True),
    Panel("Held-out loss", "nats per token", ("eval_loss",)),
    Panel("Held-out perplexity", "at most: exp of the loss", ("eval_bound_perplexity",), scale="log"),
    Panel("Cross-entropy by noise level", "nats", ("ce_t0", "ce_t1", "ce_t2", "ce_t3"), smooth=True, names=BAND_NAMES),
    Panel(
        "Gradient norm",
        "before clipping",
        ("grad_norm", "grad_norm_max"),
        smooth=True,
        scale="log",
        names=("mean", "largest"),
    ),
    Panel("Update norm", "change of all weights", ("update_norm",), scale="log"),
    Panel("Parameter norm", "all weights", ("param_norm",)),
    Panel("Learning rate", "", ("lr",)),
    Panel("Speed", "tokens/s", ("tokens_per_second",)),
    Panel("FLOP utilization", "of peak", ("mfu",), scale="percent"),
    Panel("Waiting for data", "of the time", ("data_wait",), scale="percent"),
    Panel("Skipped updates", "so far", ("skipped",)),
)


def points(records: Records, field: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(updates, values) of the records that have a value of this metric."""
    pairs = [(r["step"], r[field]) for r in records if isinstance(r.get(field), (int, float))]
    return np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)


def moving_average(values: Float[np.ndarray, " n"], width: int) -> Float[np.ndarray, " n"]:
    """Mean of the up to `width` values around each one.

    At the start, where curves fall, the window shrinks on both sides so as not to lag; at the end only on the right,
    so that the last value, which people read off, is a mean as well.
    """
    half = width // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    left = np.minimum(half, place)
    right = np.minimum(left, len(values) - 1 - place)
    return (total[place + right + 1] - total[place - left]) / (left + right + 1)


def draw(curves: Mapping[str, Records]) -> Any:
    """A matplotlib figure with a panel for every metric that some run has; a color is a run.

    Args:
        curves: records of metrics.jsonl, by name of the run.
    """
    plt = pyplot()
    shown = [p for p in PANELS if any(_has(p, records) for records in curves.values())]
    columns = min(3, max(len(shown), 1))
    rows = math.ceil(len(shown) / columns) or 1
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(4.4 * columns, 2.75 * rows + 0.5), squeeze=False)
        for axis, panel in zip(grid.flat, shown, strict=False):
            _draw_panel(axis, panel, curves)
        for axis in list(grid.flat)[len(shown) :]:
            axis.set_axis_off()
        figure.supxlabel("updates", fontsize=9, color=FAINT)
        handles = [plt.Line2D([], [], color=_color(i), linewidth=2.5) for i in range(len(curves))]
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
        figure.legend(handles, list(curves), loc="outside upper left", ncols=min(len(curves), 4), fontsize=11)
    return figure


def _has(panel: Panel, records: Records) -> bool:
    return any(len(points(records, field)[0]) for field in panel.fields)


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _draw_panel(axis: Any, panel: Panel, curves: Mapping[str, Records]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    for index, records in enumerate(curves.values()):
        for band, field in enumerate(panel.fields):
            steps, values = points(records, field)
            if panel.scale == "log":
                steps, values = steps[values > 0], values[values > 0]
            if not len(steps):
                continue
            strength = 1.0 - 0.24 * band  # the noisier, the paler
            width = len(steps) // 12
            if panel.smooth and width >= 3:
                if len(panel.fields) == 1:
                    axis.plot(steps, values, color=_color(index), alpha=0.22, linewidth=0.8)
                values = moving_average(values, width)
            few = len(steps) <= 25
            axis.plot(
                steps, values, color=_color(index), alpha=strength, linewidth=1.7, solid_capstyle="round",
                marker="o" if few else None, markersize=3.2,
            )  # fmt: skip
    axis.set_title(panel.title)
    axis.set_title(panel.unit, loc="right", fontsize=8.5, fontweight="normal", color=FAINT)
    if panel.scale == "log":
        axis.set_yscale("log")
    elif panel.scale == "percent":
        axis.set_ylim(0, max(0.1, axis.get_ylim()[1]))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif panel.fields == ("tokens_per_second",):
        axis.set_ylim(0, None)
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    elif panel.fields == ("lr",):
        axis.set_ylim(0, None)
        axis.yaxis.set_major_formatter(lambda rate, _: f"{rate:.1e}".replace("e-0", "e-") if rate else "0")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.tick_params(length=0)
    if panel.names:
        for band, name in enumerate(panel.names):
            axis.plot([], [], color=INK, alpha=1.0 - 0.24 * band, linewidth=1.7, label=name)
        axis.legend(fontsize=8, ncols=2, handlelength=1.4, columnspacing=1.2, borderaxespad=0.1, loc="upper right")


def svg(figure: Any) -> str:
    """The figure as an SVG element to put into a page."""
    stream = io.StringIO()
    with pyplot().rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
