"""What is asked: prompts, chats and texts with holes, from the command line or a file, as rows of ids."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError

_HOLE = re.compile(r"<mask(?::(\d+))?>")


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
        number: of the prompt, from 0: with the seed and the sample it decides all random draws.
        sample: from 0.
        text: as it was given.
        ids: None where there is a hole (infilling only).
        extra: other columns of its line.
    """

    number: int
    sample: int
    text: str
    ids: tuple[int | None, ...]
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


def from_file(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file (with `prompt`, `messages` or `infill`), or of a text file, one prompt each.

    Raises:
        InputError: no such file, an empty one, or a line that asks nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text (byte {error.start} is not UTF-8)") from error
    if path.suffix != ".jsonl":
        rows = [{"prompt": line} for line in lines if line.strip()]
    else:
        rows = [_json_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: no prompt in it")
    return rows


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: line {number} is not JSON ({error})") from error
    asked = [key for key in ("prompt", "messages", "infill") if isinstance(row, dict) and key in row]
    if len(asked) != 1:
        raise InputError(f"{path}: line {number} needs one of the keys prompt, messages and infill")
    if asked[0] == "messages":
        check_messages(row["messages"], f"{path}: line {number}")
    elif not isinstance(row[asked[0]], str):
        raise InputError(f"{path}: line {number}: {asked[0]} is no text")
    return row


def check_messages(messages: Any, where: str) -> None:
    """Refuse what is no list of role and content that a user spoke last in.

    Raises:
        InputError: saying what is wrong.
    """
    is_chat = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not is_chat:
        raise InputError(f"{where}: messages is a list of {{role, content}}, both text")
    if not messages or messages[-1]["role"] != "user":
        raise InputError(f"{where}: the last message must be the user's, for the model to answer")


def read_history(path: Path) -> list[dict[str, str]]:
    """Earlier messages of a chat, from a JSON file.

    Raises:
        InputError: no such file, or not a list of messages.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(messages, list):
        raise InputError(f"{path}: is no list of messages")
    check_messages([*messages, {"role": "user", "content": ""}], str(path))
    return messages


def encode(tokenizer: Any, text: str) -> list[int]:
    """A text's ids."""
    return tokenizer(text, add_special_tokens=False).input_ids


def encode_chat(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """A chat's ids, up to where the assistant begins to speak.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; leave out --chat")
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InputError(f"the chat template refuses these messages ({error})") from error
    return encode(tokenizer, text)


def encode_holes(tokenizer: Any, text: str) -> list[int | None]:
    """Ids of a text, with a None for `<mask>` and N of them for `<mask:N>`.

    Raises:
        InputError: no hole in it.
    """
    ids: list[int | None] = []
    begin = 0
    for hole in _HOLE.finditer(text):
        ids += encode(tokenizer, text[begin : hole.start()])
        ids += [None] * int(hole[1] or 1)
        begin = hole.end()
    ids += encode(tokenizer, text[begin:])
    if None not in ids:
        raise InputError(f"nothing to fill in {text!r}: write <mask> or <mask:5> for a hole of one or five tokens")
    return ids


def up_to_stop(answer: list[int], stops: tuple[int, ...]) -> list[int]:
    """The answer before its first end."""
    end = next((i for i, token in enumerate(answer) if token in stops), len(answer))
    return answer[:end]
