"""What a run tells people while it goes on: files, trackers and the terminal, from one process of all."""

import datetime
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config.schema import Config
from ..runtime.distributed import is_main
from .console import Progress
from .jsonl import JsonLines
from .trackers import open_trackers


class RunLog:
    """metrics.jsonl, samples.jsonl, TensorBoard, W&B and the progress bar of a run; as a context, closed at its end."""

    def __init__(
        self, config: Config, logs: Path, first: int, total: int, *, elapsed: float = 0.0, again: Collection[str] = ()
    ):
        """A run that has seen `first` of `total` updates, in `elapsed` seconds of earlier starts, and now begins with
        what is due `again` after update `first`: "evaluation", "samples"."""
        is_writer = is_main()
        self._begin = time.monotonic() - elapsed
        self._stands: dict[str, Any] = {}
        anew = lambda record: record["step"] == first and "eval_loss" in record and "evaluation" in again  # noqa: E731
        self._metrics = JsonLines(logs / "metrics.jsonl", first, is_writer=is_writer, forget=anew)
        last = first - ("samples" in again)
        self._samples = JsonLines(logs / "samples.jsonl", last, is_writer=is_writer)
        self._trackers = open_trackers(config, logs, first) if is_writer else []
        self._progress = Progress(first, total, quiet=not is_writer)
        self._is_open = True

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Put everything away; once is enough."""
        if not self._is_open:
            return
        self._is_open = False
        self._progress.stop()
        self._metrics.close()
        self._samples.close()
        for tracker in self._trackers:
            tracker.close()

    @property
    def elapsed(self) -> float:
        """Seconds that the run has been going, all its starts together."""
        return time.monotonic() - self._begin

    def stands(self, **fields: Any) -> None:
        """Where the run stands: fields of every record from now on."""
        self._stands = fields

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Numbers after `step` updates; a field without a value is NaN."""
        record = self._placed(record)
        self._metrics.write(record)
        for tracker in self._trackers:
            tracker.write(record)
        self._progress.show(record)

    def sample(self, record: Mapping[str, Any]) -> None:
        """A `prompt` and its `answer` after `step` updates, or the `error` for which there is none."""
        self._samples.write(self._placed(record))
        said = record["error"] if record["answer"] is None else repr(record["answer"])
        self._progress.say(f"{record['step']:>7}  {record['prompt']!r} → {said}")

    def settle(self) -> None:
        """Wait until the files have what a checkpoint that is saved now stands behind.

        Raises:
            InputError: they cannot be written.
        """
        self._metrics.settle()
        self._samples.settle()

    def info(self, text: str) -> None:
        """A line for the person watching."""
        self._progress.say(text)

    def advance(self) -> None:
        """One update more is done."""
        self._progress.advance()

    def _placed(self, record: Mapping[str, Any]) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return {**record, **self._stands, "elapsed": round(self.elapsed, 3), "time": now}


def info(text: str) -> None:
    """Print a line, from one process of all."""
    if is_main():
        print(text, flush=True)


def warn(text: str) -> None:
    """A line for the person watching, beside what the program gives out."""
    if is_main():
        print(text, file=sys.stderr, flush=True)
