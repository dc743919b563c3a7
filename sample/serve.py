"""Serve a model to OpenAI's clients, and a page that shows how it writes.

    python -m sample.serve --model runs/chat --port 8000 [--threshold 0.9] …
    curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "What is a haiku?"}], "stream": true}'

Requests are written side by side, each by its own settings; the sampler's flags are those of requests that say nothing
else. SIGTERM and Ctrl-C take no more requests, finish those that there are, and end. docs/serving.md
"""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError

from . import inputs
from .flags import THINKING, MeshFlags, SamplerFlags, check_counts, own_settings, settings_of

KEY = "QWEN3LLADA_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Server."""

    host: str = flag("address to listen at (default: %(default)s, this machine alone)", "127.0.0.1")
    port: int = flag("port to listen at; 0: a free one (default: %(default)s)", 8000)
    name: str | None = flag("of the model (default: its folder's)", None)
    api_key: str | None = flag(f"that requests must bring (default: ${KEY}, or none)", None, metavar="KEY")
    cors: list[str] | None = flag("a page of this origin may ask from a browser; * for any", None, metavar="ORIGIN")
    enable_thinking: bool | None = flag(THINKING, None)
    log_prompts: bool = flag("print what is asked and answered on standard error", False)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits."""

    slots: int = flag("texts written at once with settings of a kind (default: %(default)s)", 16)
    drain: int = flag("seconds that SIGTERM waits for what was accepted (default: %(default)s)", 120)
    queue: int = flag("texts that may wait for a slot; more are refused with 429 (default: %(default)s)", 64)
    max_length: int | None = flag(
        "tokens of a prompt and its text (default: the model's positions, at most 4096)", None
    )
    max_texts: int = flag("texts of one request, its prompts times n (default: %(default)s)", 16)
    max_body: int = flag("bytes of a request (default: %(default)s)", 1 << 20)
    kept_turns: int = flag("turns of chats whose next one need not read them again (default: %(default)s; 0: none)", 8)
    programs: int = flag("kinds of settings and lengths that are ever compiled for (default: %(default)s)", 32)


@dataclass(frozen=True, kw_only=True)
class Flags(SamplerFlags, MeshFlags, Limits, Serve):
    def __post_init__(self) -> None:
        check_counts(self, "slots", "drain", "queue", "max_length", "max_texts", "max_body", "programs")
        if self.kept_turns < 0:
            raise InputError(f"--kept-turns must be 0 or more, not {self.kept_turns}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Whatever can be refused is refused before the weights are read."""
    flags = cli.parse(Flags, arguments)
    settings_of(flags)
    try:
        import uvicorn

        from .serving.app import Rules, make_app
        from .serving.asking import Asking
        from .serving.asking import Limits as OfARequest
        from .serving.engines import Pool
        from .serving.metrics import Metrics
        from .serving.writer import Writer
    except ImportError as error:
        raise InputError(f"a server needs {error.name}: pip install fastapi uvicorn prometheus-client") from error
    folder = inputs.open_model(flags)
    settings = folder.ending(settings_of(flags, folder.config))
    complete = settings.for_model(folder.config)
    if flags.slots % folder.ways:
        raise InputError(f"--slots {flags.slots}: the mesh splits rows {folder.ways} ways; give a multiple of that")
    positions = folder.config.max_position_embeddings
    longest = flags.max_length or min(positions, 4096)
    if longest > positions and folder.config.rope_scaling is None:
        raise InputError(f"--max-length {longest}: the model has {positions:,} positions; lower it")
    if settings.gen_length >= longest:
        raise InputError(f"--gen-length {settings.gen_length}: a prompt and its text have {longest:,} tokens; lower it")
    inputs.say_own_settings(own_settings(flags, folder.config))
    inputs.say_if_untrained(folder, complete)
    inputs.say_if_approximate(complete, folder.config)
    name, limits = (
        flags.name or Path(flags.model).resolve().name,
        OfARequest(longest, min(flags.max_texts, flags.queue)),
    )
    asking = Asking.of(folder, name, settings, flags.enable_thinking, limits)
    metrics = Metrics()
    key = flags.api_key or os.environ.get(KEY) or None
    rules = Rules(key, flags.cors or (), flags.max_body, flags.log_prompts)
    with _listening(flags.host, flags.port) as at:
        model = folder.load(flags.dtype)
        inputs.say_if_rounded(model, complete, flags.slots)
        pool = Pool(model, slots=flags.slots, ways=folder.ways, programs=flags.programs)
        writer = Writer(pool, folder, metrics, most_waiting=flags.queue, turns=flags.kept_turns)
        app = make_app(asking, writer, metrics, rules, lambda: setattr(server, "should_exit", True))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=flags.drain
        )
        host, port = at.getsockname()[:2]
        print(f"{name}: http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)
        server = _server(uvicorn, config)
        server.run(sockets=[at])
    if writer.error:
        raise writer.error


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket, taken before the weights are read.

    Raises:
        InputError: no such address, or somebody has the port.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: must be 0 … 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        at = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from error
    with at:
        yield at


def _server(uvicorn: Any, config: Any) -> Any:
    """uvicorn's, which at SIGTERM answers what it has begun; ours ends with 0 then, not by the signal."""

    class Server(uvicorn.Server):  # type: ignore[misc]  # it is imported late
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {which: signal.signal(which, self.handle_exit) for which in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for which, handler in before.items():
                    signal.signal(which, handler)

    return Server(config)


if __name__ == "__main__":
    cli.run(main)
