"""The text on the terminal while it is unmasked."""

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from qwen3llada_jax.sampling.state import Canvas

_MASK, _PROMPT, _WRITTEN, _NEW, _UNKNOWN = "·", "dim", "", "bold green", "bright_black"
_FRAME = 2  # lines, and columns at each side, that a panel takes around its text


def show_live(
    canvases: Iterable[Canvas], tokenizer: Any, *, stops: tuple[int, ...] = (), transient: bool = False
) -> Canvas:
    """Draw every canvas as it comes and return the last; off a terminal, after 1, 2, 4, 8, … passes and at the end.

    Args:
        stops: ids that end a text, of which only the first is shown.
        transient: wipe the drawing from a terminal when all is written.
    """
    console = Console(highlight=False, stderr=True)
    last: Canvas | None = None
    with Live(console=console, auto_refresh=False, transient=transient) as live:
        for number, canvas in enumerate(canvases):
            last = canvas
            is_shown = console.is_terminal or number & (number - 1) == 0 or not canvas.is_masked.any()
            if not is_shown:
                continue
            rows = list(_rows(canvas, tokenizer, stops))
            if console.is_terminal:
                live.update(Group(*_fitting(rows, console)), refresh=True)
            else:
                console.print(*(_panel(title, text) for title, text in rows))
    assert last is not None
    return last


def _panel(title: str, text: Text) -> Panel:
    return Panel(text, title=title, title_align="left")


def _fitting(rows: list[tuple[str, Text]], console: Console) -> Iterator[Panel | Text]:
    """As many texts as the terminal has place for, and of each the lines around what is being written."""
    height = console.height - 1  # a drawing as high as the terminal scrolls it
    shown = rows[: max(1, (height - 1) // (_FRAME + 1))]
    left = len(rows) - len(shown)
    lines_each = max(1, (height - bool(left)) // len(shown) - _FRAME)
    for title, text in shown:
        lines = text.wrap(console, max(1, console.width - 2 * _FRAME))
        if len(lines) <= lines_each:
            yield _panel(title, text)
            continue
        begin = min(max(0, _line_of_writing(list(lines)) - lines_each // 2), len(lines) - lines_each)
        part = f"lines {begin + 1}–{begin + lines_each} of {len(lines)}"
        yield _panel(f"{title} · {part}", Text("\n").join(lines[begin : begin + lines_each]))
    if left:
        yield Text(f"… and {left} more texts", _PROMPT)


def _line_of_writing(lines: list[Text]) -> int:
    """The first line with something new, else the first with a mask, else the last."""
    for style in (_NEW, _UNKNOWN):
        found = [number for number, line in enumerate(lines) if any(span.style == style for span in line.spans)]
        if found:
            return found[0]
    return len(lines) - 1


def _rows(canvas: Canvas, tokenizer: Any, stops: tuple[int, ...] = ()) -> Iterator[tuple[str, Text]]:
    """(title, text) of every row."""
    tokens, is_masked, written_at, places, length, passes = (
        np.asarray(x)
        for x in (canvas.tokens, canvas.is_masked, canvas.written_at, canvas.places, canvas.length, canvas.passes)
    )
    for row, end in enumerate(length):
        # What became EOS when the row ended was written by no pass.
        is_place = np.isin(np.arange(end), places[row]) & ~is_masked[row, :end]
        is_fill = is_place & (written_at[row, :end] < 0)
        is_end = is_place & ~is_fill & np.isin(tokens[row, :end], stops)
        is_fill |= is_end & (np.cumsum(is_end) > 1)
        left = int(is_masked[row].sum())
        title = f"pass {passes[row]}, {left} to write" if left else f"written in {passes[row]} passes"
        shown, masked, at = (x[row, :end][~is_fill] for x in (tokens, is_masked, written_at))
        yield title, _text(shown, masked, at, int(passes[row]) - 1, tokenizer)


def _text(tokens: np.ndarray, is_masked: np.ndarray, written_at: np.ndarray, step: int, tokenizer: Any) -> Text:
    """Runs of tokens of one style are decoded together: a character may span several tokens."""
    styles = [
        _MASK if masked else _PROMPT if at < 0 else _NEW if at == step else _WRITTEN
        for masked, at in zip(is_masked, written_at, strict=True)
    ]
    text, begin = Text(), 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or styles[end] != styles[begin]:
            if styles[begin] == _MASK:
                text.append(_MASK * (end - begin), _UNKNOWN)
            else:
                text.append(_visible(tokenizer.decode(tokens[begin:end])), styles[begin])
            begin = end
    return text


def _visible(text: str) -> str:
    """Without the control characters that would move the cursor: what is written might be any."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
