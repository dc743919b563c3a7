"""The thread that writes: jobs wait in a line of bounded length, take slots of engines as they become free, and are
looked at some twenty times a second.

Readers never hold it up: it leaves how far a text is where they find it (`Job.progress`), and the latest alone.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.sampling.engine import Written
from qwen3llada_jax.writing.completions import keys_of
from qwen3llada_jax.writing.opening import Folder

from .engines import Desk, Pool
from .jobs import Job, Progress
from .kept import Kept
from .metrics import Metrics
from .texts import said, tokens_of

_NOT_FINITE = "the model's logits are not finite (NaN or infinite); its weights are damaged, or float16 overflows"
_PATIENCE = 10.0  # seconds in which later jobs may pass one whose engine has no place
_MOST_PASSED = 16  # jobs, so that a long line is not looked through at every look
_FAILED = "writing failed; the server's log says why"


class FullError(Exception):
    """So many are waiting that no more may."""


class ClosedError(Exception):
    """Nothing more is written."""


class Writer:
    """Writes jobs, in a thread of its own."""

    def __init__(self, pool: Pool, folder: Folder, metrics: Metrics, *, most_waiting: int, turns: int):
        """Args:
        most_waiting: jobs that wait for a slot.
        turns: of chats that are kept for the next ones.
        """
        self._kept = Kept(turns)
        self._pool, self._folder, self._metrics, self._most_waiting = pool, folder, metrics, most_waiting
        self._line: deque[Job] = deque()
        self._something = threading.Condition()
        self._is_closing = False
        self.error: BaseException | None = None
        self.is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self, first: Job, failed: Callable[[], None]) -> None:
        """Compile what the job needs, then write what is asked.

        Args:
            failed: called, in the writer's thread, if it can write no more (`error`).
        """
        self._first, self._tell_failure = first, failed
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs without a slot."""
        return len(self._line)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the line: all or none.

        Raises:
            FullError: it is too long for them.
            ClosedError: the server is ending.
        """
        with self._something:
            if self._is_closing:
                raise ClosedError
            if len(self._line) + len(jobs) > self._most_waiting:
                raise FullError
            self._line.extend(jobs)
            self._something.notify()

    def wake(self) -> None:
        """Something may have been cancelled."""
        with self._something:
            self._something.notify()

    def close(self) -> None:
        """Take no more jobs, write those that there are, and end."""
        with self._something:
            self._is_closing = True
            self._something.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._folder.on_mesh():
                self._pool.warm(self._first)
                self.is_ready.set()
                while self._wait():
                    self._drop_cancelled()
                    self._admit()
                    for desk in list(self._pool):
                        if desk.jobs:
                            self._write(desk)
                    self._metrics.at(self.waiting, self._pool.taken)
        except BaseException as error:  # it is raised where the server ends
            with self._something:
                self._is_closing, self.error = True, error
            for job in [*self._line, *(job for desk in self._pool for job in desk.jobs.values())]:
                job.tell(Progress(error=_FAILED))
            self._tell_failure()

    def _wait(self) -> bool:
        """Until there is something to do; whether there is."""
        with self._something:
            while not self._line and not self._pool.taken:
                if self._is_closing:
                    return False
                self._something.wait()
        return True

    def _drop_cancelled(self) -> None:
        with self._something:
            kept = [job for job in self._line if not job.is_cancelled]
            self._line = deque(kept)
        for desk in self._pool:
            for slot in [slot for slot, job in desk.jobs.items() if job.is_cancelled]:
                desk.engine.cancel(slot)
                del desk.jobs[slot]

    def _admit(self) -> None:
        """Give slots to jobs, in their order; one whose engine has none lets others pass."""
        left = 0
        for job in list(self._line):
            try:
                seat = self._pool.seat(job, len(self._line))
                if seat is None:
                    left += 1
                    if left == _MOST_PASSED or time.monotonic() - job.since > _PATIENCE:
                        break  # until an engine has written what it has, and gives way
                    continue
                desk, slot = seat
                key: Any = keys_of(job.seed, [job.request])
                context = desk.engine.keeps
                turn = self._kept.best(job.request.ids, context) if context and not job.fills else None
                job.known = desk.engine.admit(slot, job.request.ids, job.settings, key=key, prefix=turn)
                desk.jobs[slot] = job
            except InputError as error:
                job.tell(Progress(error=str(error), status=400))
            except Exception:
                self._failed([job])
            with self._something:
                self._line.remove(job)

    def _write(self, desk: Desk) -> None:
        try:
            self._pool.fit(desk)
            done = desk.advance()
            seen = desk.engine.look()
            for slot in done:
                self._keep(desk, slot)
            broken = {row.slot for row in desk.engine.harvest() if row.error}
            for slot, written in seen.items():
                job = desk.jobs[slot]
                if slot in broken:
                    self._metrics.wrote(len(written.ids), written.nfe)
                    job.tell(Progress(nfe=written.nfe, error=_NOT_FINITE))
                elif not self._show(job, written, is_whole=slot in done):
                    continue
                elif slot not in done:
                    self._keep(desk, slot)
                    desk.engine.cancel(slot)
                del desk.jobs[slot]
        except Exception:  # one engine's trouble (memory) is not the others'
            self._pool.drop(desk)
            self._failed(list(desk.jobs.values()))

    def _keep(self, desk: Desk, slot: int) -> None:
        """Keep a chat's turn for the next one."""
        if desk.jobs[slot].request.kind == "messages" and desk.engine.keeps and self._kept.is_on:
            with suppress(InputError):  # its logits were not finite: nothing is there to keep
                self._kept.add(desk.engine.keep(slot))

    def _failed(self, jobs: Sequence[Job]) -> None:
        traceback.print_exc(file=sys.stderr)
        for job in jobs:
            job.tell(Progress(error=_FAILED))

    def _show(self, job: Job, written: Written, *, is_whole: bool) -> bool:
        """Say how far a text is; whether it is done, as it may be before its row is (`is_whole`)."""
        ids, is_cut = tokens_of(written.ids, job.most, job.ends)
        is_cut |= is_whole
        tokenizer = self._folder.tokenizer
        is_stopped = bool(job.stops) and said(tokenizer, job.request, ids, job.stops, whole=is_cut)[1]
        is_done = is_cut or is_stopped
        finish = "length" if len(ids) == job.most and not (job.fills or is_stopped) else "stop"
        if written.nfe == job.progress.nfe and not is_done:
            return False
        shown = slice(len(ids) + (0 if is_done else len(written.draft)))
        progress = Progress(
            tuple(ids),
            () if is_done else tuple(written.draft),
            tuple(int(at) + 1 for at in written.written_at[shown]),
            tuple(float(x) for x in written.confidence[shown]),
            written.nfe,
            finish if is_done else None,
        )
        if is_done:
            self._metrics.wrote(len(ids), written.nfe)
        job.tell(progress)
        return is_done
