"""What a request's body may hold: OpenAI's fields that this server has, and every setting of the sampler by its name.

A field that would have no effect here is refused unless it asks for what happens anyway (`frequency_penalty: 0`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from qwen3llada_jax.cli import nearest
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.sampling.config import SETTINGS
from qwen3llada_jax.sampling.setting import Setting

# Settings that a request says otherwise, or that are not one request's to choose.
_ELSEWHERE = {"gen_length": "max_tokens says how many tokens are written", "mask_token_id": "it is the model's"}
_TYPES: dict[Any, Any] = {
    "whole": int,
    "number": float,
    "flag": bool,
    "ids": Annotated[list[int], Field(max_length=8, fail_fast=True)],
}

_MOST = (1 << 31) - 1
_Ids, _Texts = Annotated[list[int], Field(fail_fast=True)], Annotated[list[str], Field(fail_fast=True)]

# OpenAI's fields that are taken where they ask for nothing, and what to do instead.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "frequency_penalty": ((0,), "use repetition_penalty"),
    "presence_penalty": ((0,), "use repetition_penalty"),
    "logit_bias": (({},), "use forbid for ids that are never written"),
    "top_logprobs": ((0,), "only the tokens that are written have their log-probability here"),
    "response_format": (({"type": "text"},), "answers are plain text"),
    "tools": (([],), "answers are plain text"),
    "tool_choice": (("none", "auto"), "answers are plain text"),
    "parallel_tool_calls": ((True, False), "answers are plain text"),
    "store": ((False,), "nothing is kept"),
    "best_of": ((1,), "use n"),
    "modalities": ((["text"],), "answers are plain text"),
    "service_tier": (("auto", "default"), "there is one"),
}
_OF_CHATS = (
    "top_logprobs",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "store",
    "modalities",
    "service_tier",
)


def settings_taken() -> dict[str, Setting]:
    """The settings of the sampler that a request may carry."""
    return {name: setting for name, setting in SETTINGS.items() if name not in _ELSEWHERE}


class StreamOptions(BaseModel):
    """What a stream holds beside text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="a last chunk with `usage`")
    include_obfuscation: Literal[False] | None = Field(None, description="chunks are never padded")
    drafts: bool | None = Field(
        None, description="chunks have `draft`: the current block as it stands, which may change"
    )


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="the served model's name; others are not known")
    n: int | None = Field(None, ge=1, le=_MOST, description="texts for each prompt (default: 1)")
    seed: int | None = Field(
        None, ge=0, lt=1 << 32, description="of everything random (default: a new one, told in the answer)"
    )
    stop: str | list[str] | None = Field(
        None, description="the text ends before the first of these, at most 16 of 1 to 256 characters"
    )
    stream: bool | None = Field(None, description="server-sent events: text that will not change any more")
    stream_options: StreamOptions | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The sampler's settings that the request says."""
        said = {name: getattr(self, name) for name in settings_taken()}
        return {name: tuple(v) if isinstance(v, list) else v for name, v in said.items() if v is not None}

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def _field_of(setting: Setting) -> tuple[Any, Any]:
    kind = Literal[setting.kind] if isinstance(setting.kind, tuple) else _TYPES[setting.kind]
    return kind | None, Field(None, description=setting.help)


_SETTINGS: dict[str, Any] = {name: _field_of(setting) for name, setting in settings_taken().items()}
_BASE: Any = create_model("_BASE", __base__=_Asked, **_SETTINGS)


class ChatBody(_BASE):
    """A chat to answer."""

    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(
        description="the chat so far; the last message is the user's",
        min_length=1,
        examples=[[{"role": "user", "content": "Why is the sky blue?"}]],
    )
    max_tokens: int | None = Field(None, ge=1, le=_MOST, description="tokens to write at most")
    max_completion_tokens: int | None = Field(None, ge=1, le=_MOST, description="the same as max_tokens")
    logprobs: bool | None = Field(None, description="of each token, in the pass that wrote it")
    enable_thinking: bool | None = Field(None, description="let the answer begin with its reasoning")


class CompletionBody(_BASE):
    """Texts to go on from, or to fill."""

    prompt: str | _Texts | _Ids | Annotated[list[_Ids], Field(fail_fast=True)] = Field(
        description="texts or their token ids"
    )
    max_tokens: int | None = Field(None, ge=1, le=_MOST, description="tokens to write at most; with suffix, so many")
    suffix: str | None = Field(None, description="what follows the text that is written between")
    holes: bool | None = Field(None, description="the prompt has holes to fill: <mask>, or <mask:5> of five tokens")
    echo: bool | None = Field(None, description="begin the text with the prompt")
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = Field(
        None, description="0: of each token, in the pass that wrote it"
    )


def accepted(body: Any, is_chat: bool) -> Any:
    """A body without OpenAI's fields that ask for nothing.

    Raises:
        InputError: naming a field that is unknown or cannot be served, and what to do instead.
    """
    if not isinstance(body, Mapping):
        return body  # its model says what is wrong
    known = set((ChatBody if is_chat else CompletionBody).model_fields)
    kept = dict(body)
    for name in [name for name in body if name not in known]:
        values, instead = _NEUTRAL.get(name, ((), ""))
        if name in _ELSEWHERE:
            raise InputError(f"{name}: {_ELSEWHERE[name]}; leave it out")
        if name not in _NEUTRAL or (name in _OF_CHATS and not is_chat):
            raise InputError(f"{name}: no such field{nearest(name, sorted(known))}")
        if body[name] is not None and not any(_same(body[name], value) for value in values):
            raise InputError(f"{name}: {shown(body[name])} cannot be served ({instead}); leave it out")
        del kept[name]
    return kept


def _same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def complaints(errors: Sequence[Any]) -> Iterator[str]:
    """What is wrong with which field, of pydantic's errors, without what was sent."""
    for error in errors:
        place = [str(part) for part in error["loc"] if part != "body"]
        field = next((part for part in place if not part.isdigit()), "")
        yield f"{field or 'the body'}: {error['msg'][:1].lower()}{error['msg'][1:]}"
