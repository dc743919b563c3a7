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


def show_live(canvases: Iterable[Canvas], tokenizer: Any, steps: int) -> Canvas:
    """Draw every canvas as it comes and return the last; off a terminal, only a handful of them, one after another."""
    console = Console(highlight=False, stderr=True)
    every = 1 if console.is_terminal else max(1, steps // 4)
    last: Canvas | None = None
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for number, canvas in enumerate(canvases):
            last = canvas
            if number % every and number != steps:
                continue
            title = f"step {number}/{steps}"
            panels = [Panel(text, title=title, title_align="left") for text in _texts(canvas, number - 1, tokenizer)]
            if console.is_terminal:
                live.update(Group(*panels), refresh=True)
            else:
                console.print(*panels)
    assert last is not None
    return last


def _texts(canvas: Canvas, step: int, tokenizer: Any) -> Iterator[Text]:
    tokens, is_masked, written_at = (np.asarray(x) for x in (canvas.tokens, canvas.is_masked, canvas.written_at))
    for row in range(len(tokens)):
        used = np.flatnonzero(is_masked[row] | (written_at[row] >= 0))
        yield _text(tokens[row, : used[-1] + 1], is_masked[row], written_at[row], step, tokenizer)


def _text(tokens: np.ndarray, is_masked: np.ndarray, written_at: np.ndarray, step: int, tokenizer: Any) -> Text:
    """Runs of tokens of one style are decoded together: a character may span several tokens."""
    styles = [
        _MASK if masked else _PROMPT if at < 0 else _NEW if at == step else _WRITTEN
        for masked, at in zip(is_masked[: len(tokens)], written_at[: len(tokens)], strict=True)
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
