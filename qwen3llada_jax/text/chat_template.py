"""Conversations as text: the prompt of an answer, and the answer, as the tokenizer's chat template writes them.

Two templates: `chat`, the tokenizer's own, and `plain` for tokenizers that have none:

    System: Be brief.⏎⏎User: Who?⏎⏎Assistant: I.<EOS>

where a prompt ends behind `Assistant:`; earlier answers end in a blank line, only the last in EOS.

Templates drop what they do not know without a word, and some cut an answer at a tag in it: whatever a turn says must be
found in what the template wrote, or the answer is not used.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import BadRowError, shortened
from qwen3llada_jax.text.conversations import Conversation
from qwen3llada_jax.text.text_ends import END_OF_TURN
from qwen3llada_jax.text.turns import Message

_MOST_PROBES = 10_000  # shapes of conversations that are remembered
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


class Answer(NamedTuple):
    """An answer and its prompt as text; or why there is none to learn."""

    prompt: str
    answer: str
    refusal: BadRowError | None = None


@dataclass(frozen=True)
class ChatWriter:
    """Writes conversations for a tokenizer.

    Args:
        template: chat or plain.
        enable_thinking: as Qwen3's template takes it: whether an answer begins with its reasoning. Off, the empty
            think block that the template writes in its place is part of the prompt.

    Raises:
        InputError: the tokenizer has no chat template, or one that knows no thinking where that is asked for.
    """

    tokenizer: Any
    template: str = "chat"
    enable_thinking: bool = False
    _probed: dict[Any, BadRowError | None] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.template == "plain":
            if self.enable_thinking:
                raise InputError("enable_thinking has no effect with the plain template; leave it out")
            return
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError(
                "the tokenizer has no chat template, which conversations need; add chat_template.jinja to the model "
                "folder, or use the plain template (dataset.template: plain)"
            )
        if self.enable_thinking and "enable_thinking" not in self.names.variables:
            raise InputError("enable_thinking has no effect: the tokenizer's chat template has no such switch")

    @cached_property
    def names(self) -> "Names":
        """What the template looks at."""
        if self.template == "plain":
            return Names(frozenset(), frozenset({"role", "content"}))
        return names_in(self.tokenizer.chat_template)

    def prompt(self, messages: Sequence[Message], tools: list[Any] | None = None) -> str:
        """The text of these turns, up to where the answer begins.

        Raises:
            BadRowError: the template does not write all that they say.
        """
        if self.template == "plain":
            _check_plain(messages, tools)
            return "".join(f"{m['role'].capitalize()}: {m['content']}\n\n" for m in messages) + "Assistant:"
        self._probe(messages, tools)
        text = self._write(messages, tools, add_generation_prompt=True)
        _check_holds(text, messages)
        return text

    def answers(self, conversation: Conversation) -> Iterator[Answer]:
        """Every answer of the assistant with all turns before it as its prompt, or why it is not one to learn."""
        for i, message in enumerate(conversation.messages):
            if message["role"] != "assistant":
                continue
            try:
                yield self._answer(conversation, i)
            except BadRowError as refusal:
                yield Answer("", "", refusal)

    def _answer(self, conversation: Conversation, i: int) -> Answer:
        messages, tools, message = conversation.messages, conversation.tools, conversation.messages[i]
        if i == 0:
            raise BadRowError("the assistant speaks first, to no prompt", is_malformed=False)
        if not conversation.is_learned[i]:
            raise BadRowError("is not to be learned (weight 0)", is_malformed=False)
        if not (message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content")):
            raise BadRowError("the answer is empty", is_malformed=False)
        if message["content"].lstrip().startswith("<think>") and "</think>" not in message["content"]:
            raise BadRowError("the answer's reasoning has no end (</think>)", is_malformed=False)
        prompt = self.prompt(messages[:i], tools)
        if self.template == "plain":
            _check_plain(messages[i : i + 1], tools)
            return Answer(prompt, f" {message['content']}")
        self._probe(messages[: i + 1], tools)
        whole = self._write(messages[: i + 1], tools)
        if not whole.startswith(prompt) or len(whole) == len(prompt):
            raise self._misplaced(messages, i, whole)
        answer = whole[len(prompt) :]
        _check_answer(answer, message)
        trimmed = answer.rstrip()  # templates write on behind the token that ends a turn; the model stops there
        ends = (END_OF_TURN, getattr(self.tokenizer, "eos_token", None) or END_OF_TURN)
        return Answer(prompt, trimmed if trimmed.endswith(ends) else answer)

    def _misplaced(self, messages: Sequence[Message], i: int, whole: str) -> BadRowError:
        """Why the template does not put this answer right behind its prompt."""
        if _reasoning(messages[i]) and not self.enable_thinking and "enable_thinking" in self.names.variables:
            return BadRowError("the answer has a reasoning while enable_thinking is off", "set it to true to teach it")
        _check_answer(whole, messages[i])  # an answer that was cut is the likelier fault
        if messages[i - 1]["role"] == "assistant":
            return BadRowError("the chat template writes two turns of the assistant in a row otherwise than one by one")
        return BadRowError("the chat template does not put the answer right behind its prompt")

    def _probe(self, messages: Sequence[Message], tools: list[Any] | None) -> None:
        """Refuse turns that the template leaves out whatever they say: written once with words found nowhere else.

        The reasoning of earlier turns is left out on purpose; only that of an answer at the end must be there.
        """
        shape = tuple(_shape(m) for m in messages), bool(tools)
        if shape not in self._probed:
            if len(self._probed) >= _MOST_PROBES:
                self._probed.clear()
            self._probed[shape] = self._dropped(messages, tools)
        if (refusal := self._probed[shape]) is not None:
            raise refusal

    def _dropped(self, messages: Sequence[Message], tools: list[Any] | None) -> BadRowError | None:
        if tools and "tools" not in self.names.variables:
            return BadRowError("has tools, which the chat template does not write")
        probes = [_as_probe(message, i) for i, message in enumerate(messages)]
        text = self._write([probe for probe, _ in probes], tools)
        for i, (message, (_, words)) in enumerate(zip(messages, probes, strict=True)):
            for what, word in words:
                is_earlier = what == "reasoning" and i < len(messages) - 1
                if word not in text and not is_earlier:
                    return BadRowError(f"the chat template leaves out the {what} of a turn of the {message['role']}")
        return None

    def _write(self, messages: Sequence[Message], tools: list[Any] | None, **options: Any) -> str:
        import jinja2

        switches = {"enable_thinking": self.enable_thinking} if "enable_thinking" in self.names.variables else {}
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, **switches, **options
            )
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, IndexError) as error:  # whatever it is made of
            if isinstance(error, jinja2.TemplateSyntaxError):
                raise _no_template(error) from error
            roles = ", ".join(message["role"] for message in messages[:8])
            raise BadRowError(
                "the chat template cannot write it", f"{shortened(str(error), 80)}, a conversation of {roles}"
            ) from error


class Names(NamedTuple):
    """What a chat template looks at: its variables, and fields of messages (None: it takes them whole)."""

    variables: frozenset[str]
    fields: frozenset[str] | None

    def reads(self, name: str) -> bool:
        """Whether a field of a message can make a difference."""
        return self.fields is None or name in self.fields


def names_in(template: str) -> Names:
    """What a chat template looks at.

    Raises:
        InputError: it is no template.
    """
    import jinja2
    from jinja2 import meta, nodes

    # The tag that marks what is generated is transformers' own, and changes nothing here.
    bare = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(bare)
    except jinja2.TemplateSyntaxError as error:
        raise _no_template(error) from error
    messages, before = {"messages", "message"}, 0
    for macro in tree.find_all(nodes.Macro):
        messages |= {argument.name for argument in macro.args}

    def is_message(node: Any) -> bool:
        """Whether it is the list of messages, one of them, or a part of the list."""
        while isinstance(node, (nodes.Getitem, nodes.Filter)):
            if isinstance(node, nodes.Getitem) and _is_name(node.arg):
                return False
            if node.node is None:
                return False
            node = node.node
        return isinstance(node, nodes.Name) and node.name in messages

    def _is_name(node: Any) -> bool:
        return isinstance(node, nodes.Const) and isinstance(node.value, str)

    while len(messages) > before:
        before = len(messages)
        for loop in tree.find_all(nodes.For):
            if isinstance(loop.target, nodes.Name) and is_message(loop.iter):
                messages.add(loop.target.name)
        for assigned in tree.find_all(nodes.Assign):
            if isinstance(assigned.target, nodes.Name) and is_message(assigned.node):
                messages.add(assigned.target.name)
    fields: set[str] = set()
    node: Any
    for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Filter)):
        if not is_message(node.node):
            continue
        if isinstance(node, nodes.Getattr):
            fields.add(node.attr)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            fields.add(str(node.arg.value))
        elif isinstance(node, nodes.Filter) and node.name in ("tojson", "items", "string", "dictsort"):
            return Names(frozenset(meta.find_undeclared_variables(tree)), None)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr == "get" and call.args:
            fields.add(str(getattr(call.args[0], "value", "")))
        if isinstance(call.node, nodes.Getattr) and call.node.attr == "items" and is_message(call.node.node):
            return Names(frozenset(meta.find_undeclared_variables(tree)), None)
    return Names(frozenset(meta.find_undeclared_variables(tree)), frozenset(fields))


def _no_template(error: Exception) -> InputError:
    return InputError(f"the tokenizer's chat template cannot be read ({error}); fix chat_template.jinja")


def _shape(message: Message) -> tuple[Any, ...]:
    """What of a turn decides how a template writes it, but for what it says."""
    calls = tuple(isinstance(_inner(call)["arguments"], str) for call in message.get("tool_calls") or ())
    return message["role"], bool(message["content"]), bool(message.get("reasoning_content")), calls


def _as_probe(message: Message, i: int) -> tuple[Message, list[tuple[str, str]]]:
    """The turn with words found nowhere else, and (what, word) of each."""
    probe, words = dict(message), []
    for what, name in (("text", "content"), ("reasoning", "reasoning_content")):
        if message.get(name):
            probe[name] = f"qz{i}{name[0]}zq"
            words.append((what, probe[name]))
    if message.get("tool_calls"):
        probe["tool_calls"] = []
        for j, call in enumerate(message["tool_calls"]):
            name, value = f"qz{i}n{j}zq", f"qz{i}a{j}zq"
            arguments: Any = {"a": value}
            if isinstance(_inner(call)["arguments"], str):
                arguments = json.dumps(arguments)
            inner = {**_inner(call), "name": name, "arguments": arguments}
            probe["tool_calls"].append({**call, "function": inner} if "function" in call else inner)
            words += [("tool calls", name), ("arguments of tool calls", value)]
    return probe, words


def _inner(call: Any) -> Any:
    """A tool call's name and arguments, which may stand under `function`."""
    return call.get("function", call)


