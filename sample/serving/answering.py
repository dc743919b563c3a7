"""A request while it is written: its stream, or its one answer; what nobody reads any more is not written."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .faults import kind_of
from .jobs import Job, Progress
from .metrics import Metrics
from .replies import Reply, Told, event, problem
from .writer import Writer

_NO_BUFFER = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy that collects chunks streams nothing


class Writing:
    """The jobs of a request. When their reader goes away, those that are not done are cancelled."""

    def __init__(
        self, jobs: list[Job], changed: asyncio.Event, writer: Writer, metrics: Metrics, begun: float, logged: Any
    ):
        self._jobs, self._changed, self._writer, self._metrics = jobs, changed, writer, metrics
        self._begun, self._logged, self._is_first = begun, logged, True

    async def streamed(self, reply: Reply, request: Request) -> Response:
        """A stream, once something is written: what is refused before has a status of its own."""
        if not await self._until(lambda: any(job.progress.is_begun for job in self._jobs), request):
            return nobody()
        if failed := self._failed:
            self._cancel()
            return _refusal(failed)
        return StreamingResponse(self._chunks(reply), media_type="text/event-stream", headers=_NO_BUFFER)

    async def whole(self, reply: Reply, request: Request) -> Response:
        """One answer, when all is written."""
        if not await self._until(lambda: self._is_done, request):
            return nobody()
        self._cancel()  # the others, where one has failed
        if failed := self._failed:
            return _refusal(failed)
        self._metrics.first.observe(time.monotonic() - self._begun)
        self._note_end(reply)
        return JSONResponse(reply.whole())

    async def _chunks(self, reply: Reply) -> AsyncIterator[bytes]:
        told = [Told() for _ in self._jobs]
        try:
            while True:
                self._changed.clear()
                is_done = self._is_done
                if failed := self._failed:
                    yield event(_problem(failed))
                    return
                for chunk in reply.chunks(told):
                    self._note_first(told)
                    yield event(chunk)
                if is_done:
                    break
                await self._changed.wait()
            if last := reply.last():
                yield event(last)
            self._note_end(reply)
            yield b"data: [DONE]\n\n"
        finally:
            self._leave()

    async def _until(self, holds: Callable[[], bool], request: Request) -> bool:
        """Wait until something holds; False: the reader has gone away before."""
        gone = asyncio.create_task(_left(request))
        gone.add_done_callback(lambda _: self._changed.set())
        try:
            while not holds():
                if gone.done():
                    self._leave()
                    return False
                await self._changed.wait()
                self._changed.clear()
            return True
        except asyncio.CancelledError:  # the server ends in haste
            self._leave()
            raise
        finally:
            gone.cancel()

    @property
    def _is_done(self) -> bool:
        return all(job.progress.is_done for job in self._jobs) or self._failed is not None

    @property
    def _failed(self) -> Progress | None:
        return next((job.progress for job in self._jobs if job.progress.error), None)

    def _leave(self) -> None:
        """The reader has gone away, or has all."""
        if self._cancel() and not self._failed:
            self._metrics.cancelled.inc()

    def _cancel(self) -> bool:
        """Write no more of what is not done; whether there was any."""
        left = [job for job in self._jobs if not job.progress.is_done]
        for job in left:
            job.cancel()
        if left:
            self._writer.wake()
        return bool(left)

    def _note_first(self, told: Sequence[Told]) -> None:
        if self._is_first and any(one.text for one in told):
            self._is_first = False
            self._metrics.first.observe(time.monotonic() - self._begun)

    def _note_end(self, reply: Reply) -> None:
        seconds = time.monotonic() - self._begun
        self._metrics.whole.observe(seconds)
        if self._logged is not None:
            asked = self._logged.model_dump(exclude_none=True)
            line = {"asked": asked, "answered": reply.whole()["choices"], "seconds": round(seconds, 3)}
            print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)


def nobody() -> Response:
    """To a reader who has gone away."""
    return Response(status_code=499)


def _refusal(failed: Progress) -> Response:
    return JSONResponse(_problem(failed), failed.status)


def _problem(failed: Progress) -> dict[str, Any]:
    return problem(failed.error or "", kind_of(failed.status))


async def _left(request: Request) -> None:
    """Until the reader has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
