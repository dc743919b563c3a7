"""The text on the terminal while it is unmasked."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from qwen3llada_jax.canvas import Canvas

_MASK, _PROMPT, _WRITTEN, _NEW = "·", "dim", "", "bold green"


def show_live(canvases: Iterable[Canvas], tokenizer: Any, *, transient: bool = False) -> Canvas:
    """Draw every canvas as it comes and return the last; off a terminal, after 1, 2, 4, 8, … passes and at the end.

    Args:
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
            panels = [Panel(text, title=title, title_align="left") for title, text in _rows(canvas, tokenizer)]
            if console.is_terminal:
                live.update(Group(*panels), refresh=True)
            else:
                console.print(*panels)
    assert last is not None
    return last


def _rows(canvas: Canvas, tokenizer: Any) -> Iterator[tuple[str, Text]]:
    """(title, text) of every row."""
    tokens, is_masked, written_at, places, length, passes = (
        np.asarray(x)
        for x in (canvas.tokens, canvas.is_masked, canvas.written_at, canvas.places, canvas.length, canvas.passes)
    )
    for row, end in enumerate(length):
        # What became EOS when the row ended was written by no pass.
        is_fill = np.isin(np.arange(end), places[row]) & ~is_masked[row, :end] & (written_at[row, :end] < 0)
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
                text.append(_MASK * (end - begin), "dim")
            else:
                text.append(tokenizer.decode(tokens[begin:end]), styles[begin])
            begin = end
    return text
