"""A progress bar on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows how far the updates are and the newest metrics."""

    def __init__(self, first: int, total: int):
        self._console = Console(highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("training", total=total, completed=first)
        self._total = total

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One update done."""
        self._bar.advance(self._task)

    def show(self, record: Mapping[str, Any]) -> None:
        """Print a line of metrics, and put the loss beside the bar."""
        step = record["step"]
        if "eval_loss" in record:
            line = (
                f"held out  loss {record['eval_loss']:.4f}  perplexity of noised tokens {record['eval_perplexity']:.2f}"
            )
        else:
            self._bar.update(self._task, description=f"loss {record['loss']:.3f}")
            line = (
                f"loss {record['loss']:.4f}  ce {record['ce']:.4f}  grad {record['grad_norm']:.2f}  "
                f"lr {record['lr']:.2e}  {record['tokens_per_second']:,.0f} tokens/s"
            )
        self._console.print(f"{step:>7}/{self._total}  {line}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False)
