"""The server: OpenAI's paths over a writer, who may ask, and how much."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from qwen3llada_jax.errors import InputError

from .answering import Writing, nobody
from .asking import Asking, NoModelError
from .bodies import ChatBody, CompletionBody, accepted, complaints, settings_taken
from .faults import add_errors, answers, errors, takes
from .jobs import Job
from .limits import BodyLimit
from .metrics import Metrics
from .replies import Reply
from .writer import Writer

_PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Rules:
    """Who may ask, and what is said of it.

    Attributes:
        api_key: that requests must bring; None: anybody may ask.
        origins: pages of these may ask from a browser.
        body_bytes: of a request at most.
        logs_prompts: bodies and answers are printed.
    """

    api_key: str | None
    origins: Sequence[str]
    body_bytes: int
    logs_prompts: bool


def make_app(
    asking: Asking, writer: Writer, metrics: Metrics, rules: Rules, failed: Callable[[], None] = lambda: None
) -> FastAPI:
    """The application. The writer is started with it, and ends with it when all is written.

    Args:
        failed: called if nothing more can be written.
    """
    reader = ThreadPoolExecutor(1, "reader")  # tokenizers are not made for several threads, nor the loop for long texts

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        writer.start(asking.first(), failed)
        yield
        await asyncio.to_thread(writer.close)

    app = FastAPI(title="qwen3llada", lifespan=life, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, most=rules.body_bytes)
    if rules.origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(rules.origins), allow_methods=["*"], allow_headers=["*"])
    add_errors(app, metrics)
    if not _PAGE.is_file():
        raise InputError(f"{_PAGE}: the page is missing; install the project anew")
    page = _PAGE.read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def root() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process can still write."""
        if writer.error:
            raise HTTPException(500, "the writer has ended; the server's log says why")
        return {"status": "ok"}

    @app.get("/ready", responses=errors(503))
    async def ready() -> dict[str, str]:
        """Whether requests are written at once: the weights are read, and the first program is compiled."""
        if not writer.is_ready.is_set():
            raise HTTPException(503, "the programs are being compiled", {"Retry-After": "2"})
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, include_in_schema=False)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/settings")
    async def settings() -> dict[str, Any]:
        """What the page needs to know."""
        return {
            "model": asking.name,
            "chat": bool(getattr(asking.folder.tokenizer, "chat_template", None)),
            "max_length": asking.limits.length,
            "max_tokens": asking.gen_length,
            "needs_key": rules.api_key is not None,
            "defaults": {name: value for name, value in asking.own.items() if name in settings_taken()},
            "settings": [
                {"name": name, "kind": s.kind, "help": s.help, "least": s.least, "range": s.range}
                for name, s in settings_taken().items()
            ],
        }

    @app.get("/v1/models", responses=errors(401))
    async def models(request: Request) -> dict[str, Any]:
        """The model that is served."""
        _check(request, rules)
        return {"object": "list", "data": [_model(asking.name)]}

    @app.get("/v1/models/{name:path}", responses=errors(401, 404))
    async def model(request: Request, name: str) -> dict[str, Any]:
        """The model that is served, by its name."""
        _check(request, rules)
        if name != asking.name:
            raise NoModelError(f"model: {name[:80]!r} is not served here, {asking.name!r} is")
        return _model(asking.name)

    async def answer(request: Request, kind: Any, is_chat: bool) -> Response:
        _check(request, rules)
        begun, changed, loop = time.monotonic(), asyncio.Event(), asyncio.get_running_loop()
        try:
            raw = await asyncio.wait_for(request.body(), _A_BODY)
        except ClientDisconnect:
            metrics.cancelled.inc()
            return nobody()
        except TimeoutError as error:
            raise HTTPException(408, f"the body has not come within {_A_BODY} seconds") from error
        body = _read(raw, kind, is_chat)
        if body.stream_options is not None and not body.stream:
            raise InputError("stream_options belongs to a stream; add stream: true")
        ask: Any = asking.chat if is_chat else asking.completion
        jobs = await loop.run_in_executor(reader, ask, body, lambda: loop.call_soon_threadsafe(changed.set))
        options = body.stream_options
        reply = Reply(
            asking.folder.tokenizer,
            asking.name,
            jobs,
            is_chat,
            logprobs=bool(body.logprobs) if is_chat else body.logprobs is not None,
            usage=bool(options and options.include_usage),
            drafts=bool(options and options.drafts),
            before=[] if is_chat else await loop.run_in_executor(reader, _echoes, asking, body, jobs),
        )
        writer.submit(jobs)
        writing = Writing(jobs, changed, writer, metrics, begun, body if rules.logs_prompts else None)
        return await (writing.streamed if body.stream else writing.whole)(reply, request)

    @app.post("/v1/chat/completions", responses=answers(), openapi_extra=takes(ChatBody))
    async def chat(request: Request) -> Response:
        """Answer a chat."""
        return await answer(request, ChatBody, is_chat=True)

    @app.post("/v1/completions", responses=answers(), openapi_extra=takes(CompletionBody))
    async def completion(request: Request) -> Response:
        """Go on from texts, or fill their holes."""
        return await answer(request, CompletionBody, is_chat=False)

    return app


_A_BODY = 30  # seconds


def _read(raw: bytes, kind: Any, is_chat: bool) -> Any:
    """A body, checked.

    Raises:
        InputError: naming the field that is wrong.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON ({str(error)[:100]})") from error
    try:
        return kind.model_validate(accepted(value, is_chat))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise InputError("; ".join([*complaints(found)][:3])) from error


def _echoes(asking: Asking, body: Any, jobs: Sequence[Job]) -> list[str]:
    """What the text of each job begins with."""
    if not body.echo:
        return []
    prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    decode = asking.folder.tokenizer.decode
    texts = [p if isinstance(p, str) else decode(p) for p in ([prompts] if isinstance(prompts[0], int) else prompts)]
    return [texts[job.request.number] for job in jobs]


def _check(request: Request, rules: Rules) -> None:
    """Refuse who has not the key, and other pages: browsers send what they ask, though they cannot read it."""
    origin = request.headers.get("origin")
    is_own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not is_own and not {origin, "*"} & {*rules.origins}:
        raise HTTPException(403, f"pages of {str(origin)[:100]} may not ask here (--cors)")
    if rules.api_key is None:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if not hmac.compare_digest(given, rules.api_key.encode()):
        raise HTTPException(
            401, "the API key is missing or wrong: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
        )


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "local"}
