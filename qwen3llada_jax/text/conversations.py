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

from qwen3llada_jax.io.jsonl import BadRowError, NoFormatError, shortened
from qwen3llada_jax.text.turns import Message, Turn, list_of_turns, plain, row_flags, text_of

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
    if system in given and (text := text_of(given[system], f"column {system}")).strip():
        if any(turn.message["role"] == "system" for turn in turns):
            raise BadRowError(f"has a column {system} and a system turn too")
        turns = [plain("system", text), *turns]
    used |= {system} & set(given)
    tools = columns.tools or next((name for name in _TOOLS if name in given), _TOOLS[0])
    found = _tools(given[tools], tools) if tools in given else None
    used |= {tools} & set(given)
    flags = row_flags(given)
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
    return tuple(turn.message for turn in list_of_turns(messages, what))


def _turns(
    row: Mapping[str, Any],
    given: Mapping[str, Any],
    columns: Columns,
    turn_fields: tuple[str, ...],
    needs_answer: bool,
) -> tuple[list[Turn], set[str]]:
    """(the turns, the columns that they stand in)."""
    if columns.messages is not None:
        return list_of_turns(_value(row, columns.messages), columns.messages, turn_fields), {columns.messages}
    if columns.prompt or columns.completion:
        return _exchange(row, list(columns.prompt), columns.completion, turn_fields)
    for name in ("messages", "conversations"):
        if name in given:
            return list_of_turns(given[name], name, turn_fields), {name}
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
) -> tuple[list[Turn], set[str]]:
    used = {*asked, *([answer] if answer else [])}
    if answer is None and needs_answer:
        raise BadRowError("has no column of answers: name it as dataset.columns.completion")
    said = [_value(row, name) for name in asked]
    if len(said) == 1 and isinstance(said[0], list):  # messages (TRL)
        before = [replace(turn, is_learned=False) for turn in list_of_turns(said[0], asked[0], turn_fields)]
    else:
        parts = [text_of(value, f"column {name}") for value, name in zip(said, asked, strict=True)
                 if value is not None or len(asked) == 1]  # fmt: skip
        text = "\n\n".join(part for part in parts if part.strip())
        if asked and not text:
            raise BadRowError(f"column {asked[0]} is empty", is_malformed=False)
        before = [plain("user", text)] if asked else []
    if answer is None:
        return before, used
    answers = _value(row, answer)
    if isinstance(answers, list):
        return [*before, *list_of_turns(answers, answer, turn_fields)], used
    answered = text_of(answers, f"column {answer}")
    if not answered.strip():
        raise BadRowError(f"column {answer} is empty", is_malformed=False)
    return [*before, plain("assistant", answered)], used


def _with_history(
    row: Mapping[str, Any], given: Mapping[str, Any], turns: list[Turn], used: set[str]
) -> tuple[list[Turn], set[str]]:
    """The turns after the earlier questions and answers of a column `history` (LLaMA-Factory)."""
    if "history" not in given:
        return turns, used
    pairs = given["history"]
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRowError("column history is no list of [question, answer]", shortened(pairs))
    earlier = [
        plain(role, text_of(text, "column history"))
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*earlier, *turns], used | {"history"}


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise BadRowError(f"has no column {name}")
    return row[name]


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
