"""A progress bar on a terminal, plain lines elsewhere."""

import datetime
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..config.schema import OBJECTIVES


class Progress:
    """Shows how far the updates are and the newest metrics."""

    def __init__(self, first: int, total: int, *, quiet: bool = False):
        self._console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # An update may take a minute; the time left is estimated over more than rich's 30 seconds.
        shown = self._console.is_terminal and not quiet
        self._bar = Bar(*columns, console=self._console, disable=not shown, speed_estimate_period=600)
        self._task = self._bar.add_task("training", total=total, completed=first)
        self._total, self._is_warm = total, False

    def start(self) -> None:
        """Show the bar."""
        self._bar.start()

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def advance(self) -> None:
        """One update done."""
        self._bar.advance(self._task)

    def show(self, record: Mapping[str, Any]) -> None:
        """Print a line of metrics, and put loss and speed beside the bar."""
        step = record["step"]
        if "eval_loss" in record:
            line = f"held out  loss {record['eval_loss']:.4f}"
            if "eval_bound_perplexity" in record:
                line += f"  perplexity at most {record['eval_bound_perplexity']:.2f}"
            line += f"  (of noised tokens {record['eval_noised_perplexity']:.2f})"
        else:
            speed = f"{record['tokens_per_second']:,.0f} tokens/s"
            self._bar.update(self._task, description=f"loss {record['loss']:.3f}  {speed}")
            each = ", ".join(f"{name} {record[f'loss_{name}']:.4f}" for name in OBJECTIVES if f"loss_{name}" in record)
            line = (
                f"loss {record['loss']:.4f}{f' ({each})' if each else ''}  ce {record['ce']:.4f}  "
                f"grad {record['grad_norm']:.2f} (most {record['grad_norm_max']:.2f})  "
                f"lr {record['lr']:.2e}  {speed}"
            )
            if "mfu" in record:
                line += f"  MFU {record['mfu']:.1%}"
            if record["data_wait"] >= 0.01:
                line += f"  waiting for data {record['data_wait']:.0%}"
            if record.get("skipped"):
                line += f"  skipped {record['skipped']}"
            if self._bar.disable and self._is_warm:  # one update says little of the rest
                left = (self._total - step) * record["seconds_per_update"]
                line += f"  left {datetime.timedelta(seconds=round(left))}"
            self._is_warm = True
        self._console.print(f"{step:>7}/{self._total}  {line}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False)
