"""The formats of conversations, read from a row of data as messages that a chat template takes.

| columns                                      | format                                                     |
|----------------------------------------------|------------------------------------------------------------|
| messages                                     | [{role, content, …}, …]                                    |
| conversations                                | [{from, value, …}, …] (ShareGPT), or with role and content |
| prompt, completion, response or answer       | one question and answer, or two lists of messages (TRL)    |
| question, answer or response                 | one question, one answer; so query, response and problem, solution |
| instruction, (input or context,) output      | Alpaca; the input follows the instruction after a blank line |
| instruction, (input or context,) response    | Dolly, the same                                            |
| input, output                                | one question, one answer                                   |

Beside each: `system` (`system_prompt`), a text that begins the conversation; `tools` (`functions`), for the template;
and `history`, earlier [question, answer] pairs. A row's `label: false`, `weight: 0` or the like says that none of its
answers is to be learned. Messages stay whole: fields that are not known here go to the chat template as they are.
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
_LEARNED = (
    "weight",
    "train",
    "training",
    "trainable",
    "train_on_turn",
    "loss",
    "loss_scale",
    "calculate_loss",
    "learn",
)
_NOT_LEARNED = ("mask", "masked", "ignore", "ignored", "skip")
_OF_PARTS = ("train_detail", "training_detail", "loss_mask")  # which parts of a turn are to be learned
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("question", "answer"),
    ("question", "response"), ("query", "response"), ("problem", "solution"), ("instruction", "output"),
    ("instruction", "response"), ("input", "output"),
)  # fmt: skip
_SYSTEM, _TOOLS = ("system", "system_prompt"), ("tools", "functions")
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
    row: Mapping[str, Any],
    columns: Columns | None = None,
    turn_fields: tuple[str, ...] = (),
    *,
    needs_answer: bool = True,
) -> Conversation:
    """The conversation that a row holds.

    Args:
        columns: where it stands, if not where its format has it.
        turn_fields: of each turn, beside who speaks and what, only these are used; empty: all.
        needs_answer: a question alone is none.

    Raises:
        BadRowError: it holds none.
    """
    columns = columns or Columns()
    given = {name: value for name, value in row.items() if value is not None}
    turns, used = _turns(row, given, columns, turn_fields, needs_answer)
    system = columns.system or next((name for name in _SYSTEM if name in given), _SYSTEM[0])
    if system in given and (text := _text(given[system], f"column {system}")).strip():
        if any(turn.message["role"] == "system" for turn in turns):
            raise BadRowError(f"has a column {system} and a system turn too")
        turns = [_plain("system", text), *turns]
    used |= {system} & set(given)
    tools = columns.tools or next((name for name in _TOOLS if name in given), _TOOLS[0])
    found = _tools(given[tools], tools) if tools in given else None
    used |= {tools} & set(given)
    flags = _row_flags(given)
    used |= set(flags)
    if not all(flags.values()):
        turns = [replace(turn, is_learned=False) for turn in turns]
    return Conversation(
        tuple(turn.message for turn in turns),
        tuple(turn.is_learned for turn in turns),
        found,
        frozenset(used),
        frozenset().union(*(turn.fields for turn in turns)),
        frozenset().union(*(turn.passed_on for turn in turns)),
        frozenset().union(*(turn.left_out for turn in turns)),
    )


def answer_of(row: Mapping[str, Any]) -> Any:
    """What stands in the column of a pair's answer; None: there is none."""
    return next((row[answer] for question, answer in _PAIRS if question in row and answer in row), None)


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
    row: Mapping[str, Any],
    given: Mapping[str, Any],
    columns: Columns,
    turn_fields: tuple[str, ...],
    needs_answer: bool,
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
        if question in row and answer in row and (needs_answer or row[answer] not in (None, "")):
            return _with_history(row, given, *_exchange(row, _asked(row, question), answer, turn_fields))
    if not needs_answer:
        asked = next((question for question, _ in _PAIRS if question in given), None)
        if asked is not None:
            return _with_history(row, given, *_exchange(row, _asked(row, asked), None, turn_fields, needs_answer=False))
    nulls = [name for name in ("messages", "conversations") if name in row]
    if nulls:
        raise BadRowError(f"column {nulls[0]} is null")
    raise NoFormatError("is of no format for conversations", f"its columns are {shortened(', '.join(row))}")


def _asked(row: Mapping[str, Any], question: str) -> list[str]:
    """The columns of a question: an instruction may have an input."""
    return [question, *(name for name in _MORE if question == "instruction" and name in row)]


