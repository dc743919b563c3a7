"""What is asked: prompts, chats and texts with holes, from the command line or a file, as rows of ids.

A line of a .jsonl file (or a row of a .json, .csv, .parquet or .arrow) has `prompt` (text), `infill` (text with holes:
`<mask>` of one token, `<mask:5>` of five), or a conversation in any format that training reads (messages,
conversations, question + answer, instruction + output, …; qwen3llada_jax/conversations.py), which always goes through
the chat template. An answer at its end is not shown to the model, and need not be there. All columns are carried
through to the answers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3llada_jax.cli import nearest
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import BadRowError, NoFormatError, check_text, kind_of, shortened
from qwen3llada_jax.io.readers import SUFFIXES, raw_rows, unpacked
from qwen3llada_jax.sampling.limits import memory
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.conversations import FORMATS, read_conversation, read_messages

Turn = dict[str, Any]  # {"role": "system" | "user" | "assistant" | "tool", "content": text, …}
KINDS = ("prompt", "messages", "infill")
_HOLE = re.compile(r"<mask(?::(\d+))?>", re.ASCII)
_BYTES_OF_A_REQUEST = 200


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
        number: of the prompt, from 0: with the seed and the sample it decides all random draws.
        sample: from 0.
        kind: one of `KINDS`.
        given: the prompt, the messages, or the text with holes, as it was given.
        ids: None where there is a hole (infilling only).
        extra: other columns of its line.
    """

    number: int
    sample: int
    kind: str
    given: Any
    ids: tuple[int | None, ...]
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


def requests_of(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    chat: bool,
    system: str | None = None,
    enable_thinking: bool = False,
    samples: int = 1,
    most: int = 1 << 20,
) -> list[Request]:
    """The lines of a file as the sampler wants them, each `samples` times.

    Args:
        chat: put prompts through the chat template; messages always go.
        system: begins every chat.
        enable_thinking: as the chat template takes it.
        most: tokens of a text with holes.

    Raises:
        InputError: no chat template or one that does not write a chat, a text without a hole or with too many, texts
            with holes among prompts, or more texts than memory has place for.
    """
    if len(rows) * samples * _BYTES_OF_A_REQUEST > memory():
        raise InputError(f"--num-samples: {len(rows) * samples:,} texts are more than memory has place for")
    kinds = {kind for row in rows for kind in KINDS if kind in row}
    if "infill" in kinds and len(kinds) > 1:
        raise InputError("some texts have holes to fill and some go on from a prompt; use two files")
    if "infill" in kinds and (chat or system is not None):
        raise InputError("a text with holes is taken as it stands; leave out --chat and --system")
    if system is not None and not chat and "messages" not in kinds:
        raise InputError("--system belongs to a chat; add --chat")
    requests = []
    for number, row in enumerate(rows):
        kind = next(k for k in ("infill", "messages", "prompt") if k in row)
        given = row[kind]
        try:
            ids = _ids_of(row, kind, tokenizer, chat, system, enable_thinking, most)
        except (BadRowError, InputError) as error:
            if len(rows) == 1:
                raise _as_input_error(error) from error
            raise InputError(f"prompt {number + 1}: {_as_input_error(error)}") from error
        extra = {k: v for k, v in row.items() if k != kind}
        requests += [Request(number, sample, kind, given, tuple(ids), extra) for sample in range(samples)]
    return requests


def check_thinking(asked: bool | None, rows: Sequence[Mapping[str, Any]], *, chat: bool) -> None:
    """Refuse --enable-thinking where no chat template is used.

    Raises:
        InputError: saying so.
    """
    if asked is not None and not chat and not any("messages" in row for row in rows):
        raise InputError("--enable-thinking belongs to a chat; add --chat")


def _ids_of(
    row: Mapping[str, Any],
    kind: str,
    tokenizer: Any,
    chat: bool,
    system: str | None,
    enable_thinking: bool,
    most: int,
) -> Sequence[int | None]:
    if kind == "infill":
        return encode_holes(tokenizer, row[kind], most)
    if kind == "prompt" and not chat:
        return encode(tokenizer, row[kind])
    asked = row if kind == "messages" else {**row, "prompt": None, "messages": [{"role": "user", "content": row[kind]}]}
    talk = read_conversation(asked, needs_answer=False)  # with the row's own system text and tools
    return encode_chat(tokenizer, question_of(talk.messages), system, enable_thinking, talk.tools)


def question_of(messages: Sequence[Turn]) -> list[Turn]:
    """The turns before an answer at the end."""
    is_answered = len(messages) > 1 and messages[-1]["role"] == "assistant"
    return list(messages[:-1] if is_answered else messages)


