"""A trace as a picture (.png), and as one that moves (.gif).

Each written token stands on a ground whose colour is its pass; the bar under it is as long as the model was sure. The
strip below counts the tokens of every pass: how parallel the writing was.
"""

from pathlib import Path
from typing import Any, NamedTuple

from qwen3llada_jax.pictures import pyplot

_COLUMNS = 72  # characters of a line of the picture
_ADVANCE = 0.602  # width of a character of matplotlib's own monospaced font, in its size
_FRAMES = 80  # of a moving picture, at most


class Cell(NamedTuple):
    """A piece of a token on one line of the picture."""

    text: str
    number: int | None  # its pass; None: it was given
    confidence: float
    column: int
    line: int


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the finished texts as a .png."""
    figure, artists = _figure(rows)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=130, format="png")
    part.replace(path)
    pyplot().close(figure)
    del artists


def draw_moving(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a .gif in which the texts appear, pass by pass."""
    from matplotlib.animation import PillowWriter

    figure, artists = _figure(rows)
    last = max(number for _, number in artists)
    every = -(-last // _FRAMES)
    frames = [*range(0, last, every), *[last] * 6]
    writer = PillowWriter(fps=max(4, min(15, last // 6)))
    part = path.with_name(f".{path.name}.part.gif")
    with writer.saving(figure, str(part), dpi=90):
        for frame in frames:
            for artist, number in artists:
                artist.set_visible(number <= frame)
            writer.grab_frame()
    part.replace(path)
    pyplot().close(figure)


def _figure(rows: list[dict[str, Any]]) -> tuple[Any, list[tuple[Any, int]]]:
    """The drawing, and what of it belongs to which pass."""
    plt = pyplot()
    laid_out = [_lay_out(row["tokens"]) for row in rows]
    heights = [max(cell.line for cell in cells) + 1 for cells in laid_out]
    passes = [t["pass"] for row in rows for t in row["tokens"] if t["pass"] is not None]
    last = max(passes)
    figure, axes = plt.subplots(
        len(rows) + 1,
        1,
        figsize=(9.5, 1.6 + 0.28 * sum(heights)),
        squeeze=False,
        height_ratios=[*heights, 3.5],
        layout="constrained",
    )
    colours, scale = plt.get_cmap("viridis_r"), plt.Normalize(1, max(last, 2))
    for axis, height in zip(axes[:-1, 0], heights, strict=True):
        axis.set(xlim=(0, _COLUMNS), ylim=(height, 0))
        axis.axis("off")
    strip = axes[-1, 0]
    counts = [passes.count(number) for number in range(1, last + 1)]
    strip.bar(range(1, last + 1), counts, width=1.0, color=[colours(scale(n)) for n in range(1, last + 1)])
    strip.set(xlim=(0.5, last + 0.5), xlabel="pass (the colour of its tokens)", ylabel="tokens")
    strip.yaxis.get_major_locator().set_params(integer=True)
    strip.spines[["top", "right"]].set_visible(False)
    figure.canvas.draw()  # lays the axes out, which tells how large a character is
    points = axes[0, 0].get_window_extent().width / figure.dpi * 72 / _COLUMNS / _ADVANCE
    artists: list[tuple[Any, int]] = []
    for axis, cells in zip(axes[:-1, 0], laid_out, strict=True):
        for cell in cells:
            artists += [(artist, cell.number or 0) for artist in _draw_cell(axis, cell, colours, scale, points)]
    return figure, artists


def _draw_cell(axis: Any, cell: Cell, colours: Any, scale: Any, points: float) -> list[Any]:
    plt = pyplot()
    ground = "white" if cell.number is None else colours(scale(cell.number))
    is_dark = cell.number is not None and sum(ground[:3]) < 1.6
    ink = "white" if is_dark else "grey" if cell.number is None else "black"
    width = len(cell.text)
    artists = [plt.Rectangle((cell.column, cell.line + 0.04), width, 0.86, color=ground, linewidth=0)]
    if cell.number is not None:
        sure = max(0.06, cell.confidence)
        artists.append(plt.Rectangle((cell.column, cell.line + 0.84), width * sure, 0.09, color="crimson", linewidth=0))
    for artist in artists:
        axis.add_patch(artist)
    text = axis.text(
        cell.column, cell.line + 0.7, cell.text, family="DejaVu Sans Mono", fontsize=points, parse_math=False, color=ink
    )  # fmt: skip
    return [*artists, text]


def _lay_out(tokens: list[dict[str, Any]]) -> list[Cell]:
    """The pieces of all tokens, wrapped at `_COLUMNS` and at line breaks."""
    cells, column, line = [], 0, 0
    for token in tokens:
        of_token = token["pass"], token["confidence"] or 0.0
        for number, piece in enumerate(token["token"].split("\n")):
            if number:
                cells.append(Cell("↵", *of_token, column, line))
                column, line = 0, line + 1
            rest = piece
            while rest:
                if column >= _COLUMNS:
                    column, line = 0, line + 1
                part, rest = rest[: _COLUMNS - column], rest[_COLUMNS - column :]
                cells.append(Cell(part, *of_token, column, line))
                column += len(part)
    return cells