def _exchange(
    row: Mapping[str, Any],
    asked: list[str],
    answer: str | None,
    turn_fields: tuple[str, ...],
    *,
    needs_answer: bool = True,
) -> tuple[list[_Turn], set[str]]:
    used = {*asked, *([answer] if answer else [])}
    if answer is None and needs_answer:
        raise BadRowError("has no column of answers: name it as dataset.columns.completion")
    said = [_value(row, name) for name in asked]
    if len(said) == 1 and isinstance(said[0], list):  # messages (TRL)
        before = [replace(turn, is_learned=False) for turn in _list_of_turns(said[0], asked[0], turn_fields)]
    else:
        parts = [_text(value, f"column {name}") for value, name in zip(said, asked, strict=True)
                 if value is not None or len(asked) == 1]  # fmt: skip
        text = "\n\n".join(part for part in parts if part.strip())
        if asked and not text:
            raise BadRowError(f"column {asked[0]} is empty", is_malformed=False)
        before = [_plain("user", text)] if asked else []
    if answer is None:
        return before, used
    answers = _value(row, answer)
    if isinstance(answers, list):
        return [*before, *_list_of_turns(answers, answer, turn_fields)], used
    answered = _text(answers, f"column {answer}")
    if not answered.strip():
        raise BadRowError(f"column {answer} is empty", is_malformed=False)
    return [*before, _plain("assistant", answered)], used


def _with_history(
    row: Mapping[str, Any], given: Mapping[str, Any], turns: list[_Turn], used: set[str]
) -> tuple[list[_Turn], set[str]]:
    """The turns after the earlier questions and answers of a column `history` (LLaMA-Factory)."""
    if "history" not in given:
        return turns, used
    pairs = given["history"]
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRowError("column history is no list of [question, answer]", shortened(pairs))
    earlier = [
        _plain(role, _text(text, "column history"))
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*earlier, *turns], used | {"history"}


def _row_flags(given: Mapping[str, Any]) -> dict[str, bool]:
    """What a row says of whether its answers are to be learned; other values of such columns are something else."""
    flags = {name: given[name] for name in (*_LEARNED, *_NOT_LEARNED) if _is_flag(given.get(name))}
    found = {name: bool(value) != (name in _NOT_LEARNED) for name, value in flags.items()}
    label = given.get("label")
    return found | ({"label": label} if isinstance(label, bool) else {})


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and value in (0, 1)


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
    if role == "assistant" and isinstance(given.get("function_call"), Mapping):  # OpenAI's older form
        calls = [{"type": "function", "function": dict(given["function_call"])}]
        used.add("function_call")
    if role == "call":  # ShareGPT: the call itself is the text
        message, calls = {"role": "assistant", "content": ""}, content
    parts = [name for name in _OF_PARTS if given.get(name) not in (None, [])]
    if parts:
        raise BadRowError(f"a turn has {parts[0]}: parts of a turn cannot be learned without the others")
    if calls not in (None, [], "") and message["role"] == "assistant":
        message["tool_calls"] = _calls(calls)
        used.add("tool_calls" if "tool_calls" in given else what)
    elif what is None or (raw[what] is None and not any(name in given for name in _REASONING)):
        raise BadRowError("a turn has no text", shortened(raw))
    if role != "assistant":  # a field that only an answer has
        left_out |= {name for name in (*_REASONING, "tool_calls", "function_call") if name in given} - used
        given = {name: value for name, value in given.items() if name not in left_out}
    reasons = {name: given[name] for name in _REASONING if name in given and given[name] != ""}
    if len(set(map(str, reasons.values()))) > 1:
        raise BadRowError(f"a turn has two reasonings ({' and '.join(reasons)})")
    for name, value in reasons.items():
        if (reasoning := _text(value, f"a turn's {name}")).strip():
            message["reasoning_content"] = reasoning
    used |= {name for name in _REASONING if name in given}
    flags = {name for name in (*_LEARNED, *_NOT_LEARNED) if name in given}
    flags |= {"label"} if isinstance(given.get("label"), bool) else set()
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
        if "arguments" not in inner:
            raise BadRowError("a tool call has no arguments", shortened(call))
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
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRowError(f"column {column} is no list of tools", shortened(tools))
    if column == "functions":  # OpenAI's older form
        tools = [{"type": "function", "function": tool} for tool in tools]
    return tools or None


def _is_learned(given: Mapping[str, Any]) -> bool:
    said = {name: _flag(name, given[name]) for name in _LEARNED if name in given}
    said |= {name: not _flag(name, given[name]) for name in _NOT_LEARNED if name in given}
    return all(said.values()) and given.get("label") is not False


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "0", "1", "0.0", "1.0"):
        return value.strip().lower() in ("true", "1", "1.0")
    if _is_flag(value):
        return bool(value)
    raise BadRowError(f"a turn's {name} is neither 0 nor 1, which is all that can be learned by", shortened(value))
