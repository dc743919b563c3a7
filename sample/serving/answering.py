"""A request while it is written: its stream, or its one answer; what nobody reads any more is not written."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from .faults import kind_of
from .jobs import Job, Progress
from .metrics import Metrics
from .replies import Reply, Told, event, problem
from .writer import Writer


class Writing:
    """The jobs of a request. When their reader goes away, those that are not done are cancelled."""

    def __init__(
        self, jobs: list[Job], changed: asyncio.Event, writer: Writer, metrics: Metrics, begun: float, logged: Any
    ):
        self._jobs, self._changed, self._writer, self._metrics = jobs, changed, writer, metrics
        self._begun, self._logged, self._is_first = begun, logged, True

    async def streamed(self, reply: Reply) -> AsyncIterator[bytes]:
        told = [Told() for _ in self._jobs]
        try:
            while True:
                self._changed.clear()
                is_done = self._is_done
                if failed := self._failed:
                    yield event(problem(failed.error or "", kind_of(failed.status)))
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
            self._cancel()

    async def whole(self, reply: Reply, request: Request) -> Response:
        gone = asyncio.create_task(_left(request))
        try:
            while not self._is_done:
                news = asyncio.create_task(self._changed.wait())
                await asyncio.wait({news, gone}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                self._changed.clear()
                if gone.done():
                    return Response(status_code=499)  # nobody reads it
            if failed := self._failed:
                return JSONResponse(problem(failed.error or "", kind_of(failed.status)), failed.status)
            self._metrics.first.observe(time.monotonic() - self._begun)
            self._note_end(reply)
            return JSONResponse(reply.whole())
        finally:
            gone.cancel()
            self._cancel()

    @property
    def _is_done(self) -> bool:
        return all(job.progress.is_done for job in self._jobs) or self._failed is not None

    @property
    def _failed(self) -> Progress | None:
        return next((job.progress for job in self._jobs if job.progress.error), None)

    def _cancel(self) -> None:
        left = [job for job in self._jobs if not job.progress.is_done]
        for job in left:
            job.cancel()
        if left:
            self._metrics.cancelled.inc()
            self._writer.wake()

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


async def _left(request: Request) -> None:
    """Until the reader has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
