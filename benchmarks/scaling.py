"""Does cost grow as it should? Training steps and texts that differ in one size: a table, lines, and a picture.

    python -m benchmarks.scaling [--only batch,length] [--longest 8192] [--readings 3] [--out FILE.json]

The small model (256 wide, 6 layers) on this machine's CPU in float32: steps of 1 to 32 rows, of 2 to 16 layers, of rows
of 256 to 8,192 tokens, and 1 to 64 texts written at once (block_causal, its cache, 4 tokens a pass). Time per token
should be flat in the rows, linear in the layers, and grow with L by attention's part alone; memory linear in L. Each
reading is a process of its own; they are kept in --out, with the picture beside it, and the same command goes on.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring.collecting import collect, continued
from benchmarks.measuring.growth import Measured, judgments, line, measured, series
from benchmarks.measuring.machine import sentence
from benchmarks.peers.reading import ReadingFailedError
from benchmarks.run_all import ON_THE_CPU
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.pictures import pyplot, write_picture
from train.reporting.plots import COLORS, FAINT, STYLE

HEADS = {"batch": "rows of 256 tokens", "layers": "layers", "length": "tokens of the row", "texts": "texts at once"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of the series: {', '.join(HEADS)}")
    parser.add_argument("--longest", type=int, default=8192, help="the longest row (default: %(default)s)")
    parser.add_argument("--readings", type=int, default=3, help="of each point (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/performance/scaling.json"), help="(default: %(default)s)")
    flags = parser.parse_args()
    asked = flags.only.split(",") if flags.only else list(HEADS)
    if unknown := [name for name in asked if name not in HEADS]:
        parser.error(f"--only {unknown[0]}: no such series; choose of {', '.join(HEADS)}")
    if flags.readings < 1 or flags.longest < 512:
        parser.error("--readings must be at least 1, and --longest 512: a line has two points")
    os.environ.update(ON_THE_CPU)
    chosen = {name: points for name, points in series(flags.longest).items() if name in asked}
    try:
        plt = pyplot()
        collection = continued(flags.out)
        collect(collection, [point.row for points in chosen.values() for point in points], flags.readings)
    except InputError as error:
        parser.error(str(error))
    except ReadingFailedError as error:
        sys.exit(f"{error} (see above). What was read is kept in {flags.out}; the same command goes on")
    by_name = {name: measured(points, collection.found) for name, points in chosen.items()}
    print(markdown(by_name))
    print("\n".join([sentence(collection.machine) + ".", *judgments(by_name)]))
    figure = draw(by_name)
    write_picture(figure, flags.out.with_suffix(".png"), dpi=150)
    plt.close(figure)


def markdown(by_name: Mapping[str, Sequence[Measured]]) -> str:
    lines = ["| | | seconds | µs a token | memory, GB |", "| --- | --- | --- | --- | --- |"]
    for name, points in by_name.items():
        lines += [
            f"| {HEADS[name]} | {p.size:,} | {p.seconds:.3g} | {p.per_token:.3g} | {p.memory:.2f} |" for p in points
        ]
    return "\n".join(lines) + "\n"


def draw(by_name: Mapping[str, Sequence[Measured]]) -> Any:
    """Time per token of each series, seconds of the layers', and memory by length; straight lines where they belong."""
    plt = pyplot()
    panels = [(name, "per_token" if name != "layers" else "seconds") for name in by_name]
    panels += [("length", "memory")] if "length" in by_name else []
    units = {"per_token": "µs a token", "seconds": "s a step", "memory": "GB at the peak"}
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(panels), figsize=(3.2 * len(panels) + 0.4, 2.9), layout="constrained", squeeze=False
        )
        for axis, (name, value) in zip(grid.flat, panels, strict=True):
            points = by_name[name]
            sizes, values = [p.size for p in points], [getattr(p, value) for p in points]
            if name in ("layers", "length"):
                fit = line(sizes, values)
                ends = [0, sizes[-1]]
                axis.plot(ends, [fit.at(x) for x in ends], color=FAINT, linewidth=1)
            else:
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter("{x:.0f}")
            axis.plot(sizes, values, "o", color=COLORS[0], markersize=4.5)
            axis.set_ylim(0, None)
            axis.set_title(HEADS[name])
            axis.set_title(units[value], loc="right", fontsize=8.5, fontweight="normal", color=FAINT)
            axis.tick_params(length=0)
    return figure


if __name__ == "__main__":
    main()
