"""A bound for bodies, whatever they say of their length."""

from typing import Any

from fastapi.responses import JSONResponse

from .replies import problem


class _TooLargeError(Exception):
    pass


class BodyLimit:
    """ASGI middleware: a body of more than `most` bytes is refused with 413."""

    def __init__(self, app: Any, most: int):
        self._app, self._most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = JSONResponse(problem(f"the body has more than {self._most:,} bytes", "invalid_request_error"), 413)
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said) > self._most:
            await refusal(scope, receive, send)
            return
        count = 0

        async def counted() -> Any:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._most:
                raise _TooLargeError
            return message

        try:
            await self._app(scope, counted, send)
        except _TooLargeError:
            await refusal(scope, receive, send)
