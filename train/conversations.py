"""The formats of supervised data, read as conversations and cut into (prompt, answer) texts.

| columns                         | format                                                        |
|---------------------------------|---------------------------------------------------------------|
| messages                        | [{role, content}, …]                                          |
| conversations (system)          | [{from, value}, …] (ShareGPT), an optional system text        |
| prompt, completion              | one question, one answer                                      |
| question, answer                | one question, one answer                                      |
| instruction, (input,) output    | Alpaca: the input follows the instruction after a blank line  |

Two templates write them as text: `chat`, the tokenizer's own, and `plain` for tokenizers that have none:

    System: Be brief.⏎⏎User: Who?⏎⏎Assistant: I.<EOS>

where a prompt ends behind `Assistant:`; earlier answers end in a blank line, only the last in EOS.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qwen3llada_jax.errors import InputError

Turn = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
TEMPLATES = ("chat", "plain")
END_OF_TURN = "<|im_end|>"

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))


def reader(columns: list[str], name: str) -> Callable[[Mapping[str, Any]], list[Turn]]:
    """How to read an example with these columns as a list of turns.

    Raises:
        InputError: columns of no known format.
    """
    if "messages" in columns:
        return lambda example: [_turn(t, "role", "content", name) for t in example["messages"] or ()]
    if "conversations" in columns:
        return lambda example: _sharegpt(example, name)
    for question, answer in _PAIRS:
        if question in columns and answer in columns:
            return lambda example: [
                _turn(
                    {"role": "user", "content": example[question]},
                    "role",
                    "content",
                    name,
                    _optional(example, "input", name) if question == "instruction" else None,
                ),
                _turn({"role": "assistant", "content": example[answer]}, "role", "content", name),
            ]
    raise InputError(
        f"{name}: columns {', '.join(columns)} are no format for sft; it needs messages, conversations, "
        "prompt + completion, question + answer, or instruction + output"
    )


def question(turns: list[Turn], tokenizer: Any, template: str = "chat") -> str:
    """The text of a prompt: these turns, and the beginning of an answer.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if template == "plain":
        return "".join(f"{turn['role'].capitalize()}: {turn['content']}\n\n" for turn in turns) + "Assistant:"
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template, which sft needs; add chat_template.jinja to the model folder, or set "
            "dataset.template: plain"
        )
    return _written(turns, tokenizer, add_generation_prompt=True)


def answers(turns: list[Turn], tokenizer: Any, template: str = "chat") -> Iterator[tuple[str, str]]:
    """(prompt, answer) for every assistant turn, as the template writes them; all turns before it are prompt.

    Raises:
        InputError: the tokenizer has no chat template, or one under which an answer does not follow its prompt.
    """
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant" or i == 0 or not turn["content"]:
            continue
        prompt = question(turns[:i], tokenizer, template)
        if template == "plain":
            yield prompt, f" {turn['content']}"
            continue
        whole = _written(turns[: i + 1], tokenizer)
        if not whole.startswith(prompt) or len(whole) == len(prompt):
            raise InputError("the chat template does not put an answer right behind its prompt; sft cannot use it")
        answer = whole[len(prompt) :]
        yield prompt, answer.rstrip("\n") if answer.rstrip("\n").endswith(END_OF_TURN) else answer


def _written(turns: list[Turn], tokenizer: Any, **options: Any) -> str:
    import jinja2

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except jinja2.TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise InputError(
            f"the tokenizer's chat template cannot write a conversation of {roles} ({error}); mend "
            "chat_template.jinja or the data, or set dataset.template: plain"
        ) from error


def _sharegpt(example: Mapping[str, Any], name: str) -> list[Turn]:
    system = _optional(example, "system", name)
    turns = [{"role": "system", "content": system}] if system else []
    return turns + [_turn(said, "from", "value", name) for said in example["conversations"] or ()]


def _optional(example: Mapping[str, Any], column: str, name: str) -> str | None:
    """The text of a column that a format may have."""
    text = example.get(column)
    if text is not None and not isinstance(text, str):
        raise InputError(f"{name}: column {column} must hold texts, not {str(text)[:80]!r}")
    return text


def _turn(said: Any, who: str, what: str, name: str, more: str | None = None) -> Turn:
    """One turn, its speaker by our names; `more` follows after a blank line."""
    if not isinstance(said, Mapping) or not isinstance(said.get(what), str) or said.get(who) is None:
        raise InputError(f"{name}: a turn needs {who} and a text {what}, not {str(said)[:80]}")
    if not isinstance(said[who], str) or said[who] not in _ROLES:
        raise InputError(f"{name}: unknown speaker {said[who]!r}; known are {', '.join(_ROLES)}")
    return {"role": _ROLES[said[who]], "content": f"{said[what]}\n\n{more}" if more else said[what]}
