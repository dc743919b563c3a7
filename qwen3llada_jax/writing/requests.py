"""What is to be written, as rows of ids: prompts, chats, and texts with holes.

A row has `prompt` (text), `infill` (text with holes: `<mask>` of one token, `<mask:5>` of five), or a conversation in
any format that training reads (messages, conversations, question + answer, instruction + output, …; conversations.py),
which always goes through the chat template. An answer at its end is not shown to the model, and need not be there.
Other columns are carried along.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import BadRowError, check_text, shortened
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.conversations import read_conversation
from qwen3llada_jax.text.turns import Message

KINDS = ("prompt", "messages", "infill")
_HOLE = re.compile(r"<mask(?::(\d+))?>", re.ASCII)


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
        number: of the prompt, from 0: with the seed and the sample it decides all random draws.
        sample: from 0.
        kind: one of `KINDS`.
        given: the prompt, the messages, or the text with holes, as it was given.
        ids: None where there is a hole (infilling only).
        extra: other columns of its row.
    """

    number: int
    sample: int
    kind: str
    given: Any
    ids: tuple[int | None, ...]
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


def from_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    chat: bool,
    template: str = "chat",
    system: str | None = None,
    enable_thinking: bool = False,
    samples: int = 1,
    most: int = 1 << 20,
) -> list[Request]:
    """Encode rows as the sampler wants them, each `samples` times.

    Args:
        rows: with one of `KINDS` each, or of a format of conversations.
        chat: put prompts through the chat template; messages always go, texts with holes never.
        template, enable_thinking: as `ChatWriter` takes them.
        system: begins every chat.
        most: tokens of a text with holes.

    Raises:
        InputError: no chat template or one that does not write a chat, a text without a hole or with too many, or texts
            with holes among prompts.
    """
    kinds = {kind for row in rows for kind in KINDS if kind in row}
    if "infill" in kinds and len(kinds) > 1:
        raise InputError("some texts have holes to fill and some go on from a prompt; use two files")
    writer = ChatWriter(tokenizer, template, enable_thinking) if chat or "messages" in kinds else None
    requests = []
    for number, row in enumerate(rows):
        kind = next(k for k in ("infill", "messages", "prompt") if k in row)
        try:
            if kind == "infill":
                ids: Sequence[int | None] = encode_holes(tokenizer, row[kind], most)
            elif kind == "prompt" and not chat:
                ids = encode(tokenizer, row[kind])
            else:
                assert writer is not None
                ids = _encode_row(writer, row, kind, system)
        except InputError as error:
            if len(rows) == 1:
                raise
            raise InputError(f"prompt {number + 1}: {error}") from error
        extra = {k: v for k, v in row.items() if k != kind}
        requests += [Request(number, sample, kind, row[kind], tuple(ids), extra) for sample in range(samples)]
    return requests


def encode(tokenizer: Any, text: str) -> list[int]:
    """Encode a text.

    Raises:
        InputError: half of a surrogate pair in it (JSON's \\ud83d alone, a byte that is not UTF-8): no character.
    """
    try:
        # Quiet about the length that a tokenizer is said to end at: positions are the model's matter.
        return tokenizer(check_text(text), add_special_tokens=False, verbose=False).input_ids
    except BadRowError as error:
        raise InputError(f"the text {error.in_full}; write the whole character") from error


def encode_chat(writer: ChatWriter, messages: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
    """Encode a chat, up to where the assistant begins to speak.

    Raises:
        InputError: nothing to answer, or a template that does not write these messages whole.
    """
    if not messages:
        raise InputError("there are no messages to answer")
    if messages[-1]["role"] not in ("user", "tool"):
        raise InputError(f"the last message must be the user's, for the model to answer, not {messages[-1]['role']}'s")
    try:
        for message in messages:
            check_text(message["content"])
        text = writer.prompt(messages, tools)
    except BadRowError as error:
        raise InputError(error.in_full) from error
    return encode(writer.tokenizer, text)


def encode_holes(tokenizer: Any, text: str, most: int = 1 << 20) -> list[int | None]:
    """Encode a text, with a None for `<mask>` and N of them for `<mask:N>`.

    Raises:
        InputError: no hole in it, or more than `most`.
    """
    sizes = [hole[1] or "1" for hole in _HOLE.finditer(text)]
    if any(len(size) > 18 for size in sizes) or sum(map(int, sizes)) > most:
        raise InputError(f"{shortened(text)!r} has more to fill than the {most:,} tokens that the model can hold")
    ids: list[int | None] = []
    begin = 0
    for hole, size in zip(_HOLE.finditer(text), sizes, strict=True):
        ids += encode(tokenizer, text[begin : hole.start()])
        ids += [None] * int(size)
        begin = hole.end()
    ids += encode(tokenizer, text[begin:])
    if None not in ids:
        raise InputError(
            f"nothing to fill in {shortened(text)!r}: write <mask> or <mask:5> for a hole of one or five tokens"
        )
    return ids


def _encode_row(writer: ChatWriter, row: Mapping[str, Any], kind: str, system: str | None) -> list[int]:
    """Encode the question of a row: a conversation, or a prompt as the user's, with its own system text and tools."""
    asked = row if kind == "messages" else {**row, "prompt": None, "messages": [{"role": "user", "content": row[kind]}]}
    try:
        talk = read_conversation(asked, needs_answer=False)
    except BadRowError as error:
        raise InputError(error.in_full) from error
    is_answered = len(talk.messages) > 1 and talk.messages[-1]["role"] == "assistant"
    messages = talk.messages[:-1] if is_answered else talk.messages
    if system is not None:
        if messages and messages[0]["role"] == "system":
            raise InputError("the chat has a system message of its own; leave out --system")
        messages = ({"role": "system", "content": system}, *messages)
    return encode_chat(writer, messages, talk.tools)
