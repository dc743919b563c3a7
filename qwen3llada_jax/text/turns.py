"""One turn of a conversation, in any of the forms that datasets have, as a message that a chat template takes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3llada_jax.io.jsonl import BadRowError, check_text, kind_of, shortened

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
    "weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_scale", "calculate_loss", "learn",
)  # fmt: skip
_NOT_LEARNED = ("mask", "masked", "ignore", "ignored", "skip")
_OF_PARTS = ("train_detail", "training_detail", "loss_mask")  # which parts of a turn are to be learned


@dataclass(frozen=True)
class Turn:
    """A message, whether it may be learned, and which of its fields were used, go to the template, or are left out."""

    message: Message
    is_learned: bool
    fields: frozenset[str] = frozenset()
    passed_on: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()


def plain(role: str, text: str) -> Turn:
    """A turn that only says something."""
    return Turn({"role": role, "content": text}, role == "assistant")


def list_of_turns(turns: Any, what: str, kept: tuple[str, ...] = ()) -> list[Turn]:
    """The turns of a column.

    Args:
        kept: fields to use beside who speaks and what; empty: all.

    Raises:
        BadRowError: one of them is none.
    """
    if not isinstance(turns, list):
        raise BadRowError(f"column {what} is {kind_of(turns)}, not a list of turns", shortened(turns))
    return [_turn(turn, kept) for turn in turns]


def _turn(raw: Any, kept: tuple[str, ...]) -> Turn:
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
        if (reasoning := text_of(value, f"a turn's {name}")).strip():
            message["reasoning_content"] = reasoning
    used |= {name for name in _REASONING if name in given}
    flags = {name for name in (*_LEARNED, *_NOT_LEARNED) if name in given}
    flags |= {"label"} if isinstance(given.get("label"), bool) else set()
    passed_on = set(given) - used - flags - {"tool_calls"}
    message |= {name: given[name] for name in sorted(passed_on)}
    is_learned = message["role"] == "assistant" and _is_learned(given)
    return Turn(message, is_learned, frozenset(map(str, used | flags)), frozenset(passed_on), frozenset(left_out))


def _content(value: Any) -> str:
    """A text, or one in parts (OpenAI's list of {type: text, text})."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return text_of(value, "a turn's text")
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


def text_of(value: Any, what: str) -> str:
    """A value, if it is a text.

    Raises:
        BadRowError: it is none; `what` it should have been.
    """
    if not isinstance(value, str):
        raise BadRowError(f"{what} is {kind_of(value)}, not a text", shortened(value))
    return check_text(value)


def row_flags(given: Mapping[str, Any]) -> dict[str, bool]:
    """What a row says of whether its answers are to be learned; other values of such columns are something else."""
    flags = {name: given[name] for name in (*_LEARNED, *_NOT_LEARNED) if _is_flag(given.get(name))}
    found = {name: bool(value) != (name in _NOT_LEARNED) for name, value in flags.items()}
    label = given.get("label")
    return found | ({"label": label} if isinstance(label, bool) else {})


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and value in (0, 1)


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
