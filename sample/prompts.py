"""What is asked: prompts, chats and texts with holes, from the command line or a file, as rows of ids.

A line of a .jsonl file has `prompt` (text), `messages` ([{"role", "content"}, …], for the chat template) or `infill`
(text with holes: `<mask>` of one token, `<mask:5>` of five). Its other columns are carried through to the answers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3llada_jax.command_line import nearest
from qwen3llada_jax.errors import InputError

Turn = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
KINDS = ("prompt", "messages", "infill")
ROLES = ("system", "user", "assistant")
_HOLE = re.compile(r"<mask(?::(\d+))?>")


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
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, chat: bool, system: str | None = None, samples: int = 1
) -> list[Request]:
    """The lines of a file as the sampler wants them, each `samples` times.

    Args:
        chat: put prompts through the chat template; messages always go.
        system: begins every chat.

    Raises:
        InputError: no chat template, a text without a hole, or texts with holes among prompts.
    """
    kinds = {kind for row in rows for kind in KINDS if kind in row}
    if "infill" in kinds and len(kinds) > 1:
        raise InputError("some texts have holes to fill and some go on from a prompt; use two files")
    if "infill" in kinds and (chat or system is not None):
        raise InputError("a text with holes is taken as it stands; leave out --chat and --system")
    if system is not None and not chat and "messages" not in kinds:
        raise InputError("--system belongs to a chat; add --chat")
    requests = []
    for number, row in enumerate(rows):
        kind = next(k for k in KINDS if k in row)
        given = row[kind]
        ids: Sequence[int | None]
        if kind == "infill":
            ids = encode_holes(tokenizer, given)
        elif kind == "messages" or chat:
            turns = given if kind == "messages" else [{"role": "user", "content": given}]
            ids = encode_chat(tokenizer, turns, system)
        else:
            ids = encode(tokenizer, given)
        extra = {k: v for k, v in row.items() if k != kind}
        requests += [Request(number, sample, kind, given, tuple(ids), extra) for sample in range(samples)]
    return requests


def from_file(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file (with `prompt`, `messages` or `infill`), or of a .txt file, one prompt each.

    Raises:
        InputError: no such file, another kind, an empty one, or a line that asks nothing.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path}: unknown kind of file; use .txt (a prompt a line) or .jsonl")
    lines = [(n, line) for n, line in enumerate(_read(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: no prompt in it")
    if path.suffix == ".txt":
        return [{"prompt": line.rstrip("\r")} for _, line in lines]
    return [_json_row(f"{path}: line {n}", line) for n, line in lines]


def read_history(path: Path) -> list[Turn]:
    """The messages of a chat so far, from a .json file.

    Raises:
        InputError: no such file, or not a list of messages.
    """
    try:
        messages = json.loads(_read(path))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    return checked(messages, str(path))


def checked(messages: Any, where: str) -> list[Turn]:
    """Messages, if they are such.

    Raises:
        InputError: not a list of {role, content}, or none.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: messages is a list of {{role, content}}, not {_short(str(messages))}")
    for turn in messages:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise InputError(
                f"{where}: a message has a role ({', '.join(ROLES)}) and a text as content, not {_short(str(turn))}"
            )
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]


def encode(tokenizer: Any, text: str) -> list[int]:
    """A text's ids."""
    return tokenizer(text, add_special_tokens=False).input_ids


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without chat template.

    Raises:
        InputError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; leave out --chat, or add chat_template.jinja")


def encode_chat(tokenizer: Any, messages: Sequence[Turn], system: str | None = None) -> list[int]:
    """A chat's ids, up to where the assistant begins to speak.

    Raises:
        InputError: no chat template, one that refuses these messages, nothing to answer, or two system messages.
    """
    from jinja2 import TemplateError

    check_template(tokenizer)
    if messages[-1]["role"] != "user":
        raise InputError(f"the last message must be the user's, for the model to answer, not {messages[-1]['role']}'s")
    if system is not None:
        if messages[0]["role"] == "system":
            raise InputError("the chat has a system message of its own; leave out --system")
        messages = [{"role": "system", "content": system}, *messages]
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
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
        raise InputError(
            f"nothing to fill in {_short(text)!r}: write <mask> or <mask:5> for a hole of one or five tokens"
        )
    return ids


def up_to_stop(answer: list[int], stops: tuple[int, ...]) -> list[int]:
    """The answer before its first end."""
    end = next((i for i, token in enumerate(answer) if token in stops), len(answer))
    return answer[:end]


def _json_row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f'{where} is no row like {{"prompt": "…"}} but {_short(line)}')
    asked = [kind for kind in KINDS if kind in row]
    if len(asked) != 1:
        guess = next((g for key in row if (g := nearest(key, KINDS))), "") if not asked else ""
        raise InputError(f"{where} needs one of prompt, messages, infill; it has {', '.join(row) or 'none'}{guess}")
    if asked == ["messages"]:
        return row | {"messages": checked(row["messages"], where)}
    if not isinstance(row[asked[0]], str):
        raise InputError(f"{where}: {asked[0]} is no text but {_short(str(row[asked[0]]))}")
    return row


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text (byte {error.start} is not UTF-8)") from error


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
