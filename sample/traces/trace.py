"""In which pass each token was written, and how sure the model was: collected, and written to a file.

The kinds of file: .json (below), .png and .gif (picture.py), .html (page.py).

    settings   the sampler's settings; null: the model's
    passes     of the whole batch
    rows[]     one for each text
      nfe      forward passes
      tokens[] in the order of the text: token (its text), id, pass (from 1; null: it was given) and confidence (the
               probability the model gave it when it was written); before: what stood there and was masked again, with
               the pass until which it stood

A character that several tokens make stands at the last of them. What the end of a text filled up is left out. A
trace is of the first batch; a picture, a page or a film shows at most sixteen of its texts.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.pictures import pyplot
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.state import Canvas, Generation

KINDS = (".png", ".gif", ".html", ".json")
_ROWS = 16  # more is no picture


class Trace:
    """What was masked again on the way; empty when nobody watched, or nothing was."""

    def __init__(self) -> None:
        self.before: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def recording(self, canvases: Iterable[Canvas]) -> Iterator[Canvas]:
        """The canvases as they come, noting every token that disappears."""
        last: Canvas | None = None
        for canvas in canvases:
            if last is not None:
                again = np.asarray(canvas.is_masked) & ~np.asarray(last.is_masked)
                for row, position in np.argwhere(again).tolist():
                    stood = {
                        "id": int(last.tokens[row, position]),
                        "pass": int(last.written_at[row, position]) + 1,
                        "until": int(canvas.passes[row]),
                        "confidence": round(float(last.confidence[row, position]), 4),
                    }
                    self.before.setdefault((row, position), []).append(stood)
            last = canvas
            yield canvas


def check_trace_path(path: Path) -> None:
    """Refuse a file of unknown kind, or a picture that cannot be drawn, before any work is done.

    Raises:
        InputError: saying what to do.
    """
    if path.suffix not in KINDS:
        raise InputError(f"--trace {path}: unknown kind of file; use one of {' '.join(KINDS)}")
    if path.suffix in (".png", ".gif"):
        pyplot()


def write_trace(
    path: Path, trace: Trace, result: Generation, tokenizer: Any, settings: SamplerConfig, rows: Sequence[int]
) -> str:
    """Write the trace of these rows; returns what is to be said of it.

    Raises:
        InputError: the file cannot be written.
    """
    if not rows:
        return "not drawn, for nothing was written"
    shown = rows if path.suffix == ".json" else rows[:_ROWS]
    texts, note = [_row(trace, result, i, tokenizer) for i in shown], ""
    if path.suffix == ".json":
        names = {k: getattr(v, "__name__", v) for k, v in vars(settings).items()}
        record = {"settings": names, "passes": int(result.passes), "rows": texts}
        write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    elif path.suffix == ".html":
        from .page import page

        write_text(path, page(texts, settings))
    else:
        from .picture import draw, draw_moving, lacks_letters

        if lacks_letters(texts):
            note = f"; some characters are not in the picture's font, --trace {path.with_suffix('.html')} has them all"
        try:
            with warnings.catch_warnings():  # of matplotlib, one for each such character and each frame
                warnings.filterwarnings("ignore", "Glyph .* missing")
                (draw if path.suffix == ".png" else draw_moving)(path, texts)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    of = "" if len(shown) == len(rows) else f", of the first {len(shown)} texts"
    return f"when each token was written{of}{note}"


def _row(trace: Trace, result: Generation, i: int, tokenizer: Any) -> dict[str, Any]:
    tokens, at, sure, places = (
        np.asarray(x)[i] for x in (result.tokens, result.written_at, result.confidence, result.places)
    )
    to_write = set(places[places < len(tokens)].tolist())
    given = np.flatnonzero((sure > 0) & (at < 0))  # padding behind a shorter row has no confidence
    end = max([*to_write, *given.tolist()]) + 1
    texts = texts_of(tokens[:end].tolist(), tokenizer)
    pieces: list[dict[str, Any]] = []
    for position in range(end):
        is_written = position in to_write
        if is_written and at[position] < 0:
            continue  # became EOS when the row ended
        piece: dict[str, Any] = {"token": texts[position], "id": int(tokens[position])}
        piece |= {"pass": int(at[position]) + 1 if is_written else None}
        piece |= {"confidence": round(float(sure[position]), 4) if is_written else None}
        if (i, position) in trace.before:
            stood = trace.before[i, position]
            piece["before"] = [{"token": tokenizer.decode([b["id"]]), **b} for b in stood]
        pieces.append(piece)
    return {"nfe": int(result.nfe[i]), "tokens": pieces}


def texts_of(ids: list[int], tokenizer: Any) -> list[str]:
    """The text of each token, such that together they are the text of all."""
    texts, begin = [""] * len(ids), 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[begin:end])
        if not text.endswith("\ufffd") or end - begin == 4 or end == len(ids):  # a character has four bytes at most
            texts[end - 1], begin = text, end
    return texts