def from_file(path: Path) -> list[dict[str, Any]]:
    """The rows of a file (with one of `KINDS`: conversations as `messages`), or the lines of a .txt, one prompt each.

    Raises:
        InputError: no such file, another kind, an empty one, or a line that asks nothing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file; use .txt (a prompt a line) or {', '.join(SUFFIXES[1:])}")
    if path.suffix.lower() == ".txt":
        rows = [{"prompt": line} for line in _read(path).split("\n") if line.strip()]
    else:
        rows = [_asked(f"{path}: line {raw['line']}", raw) for raw in raw_rows([str(path)])]
    if not rows:
        raise InputError(f"{path}: no prompt in it")
    return rows


def read_history(path: Path) -> list[Turn]:
    """The messages of a chat so far, from a .json file.

    Raises:
        InputError: no such file, or not a list of messages.
    """
    text = _read(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({shortened(str(error), 100)})") from error
    try:
        messages = list(read_messages(value))
    except BadRowError as error:
        raise InputError(f"{path}: {_as_input_error(error)}") from error
    if not messages:
        raise InputError(f"{path}: has no messages in it")
    return messages


def encode(tokenizer: Any, text: str) -> list[int]:
    """A text's ids.

    Raises:
        InputError: half of a surrogate pair in it (JSON's \\ud83d alone, a byte that is not UTF-8): no character.
    """
    try:
        # Quiet about the length that a tokenizer is said to end at: positions are the model's matter.
        return tokenizer(check_text(text), add_special_tokens=False, verbose=False).input_ids
    except BadRowError as error:
        raise InputError(f"the text {_as_input_error(error)}; write the whole character") from error


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without chat template.

    Raises:
        InputError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; leave out --chat, or add chat_template.jinja")


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Turn],
    system: str | None = None,
    enable_thinking: bool = False,
    tools: list[Any] | None = None,
) -> list[int]:
    """A chat's ids, up to where the assistant begins to speak.

    Raises:
        InputError: no chat template, one that does not write these messages whole, nothing to answer, or two system
            messages.
    """
    check_template(tokenizer)
    if not messages:
        raise InputError("there are no messages to answer")
    if messages[-1]["role"] not in ("user", "tool"):
        raise InputError(f"the last message must be the user's, for the model to answer, not {messages[-1]['role']}'s")
    if system is not None:
        if messages[0]["role"] == "system":
            raise InputError("the chat has a system message of its own; leave out --system")
        messages = [{"role": "system", "content": system}, *messages]
    try:
        for message in messages:
            check_text(message["content"])
        text = ChatWriter(tokenizer, enable_thinking=enable_thinking).prompt(messages, tools)
    except BadRowError as error:
        raise _as_input_error(error) from error
    return encode(tokenizer, text)


def encode_holes(tokenizer: Any, text: str, most: int = 1 << 20) -> list[int | None]:
    """Ids of a text, with a None for `<mask>` and N of them for `<mask:N>`.

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


def _asked(where: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A line as one of `KINDS`, with all its columns."""
    try:
        row = {name: value for name, value in unpacked(raw).items() if name not in KINDS or value is not None}
        is_chat = any(row.get(name) is not None for name in ("messages", "conversations"))
        if "infill" not in row and (is_chat or not isinstance(row.get("prompt", []), str)):
            return row | {"messages": list(read_conversation(row, needs_answer=False).messages)}
    except NoFormatError as error:
        if "prompt" in row:
            what = f"{kind_of(row['prompt'])}, not a text"
            raise InputError(f"{where}: prompt is {what} ({shortened(row['prompt'])})") from error
        guess = next((g for key in row if (g := nearest(key, KINDS))), "")
        raise InputError(f"{where} needs one of infill, prompt, {FORMATS.rpartition(', or')[0]}{guess}") from error
    except BadRowError as error:
        raise InputError(f"{where} {_as_input_error(error)}") from error
    kinds = [kind for kind in KINDS if kind in row]
    if len(kinds) > 1:
        raise InputError(f"{where} has {' and '.join(kinds)}, which all say what to write; keep one of them")
    if not isinstance(row[kinds[0]], str):
        raise InputError(f"{where}: {kinds[0]} is {kind_of(row[kinds[0]])}, not a text ({shortened(row[kinds[0]])})")
    return row


def _as_input_error(error: Exception) -> InputError:
    if isinstance(error, BadRowError):
        return InputError(error.in_full)
    return InputError(str(error))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text (byte {error.start} is not UTF-8)") from error
