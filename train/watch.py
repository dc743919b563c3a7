"""What a run tells people while it goes on: files, trackers and the terminal, from one process of all."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.config import Config
from train.distributed import is_main
from train.metrics import JsonLines
from train.progress import Progress
from train.trackers import open_trackers


class Watch:
    """metrics.jsonl, samples.jsonl, TensorBoard, W&B and the progress bar of a run; as a context, closed at its end."""

    def __init__(self, config: Config, logs: Path, first: int, total: int):
        is_writer = is_main()
        self._metrics = JsonLines(logs / "metrics.jsonl", first, is_writer=is_writer)
        self._samples = JsonLines(logs / "samples.jsonl", first, is_writer=is_writer)
        self._trackers = open_trackers(config, logs, first) if is_writer else []
        self._progress = Progress(first, total, quiet=not is_writer)

    def __enter__(self) -> "Watch":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._metrics.close()
        self._samples.close()
        for tracker in self._trackers:
            tracker.close()

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Numbers after `step` updates; a field without a value is NaN."""
        self._metrics.write(record)
        for tracker in self._trackers:
            tracker.write(record)
        self._progress.show(record)

    def sample(self, record: Mapping[str, Any]) -> None:
        """A `prompt` and its `answer` after `step` updates."""
        self._samples.write(record)
        self._progress.say(f"{record['step']:>7}  {record['prompt']!r} → {record['answer']!r}")

    def say(self, text: str) -> None:
        """A line for the person watching."""
        self._progress.say(text)

    def advance(self) -> None:
        """One update more is done."""
        self._progress.advance()


def say(text: str) -> None:
    """Print a line, from one process of all."""
    if is_main():
        print(text, flush=True)


def notice(text: str) -> None:
    """A line for the person watching, beside what the program gives out."""
    if is_main():
        print(text, file=sys.stderr, flush=True)
