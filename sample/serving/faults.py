"""Errors in OpenAI's shape, and what the server's schema says of bodies and answers."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from qwen3llada_jax.errors import InputError

from .asking import NoModelError
from .bodies import ChatBody, CompletionBody, complaints
from .metrics import Metrics
from .replies import problem
from .writer import ClosedError, FullError

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


def kind_of(status: int) -> str:
    """OpenAI's name for errors of a status."""
    return _KINDS.get(status, "server_error" if status >= 500 else _KINDS[400])


def add_errors(app: FastAPI, metrics: Metrics) -> None:
    """Answer whatever goes wrong in OpenAI's shape, and count all answers."""

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> Response:
        is_model = isinstance(error, NoModelError)
        param = str(error).partition(":")[0].partition(" ")[0]
        known = {*ChatBody.model_fields, *CompletionBody.model_fields}
        code = "model_not_found" if is_model else None
        body = problem(str(error), _KINDS[400], param if param in known else None, code)
        return JSONResponse(body, 404 if is_model else 400)

    @app.exception_handler(FullError)
    async def full(request: Request, error: FullError) -> Response:
        message = "too many requests are waiting; ask again later"
        return JSONResponse(problem(message, _KINDS[429], code="queue_full"), 429, {"Retry-After": "2"})

    @app.exception_handler(ClosedError)
    async def closed(request: Request, error: ClosedError) -> Response:
        return JSONResponse(problem("the server is ending", "server_error"), 503, {"Retry-After": "10"})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return JSONResponse(problem(str(error.detail), kind_of(error.status_code)), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse(problem("; ".join(complaints(error.errors())), _KINDS[400]), 400)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(problem("the server failed; its log says why", "server_error"), 500)

    @app.middleware("http")
    async def counted(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "other")
        metrics.requests.labels(route, str(response.status_code)).inc()
        return response


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What the schema says of answers with these statuses."""
    shape = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": ["message", "type"]}},
    }
    return {code: {"description": "error", "content": {"application/json": {"schema": shape}}} for code in codes}


def answers() -> dict[int | str, dict[str, Any]]:
    """What the schema says of a text's answers."""
    content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    return {200: {"description": "the answer", "content": content}} | errors(400, 401, 404, 413, 429, 500, 503)


def takes(kind: Any) -> dict[str, Any]:
    """A body in the schema: it is read by hand, so that what is wrong with it is said in a line."""
    schema = kind.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(schema)}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose definitions stand where they are named."""
    parts = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return put(parts[value["$ref"].rpartition("/")[2]])
        return {name: put(one) for name, one in value.items()}

    found: dict[str, Any] = put(schema)
    return found
