"""What a server counts, as Prometheus reads it; nothing of it is text."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qwen3llada_jax.sampling.loop import compilations

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class Metrics:
    """The numbers of a server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name: Callable[[str], str] = "qwen3llada_{}".format
        self.requests = Counter(name("requests"), "requests answered", ["path", "status"], registry=self.registry)
        self._tokens = Counter(name("tokens"), "tokens written", registry=self.registry)
        self._passes = Counter(name("forward_passes"), "forward passes of rows", registry=self.registry)
        self._waiting = Gauge(name("waiting"), "texts that wait for a slot", registry=self.registry)
        self._taken = Gauge(name("slots_taken"), "texts that are written", registry=self.registry)
        self.cancelled = Counter(name("cancelled"), "requests whose reader went away", registry=self.registry)
        self.first = Histogram(
            name("first_text_seconds"),
            "from a request to its first final text",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.whole = Histogram(
            name("request_seconds"), "from a request to its end", buckets=_SECONDS, registry=self.registry
        )
        programs = Gauge(name("programs"), "sampling programs compiled so far", registry=self.registry)
        programs.set_function(compilations)

    def at(self, waiting: int, taken: int) -> None:
        """How many wait, and how many are written."""
        self._waiting.set(waiting)
        self._taken.set(taken)

    def wrote(self, tokens: int, passes: int) -> None:
        """A text is done."""
        self._tokens.inc(tokens)
        self._passes.inc(passes)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
