"""A trace as a picture (.png), and as one that moves (.gif).

Each written token stands on a ground whose color is its pass; the bar under it is as long as the model was sure. The
strip below counts the tokens of every pass: how parallel the writing was. A dot marks a token whose place was masked
again on the way; the moving picture shows what stood there.
"""

import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from qwen3llada_jax.pictures import pyplot, write_picture

_COLUMNS = 72  # characters of a line of the picture
_ADVANCE = 0.602  # width of a character of matplotlib's own monospaced font, in its size
_FONT = "DejaVu Sans Mono"
_FRAMES = 80  # of a moving picture, at most


class Cell(NamedTuple):
    """A piece of a token on one line of the picture."""

    text: str
    number: int | None  # its pass; None: it was given
    confidence: float
    column: int
    line: int
    until: int | None = None  # the pass that masked it again
    is_second: bool = False  # something else stood here before


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the finished texts as a .png."""
    figure, artists = _figure(rows)
    _show(artists, max(artist.since for artist in artists))
    write_picture(figure, path)
    pyplot().close(figure)


def draw_moving(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a .gif in which the texts appear, pass by pass."""
    from matplotlib.animation import PillowWriter

    figure, artists = _figure(rows)
    last = max(artist.since for artist in artists)
    every = -(-last // _FRAMES)
    frames = [*range(0, last, every), *[last] * 6]
    writer = PillowWriter(fps=max(4, min(15, last // 6)))
    part = path.with_name(f".{path.name}.part.gif")
    with writer.saving(figure, str(part), dpi=90):
        for frame in frames:
            _show(artists, frame)
            writer.grab_frame()
    part.replace(path)
    pyplot().close(figure)


def lacks_letters(rows: list[dict[str, Any]]) -> bool:
    """Is there a character that the picture's font cannot draw?"""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont(_FONT)).get_charmap()
    return any(ord(c) not in known for row in rows for cell in _lay_out(row["tokens"]) for c in cell.text)


class Shown(NamedTuple):
    """Part of the drawing, there after pass `since` and no longer after pass `until`."""

    artist: Any
    since: int
    until: int | None


def _show(artists: list[Shown], number: int) -> None:
    """What stood there after so many passes."""
    for artist, since, until in artists:
        artist.set_visible(since <= number and (until is None or number < until))


def _figure(rows: list[dict[str, Any]]) -> tuple[Any, list[Shown]]:
    """The drawing, and when each part of it is there."""
    plt = pyplot()
    laid_out = [_lay_out(row["tokens"]) for row in rows]
    heights = [max(cell.line for cell in cells) + 1 for cells in laid_out]
    passes = [t["pass"] for row in rows for t in row["tokens"] if t["pass"] is not None]
    passes += [stood["pass"] for row in rows for t in row["tokens"] for stood in t.get("before", ())]
    last = max(passes)
    figure, axes = plt.subplots(
        len(rows) + 1,
        1,
        figsize=(9.5, 1.6 + 0.28 * sum(heights)),
        squeeze=False,
        height_ratios=[*heights, 3.5],
        layout="constrained",
    )
    colors, scale = plt.get_cmap("viridis_r"), plt.Normalize(1, max(last, 2))
    for axis, height in zip(axes[:-1, 0], heights, strict=True):
        axis.set(xlim=(0, _COLUMNS), ylim=(height, 0))
        axis.axis("off")
    strip = axes[-1, 0]
    counts = [passes.count(number) for number in range(1, last + 1)]
    bars = strip.bar(range(1, last + 1), counts, width=1.0, color=[colors(scale(n)) for n in range(1, last + 1)])
    strip.set(xlim=(0.5, last + 0.5), xlabel="pass (the color of its tokens)", ylabel="tokens")
    for axis in (strip.xaxis, strip.yaxis):
        axis.get_major_locator().set_params(integer=True)
    strip.spines[["top", "right"]].set_visible(False)
    figure.canvas.draw()  # lays the axes out, which tells how large a character is
    points = axes[0, 0].get_window_extent().width / figure.dpi * 72 / _COLUMNS / _ADVANCE
    artists = [Shown(bar, number, None) for number, bar in enumerate(bars, 1)]
    for axis, cells in zip(axes[:-1, 0], laid_out, strict=True):
        for cell in cells:
            made = _draw_cell(axis, cell, colors, scale, points)
            artists += [Shown(artist, cell.number or 0, cell.until) for artist in made]
    return figure, artists


def _draw_cell(axis: Any, cell: Cell, colors: Any, scale: Any, points: float) -> list[Any]:
    plt = pyplot()
    ground = "white" if cell.number is None else colors(scale(cell.number))
    is_dark = cell.number is not None and sum(ground[:3]) < 1.6
    ink = "white" if is_dark else "gray" if cell.number is None else "black"
    width = wide(cell.text)
    letters = {"family": _FONT, "fontsize": points, "parse_math": False}
    artists = []
    if cell.number is not None:
        # A mask lies below every written token, and shows where none stands yet.
        axis.text(cell.column, cell.line + 0.7, "░" * width, color="lightgray", zorder=0.5, **letters)
        sure = max(0.06, cell.confidence)
        artists = [
            plt.Rectangle((cell.column, cell.line + 0.02), width, 0.93, color=ground, linewidth=0),
            plt.Rectangle((cell.column, cell.line + 0.84), width * sure, 0.09, color="crimson", linewidth=0),
        ]
    if cell.is_second:
        artists.append(plt.Rectangle((cell.column + width - 0.4, cell.line + 0.04), 0.3, 0.16, color="crimson"))
    for artist in artists:
        axis.add_patch(artist)
    return [*artists, axis.text(cell.column, cell.line + 0.7, cell.text, color=ink, **letters)]


def _lay_out(tokens: list[dict[str, Any]]) -> list[Cell]:
    """The pieces of all tokens, wrapped at `_COLUMNS` and at line breaks."""
    cells: list[Cell] = []
    column, line = 0, 0
    for token in tokens:
        first = len(cells)
        of_token = token["pass"], token["confidence"] or 0.0
        for number, piece in enumerate(printable(token["token"]).split("\n")):
            if number:
                cells.append(Cell("↵", *of_token, column, line))
                column, line = 0, line + 1
            text = ""
            for letter in _letters(piece):
                if column + wide(text + letter) > _COLUMNS:
                    if text:
                        cells.append(Cell(text, *of_token, column, line))
                    text, column, line = "", 0, line + 1
                text += letter
            if text:
                cells.append(Cell(text, *of_token, column, line))
                column += wide(text)
        if token.get("before") and len(cells) > first:
            here = cells[first] = cells[first]._replace(is_second=True)
            room = wide(here.text)
            for stood in token["before"]:
                text = printable(stood["token"]).replace("\n", "↵")[:room].ljust(room)
                cells.append(Cell(text, stood["pass"], stood["confidence"], here.column, here.line, stood["until"]))
    return cells


def printable(text: str) -> str:
    """Without the control characters that no font has."""
    text = text.replace("\t", "    ").replace("\r", "")
    return "".join("·" if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)


def wide(text: str) -> int:
    """Columns that a text takes: Chinese, Japanese and Korean letters take two."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _letters(text: str) -> list[str]:
    """Letters, each with the marks that combine with it."""
    letters: list[str] = []
    for c in text:
        if letters and unicodedata.combining(c):
            letters[-1] += c
        else:
            letters.append(c)
    return letters
