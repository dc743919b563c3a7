"""The formats of conversations, read from a row of data as messages that a chat template takes.

| columns                                      | format                                                     |
|----------------------------------------------|------------------------------------------------------------|
| messages                                     | [{role, content, …}, …]                                    |
| conversations                                | [{from, value, …}, …] (ShareGPT), or with role and content |
| prompt, completion or response               | one question and answer, or two lists of messages (TRL)    |
| question, answer                             | one question, one answer                                   |
| instruction, (input or context,) output      | Alpaca; the input follows the instruction after a blank line |
| instruction, (input or context,) response    | Dolly, the same                                            |

Beside each: `system`, a text that begins the conversation, and `tools`, a list of tools for the template. Messages stay
whole: fields that are not known here go to the chat template as they are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwen3llada_jax.jsonl import BadRowError, NoFormatError, check_text, kind_of, shortened

Message = dict[str, Any]  # {"role": "system" | "user" | "assistant" | "tool", "content": text, …}

_ROLES = {
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
    "function_call": "call", "tool_call": "call",
}  # fmt: skip
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought")
# Of a turn: whether it is to be learned (OpenAI, axolotl, ms-swift, LLaMA-Factory's relatives).
_LEARNED = ("weight", "train", "training", "trainable", "loss", "learn")
_NOT_LEARNED = ("mask", "masked", "ignore", "ignored")
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"),
    ("instruction", "response"),
)  # fmt: skip
_MORE = ("input", "context")  # that an instruction may have
FORMATS = (
    "messages, conversations, prompt + completion, question + answer, instruction + output, or the columns named by "
    "dataset.columns"
)


@dataclass(frozen=True)
class Columns:
    """Which columns hold a conversation, where their names do not say so."""

    messages: str | None = field(default=None, metadata={"help": "new: sft: column of the list of messages"})
    prompt: tuple[str, ...] = field(
        default=(), metadata={"help": "new: sft: columns of the question, joined by blank lines: [context, question]"}
    )
    completion: str | None = field(default=None, metadata={"help": "new: sft: column of the answer"})
    system: str | None = field(default=None, metadata={"help": "new: sft: column of the system text"})
    tools: str | None = field(default=None, metadata={"help": "new: sft: column of the list of tools"})

    @property
    def named(self) -> list[str]:
        """All that are named."""
        one = (self.messages, *self.prompt, self.completion, self.system, self.tools)
        return [name for name in one if name is not None]


@dataclass(frozen=True)
class Conversation:
    """What is said, and what of it is to be learned.

    Attributes:
        messages: as a chat template takes them.
        is_learned: of each, whether an answer of it may be learned: it is the assistant's, and nothing in it says no.
        tools: for the template.
        columns: of the row that were used.
        fields: of its turns, other than those of `passed_on`, that were used.
        passed_on: fields of turns that only the chat template may know.
        left_out: fields of turns that are not among those to use.
    """

    messages: tuple[Message, ...]
    is_learned: tuple[bool, ...]
    tools: list[Any] | None = None
    columns: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    passed_on: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()


def read_conversation(
    row: Mapping[str, Any], columns: Columns | None = None, turn_fields: tuple[str, ...] = ()
) -> Conversation:
    """The conversation that a row holds.

    Args:
        columns: where it stands, if not where its format has it.
        turn_fields: of each turn, beside who speaks and what, only these are used; empty: all.

    Raises:
        BadRowError: it holds none.
    """
    columns = columns or Columns()
    given = {name: value for name, value in row.items() if value is not None}
    turns, used = _turns(row, given, columns, turn_fields)
    system = columns.system or "system"
    if system in given and given[system] != "":
        text = _text(given[system], f"column {system}")
        if any(turn.message["role"] == "system" for turn in turns):
            raise BadRowError(f"has a column {system} and a system turn too")
        turns = [_plain("system", text), *turns]
    used |= {system} & set(given)
    tools = columns.tools or "tools"
    found = _tools(given[tools], tools) if tools in given else None
    used |= {tools} & set(given)
    return Conversation(
        tuple(turn.message for turn in turns),
        tuple(turn.is_learned for turn in turns),
        found,
        frozenset(used),
        frozenset().union(*(turn.fields for turn in turns)),
        frozenset().union(*(turn.passed_on for turn in turns)),
        frozenset().union(*(turn.left_out for turn in turns)),
    )


def read_messages(messages: Any, what: str = "messages") -> tuple[Message, ...]:
    """A list of turns in any of the formats, as a chat template takes them.

    Raises:
        BadRowError: it is none.
    """
    return tuple(turn.message for turn in _list_of_turns(messages, what, ()))


@dataclass(frozen=True)
class _Turn:
    message: Message
    is_learned: bool
    fields: frozenset[str] = frozenset()
    passed_on: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()


def _turns(
    row: Mapping[str, Any], given: Mapping[str, Any], columns: Columns, turn_fields: tuple[str, ...]
) -> tuple[list[_Turn], set[str]]:
    """(the turns, the columns that they stand in)."""
    if columns.messages is not None:
        return _list_of_turns(_value(row, columns.messages), columns.messages, turn_fields), {columns.messages}
    if columns.prompt or columns.completion:
        return _exchange(row, list(columns.prompt), columns.completion, turn_fields)
    for name in ("messages", "conversations"):
        if name in given:
            return _list_of_turns(given[name], name, turn_fields), {name}
    for question, answer in _PAIRS:
        if question in row and answer in row:
            more = [name for name in _MORE if question == "instruction" and given.get(name) not in (None, "")]
            turns, used = _exchange(row, [question, *more], answer, turn_fields)
            return turns, used | ({name for name in _MORE if name in row} if question == "instruction" else set())
    nulls = [name for name in ("messages", "conversations") if name in row]
    if nulls:
        raise BadRowError(f"column {nulls[0]} is null")
    raise NoFormatError("is of no format for conversations", f"its columns are {shortened(', '.join(row))}")


def _exchange(
    row: Mapping[str, Any], asked: list[str], answer: str | None, turn_fields: tuple[str, ...]
) -> tuple[list[_Turn], set[str]]:
    used = {*asked, *([answer] if answer else [])}
    if answer is None:
        raise BadRowError("has no column of answers: name it as dataset.columns.completion")
    said, answers = [_value(row, name) for name in asked], _value(row, answer)
    if len(said) == 1 and isinstance(said[0], list):  # messages on both sides (TRL)
        before = _list_of_turns(said[0], asked[0], turn_fields)
        after = (
            _list_of_turns(answers, answer, turn_fields)
            if isinstance(answers, list)
            else [_plain("assistant", _text(answers, f"column {answer}"))]
        )
        before = [replace(turn, is_learned=False) for turn in before]
        return [*before, *after], used
    text = "\n\n".join(_text(value, f"column {name}") for value, name in zip(said, asked, strict=True))
    answered = _text(answers, f"column {answer}")
    if not answered.strip():
        raise BadRowError(f"column {answer} is empty", is_malformed=False)
    return [*([_plain("user", text)] if asked else []), _plain("assistant", answered)], used


def _plain(role: str, text: str) -> _Turn:
    return _Turn({"role": role, "content": text}, role == "assistant")


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise BadRowError(f"has no column {name}")
    return row[name]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{what} is {kind_of(value)}, not a text", shortened(value))
    return check_text(value)


def _list_of_turns(turns: Any, what: str, kept: tuple[str, ...]) -> list[_Turn]:
    if not isinstance(turns, list):
        raise BadRowError(f"column {what} is {kind_of(turns)}, not a list of turns", shortened(turns))
    return [_turn(turn, kept) for turn in turns]


def _turn(raw: Any, kept: tuple[str, ...]) -> _Turn:
    if not isinstance(raw, Mapping):
        raise BadRowError(f"a turn is {kind_of(raw)}, not an object with role and content", shortened(raw))
    who = next((name for name in ("role", "from") if raw.get(name) is not None), None)
    what = next((name for name in ("content", "value", "text") if name in raw), None)
    given = {name: value for name, value in raw.items() if value is not None}
    left_out = set(given) - {who, what, *kept} if kept else set()
    given = {name: value for name, value in given.items() if name not in left_out}
    if who is None:
        raise BadRowError("a turn does not say who speaks (role or from)", shortened(raw))
    speaker = given[who].lower() if isinstance(given[who], str) else given[who]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise BadRowError("a turn has an unknown speaker", f"{shortened(given[who])!r}; known are {', '.join(_ROLES)}")
    role = _ROLES[speaker]
    content = "" if what is None else _content(raw[what])
    message: Message = {"role": role, "content": content}
    used = {who, what} - {None}
    calls = given.get("tool_calls")
    if role == "call":  # ShareGPT: the call itself is the text
        message, calls = {"role": "assistant", "content": ""}, content
    if calls not in (None, []):
        message["tool_calls"] = _calls(calls)
        used.add("tool_calls" if "tool_calls" in given else what)
    elif what is None or (raw[what] is None and not any(name in given for name in _REASONING)):
        raise BadRowError("a turn has no text", shortened(raw))
    reasons = {name: given[name] for name in _REASONING if given.get(name) not in (None, "")}
    if len(set(map(str, reasons.values()))) > 1:
        raise BadRowError(f"a turn has two reasonings ({' and '.join(reasons)})")
    for name, value in reasons.items():
        message["reasoning_content"] = _text(value, f"a turn's {name}")
    used |= {name for name in _REASONING if name in given}
    flags = {name for name in (*_LEARNED, *_NOT_LEARNED) if name in given}
    passed_on = set(given) - used - flags - {"tool_calls"}
    message |= {name: given[name] for name in sorted(passed_on)}
    is_learned = message["role"] == "assistant" and _is_learned(given)
    return _Turn(message, is_learned, frozenset(map(str, used | flags)), frozenset(passed_on), frozenset(left_out))


def _content(value: Any) -> str:
    """A text, or one in parts (OpenAI's list of {type: text, text})."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return _text(value, "a turn's text")
    parts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
            raise BadRowError("a turn has a part that is no text", f"{kind}")
        parts.append(check_text(text))
    return "".join(parts)


def _calls(calls: Any) -> list[Any]:
    """Tool calls, as a list; some sets keep them as JSON in a text."""
    if isinstance(calls, str):
        try:
            calls = json.loads(calls)
        except (ValueError, RecursionError) as error:
            raise BadRowError("a turn's tool calls are not valid JSON", shortened(calls)) from error
    calls = calls if isinstance(calls, list) else [calls]
    for call in calls:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise BadRowError("a tool call names no function", shortened(call))
    return calls


def _tools(tools: Any, column: str) -> list[Any] | None:
    """A list of tools; some sets keep it as JSON in a text."""
    if isinstance(tools, str):
        if not tools.strip():
            return None
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise BadRowError(f"column {column} is not valid JSON", shortened(tools)) from error
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRowError(f"column {column} is no list of tools", shortened(tools))
    return tools or None


def _is_learned(given: Mapping[str, Any]) -> bool:
    said = {name: _flag(name, given[name]) for name in _LEARNED if name in given}
    said |= {name: not _flag(name, given[name]) for name in _NOT_LEARNED if name in given}
    return all(said.values())


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "0", "1", "0.0", "1.0"):
        return value.strip().lower() in ("true", "1", "1.0")
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise BadRowError(f"a turn's {name} is neither 0 nor 1, which is all that can be learned by", shortened(value))
