"""The order in which a text was unmasked: as a picture, or as JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada_jax.canvas import Generation
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import write_text
from qwen3llada_jax.pictures import pyplot
from qwen3llada_jax.sampler_config import SamplerConfig

_COLUMNS = 72  # characters of a line of the picture
_ADVANCE = 0.602  # width of a character of matplotlib's own monospaced font, in its size


def check_trace_path(path: Path) -> None:
    """Refuse a file of unknown kind, or a picture that cannot be drawn, before any work is done.

    Raises:
        InputError: saying what to do.
    """
    if path.suffix not in (".png", ".json"):
        raise InputError(f"--trace {path}: unknown kind of file; use .png or .json")
    if not path.parent.is_dir():
        raise InputError(f"--trace {path}: no such folder {path.parent}")
    if path.suffix == ".png":
        pyplot()


def write_trace(path: Path, result: Generation, tokenizer: Any, settings: SamplerConfig) -> None:
    """Write, for every token, its text, the step that wrote it (from 1) and the probability it had then.

    Raises:
        InputError: the file cannot be written.
    """
    rows = [_row(result, i, tokenizer) for i in range(len(result.prompt_length))]
    if path.suffix == ".json":
        record = {"settings": vars(settings), "nfe": np.asarray(result.nfe).tolist(), "rows": rows}
        write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        _draw(path, rows, result.passes)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _row(result: Generation, i: int, tokenizer: Any) -> dict[str, Any]:
    tokens, at, sure = (np.asarray(x)[i] for x in (result.tokens, result.written_at, result.confidence))
    start = int(result.prompt_length[i])
    written = [
        {"token": tokenizer.decode([int(t)]), "id": int(t), "step": int(s) + 1, "confidence": round(float(c), 4)}
        for t, s, c in zip(tokens, at, sure, strict=True)
        if s >= 0
    ]
    return {"prompt": tokenizer.decode(tokens[:start]), "written": written}


def _draw(path: Path, rows: list[dict[str, Any]], passes: int) -> None:
    """Each token on a ground whose colour is its step; one part for every row."""
    plt = pyplot()
    laid_out = [_lay_out(row) for row in rows]
    heights = [max(line for *_, line in cells) + 1 for cells in laid_out]
    figure, axes = plt.subplots(
        len(rows),
        1,
        figsize=(9.5, 0.6 + 0.26 * sum(heights)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    colours = plt.get_cmap("viridis_r")
    scale = plt.Normalize(1, max(passes, 2))
    bar = figure.colorbar(plt.cm.ScalarMappable(scale, colours), ax=axes[:, 0].tolist(), fraction=0.03, pad=0.02)
    bar.set_label("step at which a token was written")
    for axis, height in zip(axes[:, 0], heights, strict=True):
        axis.set(xlim=(0, _COLUMNS), ylim=(height, 0))
        axis.axis("off")
    figure.canvas.draw()  # lays the axes out, which tells how large a character is
    points = axes[0, 0].get_window_extent().width / figure.dpi * 72 / _COLUMNS / _ADVANCE
    for axis, cells in zip(axes[:, 0], laid_out, strict=True):
        for text, step, column, line in cells:
            ground = "white" if step is None else colours(scale(step))
            is_dark = step is not None and sum(ground[:3]) < 1.6
            axis.add_patch(plt.Rectangle((column, line + 0.04), len(text), 0.92, color=ground, linewidth=0))
            axis.text(
                column, line + 0.72, text, family="DejaVu Sans Mono", fontsize=points, parse_math=False,
                color="white" if is_dark else "grey" if step is None else "black",
            )  # fmt: skip
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=130, format="png")
    part.replace(path)
    plt.close(figure)


def _lay_out(row: dict[str, Any]) -> list[tuple[str, int | None, int, int]]:
    """(text, step, column, line) of every piece, wrapped at `_COLUMNS` and at line breaks."""
    cells, column, line = [], 0, 0
    for text, step in [(row["prompt"], None)] + [(w["token"], w["step"]) for w in row["written"]]:
        for number, piece in enumerate(text.split("\n")):
            if number:
                cells.append(("↵", step, column, line))
                column, line = 0, line + 1
            rest = piece
            while rest:
                if column >= _COLUMNS:
                    column, line = 0, line + 1
                part, rest = rest[: _COLUMNS - column], rest[_COLUMNS - column :]
                cells.append((part, step, column, line))
                column += len(part)
    return cells
