"""What is answered, in OpenAI's shapes: whole, or chunk by chunk as it becomes final."""

import codecs
import functools
import json
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .jobs import Job, Progress
from .texts import covered, said

_LEAST = 1e-30  # of a probability, whose logarithm JSON can say


@dataclass(frozen=True)
class Reply:
    """How the answer to a request is shaped.

    Attributes:
        logprobs: each token is told with its log-probability.
        drafts: chunks tell what may still change.
        before: of each job, text that its own begins with (`echo`).
    """

    tokenizer: Any
    model: str
    jobs: Sequence[Job]
    is_chat: bool
    logprobs: bool = False
    usage: bool = False
    drafts: bool = False
    before: Sequence[str] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self) -> dict[str, Any]:
        """The answer, all of whose texts are done."""
        choices = []
        for index, job in enumerate(self.jobs):
            p = job.progress
            text, count = self._text(job)
            tokens = self._tokens(p, 0, count) if self.logprobs else None
            choice: dict[str, Any] = {"index": index, "finish_reason": p.finish, "logprobs": None}
            before = self.before[index] if self.before else ""
            if self.is_chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = before + text
            if tokens is not None:
                choice["logprobs"] = self._logprobs(job, tokens, Offsets(len(before)))
            choices.append(choice)
        return self._head(is_chunk=False) | {"choices": choices, "usage": self._usage()}

    def chunks(self, told: "list[Told]") -> Iterator[dict[str, Any]]:
        """What is new since the last call, one chunk for each text that has something."""
        for index, (job, sent) in enumerate(zip(self.jobs, told, strict=True)):
            p = job.progress
            if p is sent.seen:
                continue
            sent.seen = p
            text = said(self.tokenizer, job.request, p.ids, job.stops, whole=p.finish is not None)[0]
            new, count = text[len(sent.text) :], sent.count
            if (new or p.finish) and (self.logprobs or self.drafts):
                is_all = p.finish and not job.stops
                count = len(p.ids) if is_all else covered(self.tokenizer, p.ids, text, sent.count)
            if not (new or p.finish or self.drafts or not sent.has_begun):
                continue
            choice: dict[str, Any] = {"index": index, "finish_reason": p.finish, "logprobs": None}
            if not sent.has_begun and self.before:
                new = self.before[index] + new
                sent.offsets.place = len(self.before[index])
            if self.is_chat:
                choice["delta"] = ({} if sent.has_begun else {"role": "assistant"}) | {"content": new}
            else:
                choice["text"] = new
            if self.logprobs:
                choice["logprobs"] = self._logprobs(job, self._tokens(p, sent.count, count), sent.offsets)
            if self.drafts:
                choice["draft"] = self._draft(p, count)
            sent.text, sent.count, sent.has_begun = text, count, True
            yield self._chunk([choice])

    def last(self) -> dict[str, Any] | None:
        """The chunk that ends a stream, if it was asked for."""
        return self._chunk([]) | {"usage": self._usage()} if self.usage else None

    def _text(self, job: Job) -> tuple[str, int]:
        """(the text, how many of its tokens it holds)."""
        ids = job.progress.ids
        text, is_stopped = said(self.tokenizer, job.request, ids, job.stops, whole=True)
        return text, covered(self.tokenizer, ids, text) if is_stopped else len(ids)

    def _head(self, is_chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if is_chunk else "chat.completion") if self.is_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "seed": self.jobs[0].seed,
            "system_fingerprint": None,
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head(is_chunk=True) | {"choices": choices} | ({"usage": None} if self.usage else {})

    def _usage(self) -> dict[str, Any]:
        prompts = {job.request.number: sum(i is not None for i in job.request.ids) for job in self.jobs}
        written = sum(len(job.progress.ids) for job in self.jobs)
        passes = sum(job.progress.nfe for job in self.jobs)
        return {
            "prompt_tokens": sum(prompts.values()),
            "completion_tokens": written,
            "total_tokens": sum(prompts.values()) + written,
            "prompt_tokens_details": {"cached_tokens": min(job.known for job in self.jobs)},
            "forward_passes": passes,
            "tokens_per_forward": written / passes if passes else 0.0,
        }

    def _logprobs(self, job: Job, tokens: list[dict[str, Any]], offsets: "Offsets") -> dict[str, Any]:
        if self.is_chat:
            return {"content": tokens, "refusal": None}
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "text_offset": None if job.fills else [offsets.of(token) for token in tokens],
            "top_logprobs": None,
            "content": tokens,
        }

    def _tokens(self, p: Progress, begin: int, end: int) -> list[dict[str, Any]]:
        return [_token(self.tokenizer, p.ids[i], p.passes[i], p.confidence[i]) for i in range(begin, end)]

    def _draft(self, p: Progress, count: int) -> dict[str, Any]:
        """What is not text yet: ids that wait for the rest of a character, and the block that is being written."""
        places = list(zip([*p.ids, *p.draft], p.passes, p.confidence, strict=True))[count:]
        tokens = [None if token is None else _token(self.tokenizer, token, at, c) for token, at, c in places]
        return {"tokens": [] if p.finish else tokens, "forward_passes": p.nfe}


@dataclass
class Offsets:
    """Where tokens begin in a text, told one after another: characters, of which several tokens may make one."""

    place: int = 0
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def of(self, token: dict[str, Any]) -> int:
        """Where the next token begins."""
        begin, raw = self.place, token["bytes"]
        self.place += len(token["token"] if raw is None else self._decoder.decode(bytes(raw)))
        return begin


@dataclass
class Told:
    """What a stream has said of one text: how many tokens that holds, and of which progress it was read."""

    text: str = ""
    count: int = 0
    has_begun: bool = False
    offsets: Offsets = field(default_factory=Offsets)
    seen: Progress | None = None


def problem(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def _token(tokenizer: Any, token: int, at: int, confidence: float) -> dict[str, Any]:
    text, raw = _spelled(tokenizer, token)
    logprob = math.log(max(confidence, _LEAST))
    return {"token": text, "logprob": logprob, "bytes": raw and list(raw), "top_logprobs": [], "pass": at}


@functools.lru_cache(maxsize=1 << 16)
def _spelled(tokenizer: Any, token: int) -> tuple[str, bytes | None]:
    """(a token's text, its bytes: of half a character they say more)."""
    text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if "\ufffd" not in text:
        return text, text.encode()
    piece = tokenizer.convert_ids_to_tokens(token) or ""
    table = _bytes_of_letters()
    return text, bytes(table[c] for c in piece) if all(c in table for c in piece) else None


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    """Byte-level BPE writes every byte as a letter: those that are printable as themselves, the others from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