def _reasoning(message: Message) -> str:
    """The reasoning of a turn, from its field or at the head of its content."""
    thought = _THOUGHT.match(message["content"])
    return str(message.get("reasoning_content") or (thought.group(1) if thought else "")).strip()


def _said(message: Message) -> str:
    """What a turn says without its reasoning."""
    thought = _THOUGHT.match(message["content"]) if message["role"] == "assistant" else None
    return message["content"][thought.end() :] if thought else message["content"]


def _check_holds(text: str, messages: Sequence[Message]) -> None:
    """Templates leave out the reasoning of earlier turns on purpose, but nothing else."""
    for message in messages:
        if not _holds(text, _said(message)):
            raise BadRowError(
                f"the chat template does not write all that a turn of the {message['role']} says",
                shortened(message["content"]),
            )


def _check_answer(answer: str, message: Message) -> None:
    for part in (_said(message), _reasoning(message)):
        if not _holds(answer, part):
            raise BadRowError("the chat template does not write all that the answer says", shortened(part))


def _holds(text: str, part: str) -> bool:
    part = part.strip()
    return part in text or any(json.dumps(part, ensure_ascii=a)[1:-1] in text for a in (True, False))


def _check_plain(messages: Sequence[Message], tools: list[Any] | None) -> None:
    if tools or any(m["role"] == "tool" or m.get("tool_calls") for m in messages):
        raise BadRowError("has tools, which the plain template does not write")
    if any(m.get("reasoning_content") for m in messages):
        raise BadRowError("has a reasoning, which the plain template does not write")
