"""From a request's body to the jobs that it asks for: settings, token ids, lengths; all or none."""

import dataclasses
import functools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import BadRowError
from qwen3llada_jax.sampling.config import SETTINGS, SamplerConfig, origin_of, whole_blocks
from qwen3llada_jax.sampling.layout import for_holes
from qwen3llada_jax.sampling.limits import check_positions
from qwen3llada_jax.sampling.slots import SLOTS
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.conversations import read_messages
from qwen3llada_jax.writing.opening import Folder
from qwen3llada_jax.writing.requests import Request, encode, encode_chat, encode_holes
from qwen3llada_jax.writing.settings import beside

from .bodies import ChatBody, CompletionBody
from .jobs import Job

_BLOCK = 32  # tokens, where neither the model nor anybody says
_MOST_STOPS, _LONGEST_STOP = 16, 256


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        length: tokens of a prompt and what is written.
        texts: of a request, its prompts times its `n`.
    """

    length: int
    texts: int


@dataclass(frozen=True)
class Asking:
    """What a server writes with where a request does not say.

    Attributes:
        name: of the model.
        own: the server's settings, and rules of its user's own by slot.
        gen_length: tokens, where a request does not say.
    """

    folder: Folder
    name: str
    own: dict[str, Any]
    rules: dict[str, Any]
    gen_length: int
    enable_thinking: bool | None
    limits: Limits

    @classmethod
    def of(
        cls, folder: Folder, name: str, settings: SamplerConfig, enable_thinking: bool | None, limits: Limits
    ) -> "Asking":
        """Args:
        settings: the server's, its model's own among them (`Folder.ending`).
        """
        default = SamplerConfig()
        own = {n: v for n in SETTINGS if (v := getattr(settings, n)) != getattr(default, n) and n != "gen_length"}
        own.setdefault("block_length", folder.config.block_length or _BLOCK)
        rules = {slot: rule for slot in SLOTS if (rule := getattr(settings, slot)) is not None}
        return cls(folder, name, own, rules, settings.gen_length, enable_thinking, limits)

    def settings(self, given: dict[str, Any]) -> SamplerConfig:
        """Those of a request that says these, and of the server where it does not."""
        taken = {SETTINGS[name].slot for name in given}
        rules = {slot: rule for slot, rule in self.rules.items() if slot not in taken}
        return SamplerConfig(**(beside(self.own, given | rules) | given | rules))

    def first(self) -> Job:
        """A text by the server's own settings, whose program is compiled with it."""
        given = {"prompt": [0], "max_tokens": min(self.gen_length, self.limits.length - 1), "seed": 0}
        return self.completion(CompletionBody(**given), lambda: None)[0]

    def chat(self, body: ChatBody, told: Callable[[], None]) -> list[Job]:
        """The jobs of a chat, one for each of its `n` texts.

        Raises:
            InputError: naming the field.
        """
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise InputError("max_tokens and max_completion_tokens both say how much is written; give one of them")
        if not getattr(self.folder.tokenizer, "chat_template", None):
            raise InputError("messages: the model's tokenizer has no chat template; use /v1/completions")
        if len(body.messages) > self.limits.length:
            raise InputError(f"messages: {len(body.messages):,} are more than a row has tokens; send fewer")
        self._check_texts(1, body.n or 1)
        thinks = self.folder.thinks(self.enable_thinking if body.enable_thinking is None else body.enable_thinking)
        try:
            ids = encode_chat(_writer_of(self.folder.tokenizer, thinks), read_messages(body.messages))
        except (InputError, BadRowError) as error:
            raise InputError(f"messages: {error.in_full if isinstance(error, BadRowError) else error}") from error
        most = body.max_completion_tokens or body.max_tokens or self.gen_length
        return self._jobs(body, "messages", [ids], most, told)

    def completion(self, body: CompletionBody, told: Callable[[], None]) -> list[Job]:
        """The jobs of a completion: for each prompt its `n` texts.

        Raises:
            InputError: naming the field.
        """
        if body.holes and body.suffix is not None:
            raise InputError("suffix and holes both say what is filled; give one of them")
        prompts: Any = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        if not prompts:
            raise InputError("prompt: there is none in the list")
        self._check_texts(len(prompts), body.n or 1)
        most = body.max_tokens or self.gen_length
        if body.holes:
            for name in ("max_tokens", "echo"):
                if getattr(body, name) is not None:
                    raise InputError(f"{name} means nothing with holes, whose sizes say it; leave it out")
            if not all(isinstance(prompt, str) for prompt in prompts):
                raise InputError("holes are written into a text, as <mask:5>; give prompt as text")
            with_holes = [encode_holes(self.folder.tokenizer, prompt, self.limits.length) for prompt in prompts]
            return self._jobs(body, "infill", with_holes, None, told)
        rows = [encode(self.folder.tokenizer, p) if isinstance(p, str) else p for p in prompts]
        if body.suffix is not None:
            behind = encode(self.folder.tokenizer, body.suffix)
            self._check_length(max(map(len, rows)) + most + len(behind))
            return self._jobs(body, "suffix", [[*row, *[None] * most, *behind] for row in rows], None, told)
        return self._jobs(body, "prompt", rows, most, told)

    def _jobs(
        self, body: Any, kind: str, rows: Sequence[Sequence[int | None]], most: int | None, told: Callable[[], None]
    ) -> list[Job]:
        stops, n = body.stops, body.n or 1
        if body.model not in (None, self.name):
            raise NoModelError(f"model: {body.model[:80]!r} is not served here, {self.name!r} is")
        if len(stops) > _MOST_STOPS or not all(0 < len(stop) <= _LONGEST_STOP for stop in stops):
            raise InputError(f"stop: at most {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters")
        if stops and most is None:
            raise InputError("stop means nothing where text stands behind what is filled; leave it out")
        settings = self.settings(body.given)
        seed = secrets.randbits(32) if body.seed is None else body.seed
        jobs = []
        for number, ids in enumerate(rows):
            complete, length = self._laid_out(settings, ids, most, body.given)
            for sample in range(n):
                request = Request(number, sample, kind, None, tuple(ids))
                job = Job(request, complete, seed, length, most or sum(i is None for i in ids), stops, told)
                jobs.append(job)
        return jobs

    def _laid_out(
        self, settings: SamplerConfig, ids: Sequence[int | None], most: int | None, given: dict[str, Any]
    ) -> tuple[SamplerConfig, int]:
        """(settings for whole blocks, tokens of the row).

        The server's own `steps` are for its own length: a text of other length has as many for each block, in other
        blocks none; and its cache is for texts without holes.
        """
        config, block = self.folder.config, settings.block_length or 1
        if block > self.limits.length:
            raise InputError(f"block_length: {block:,} is more than a row's {self.limits.length:,} tokens; lower it")
        for token in ids:
            if token is not None and not 0 <= token < config.vocab_size:
                raise InputError(f"prompt: id {token} is outside the vocabulary (0 … {config.vocab_size - 1})")
        own_steps = settings.steps if "steps" not in given else None
        if most is None or None in ids:
            steps, cache = given.get("steps"), given.get("cache") or "none"
            settings = dataclasses.replace(settings, steps=steps, cache=cache)
            for_holes(config, [ids], settings)
            check_positions(config, [len(ids)], 0, "prompt")
            self._check_length(len(ids))
            return settings, len(ids)
        self._check_length(len(ids) + most)
        settings = dataclasses.replace(settings, gen_length=most)
        in_blocks = not settings.speculate and origin_of(settings, config) != "start"
        if in_blocks and (odd := most % block):
            settings = dataclasses.replace(settings, gen_length=most - odd + block)
        if own_steps:
            blocks, own_blocks = (-(-length // block) for length in (settings.gen_length, self.gen_length))
            same = own_steps // own_blocks * blocks if block == self.own["block_length"] else None
            settings = dataclasses.replace(settings, steps=same)
        complete = settings.for_model(config)
        whole = whole_blocks(complete, config)
        check_positions(config, [len(ids)], complete.gen_length, "prompt", whole)
        return settings, -(-(len(ids) + complete.gen_length) // whole) * whole

    def _check_texts(self, prompts: int, n: int) -> None:
        if prompts * n > self.limits.texts:
            name = "n" if n > 1 else "prompt"
            raise InputError(f"{name}: {prompts * n} texts at once are more than {self.limits.texts}; ask for fewer")

    def _check_length(self, tokens: int) -> None:
        if tokens > self.limits.length:
            raise InputError(
                f"max_tokens: the prompt and what is written have {tokens:,} tokens, and a row {self.limits.length:,} "
                "(--max-length); shorten the prompt, or lower max_tokens"
            )


class NoModelError(InputError):
    """Another model is asked for than the one that is served."""


@functools.lru_cache(maxsize=4)
def _writer_of(tokenizer: Any, thinks: bool) -> ChatWriter:
    return ChatWriter(tokenizer, enable_thinking=thinks)
