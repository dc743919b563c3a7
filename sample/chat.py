"""Talk with a diffusion language model; answers appear as they are unmasked.

    python -m sample.chat --model runs/chat [--system TEXT] [--threshold 0.9] …

/clear forgets the conversation, /system TEXT sets the system prompt, /set NAME=VALUE changes a setting of the sampler,
/save FILE writes the conversation as JSON, /quit ends. Ctrl-C stops an answer, not the program.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

import qwen3llada_jax as q
from qwen3llada_jax import command_line
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import write_text
from qwen3llada_jax.sampler_config import SamplerConfig
from sample.flags import (
    SETTINGS,
    Opened,
    add_model_flags,
    add_setting_flags,
    open_model,
    say_if_approximate,
    settings_of,
)
from sample.live import show_live
from sample.prompts import encode_chat, up_to_stop


def main() -> None:
    flags = parse()
    opened, settings = open_model(flags, settings_of(flags))
    encode_chat(opened.tokenizer, [{"role": "user", "content": ""}])  # without a chat template there is no chat
    say_if_approximate(settings, opened.model.config)
    system, turn = flags.system, 0
    messages: list[dict[str, str]] = []
    for line in lines_typed():
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/clear":
                messages = []
            elif word == "/system":
                system = rest or None
            elif word == "/set":
                settings = changed(settings, rest, opened)
            elif word == "/save":
                write_text(Path(rest), json.dumps(with_system(system, messages), indent=1, ensure_ascii=False) + "\n")
            elif word.startswith("/"):
                known = ["/clear", "/system", "/set", "/save", "/quit"]
                raise InputError(f"unknown command {word!r}" + command_line.nearest(word, known))
            else:
                messages.append({"role": "user", "content": line})
                key = jax.random.fold_in(jax.random.key(flags.seed), turn)
                answer = reply(opened, with_system(system, messages), settings, key)
                messages = (
                    [*messages, {"role": "assistant", "content": answer}] if answer is not None else messages[:-1]
                )
                turn += 1
        except InputError as error:  # a slip of the keyboard ends no conversation
            print(f"error: {error}", file=sys.stderr)


def parse() -> Any:
    """The command line."""
    parser = command_line.Parser(__doc__)
    add_model_flags(parser)
    parser.add_argument("--system", help="the system prompt")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    add_setting_flags(parser)
    return parser.parse()


def lines_typed() -> Iterator[str]:
    """What is typed, or piped in, line by line; Ctrl-D ends it, Ctrl-C only clears the line."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        except EOFError:
            return
        if line:
            yield line


def with_system(system: str | None, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation as the chat template takes it."""
    return ([{"role": "system", "content": system}] if system else []) + messages


def reply(opened: Opened, messages: list[dict[str, str]], settings: SamplerConfig, key: jax.Array) -> str | None:
    """The answer, shown while it is written and printed when it is; None if it was stopped."""
    ids = encode_chat(opened.tokenizer, messages)
    try:
        with opened.on_mesh():
            rows = [ids] * opened.rows
            console = Console(highlight=False, stderr=True)
            canvases = q.watch(opened.model, rows, settings, key=key)
            last = show_live(only_answer(canvases), opened.tokenizer, console=console)
    except KeyboardInterrupt:
        print("stopped; the question is forgotten", file=sys.stderr)
        return None
    answer = q.finish(last).answers()[0]
    text = opened.tokenizer.decode(up_to_stop(answer, settings.eos_token_ids or ()), skip_special_tokens=True)
    print(text, flush=True)
    return text


def only_answer(canvases: Iterator[q.Canvas]) -> Iterator[q.Canvas]:
    """The first row of each canvas, without its prompt: the conversation stands above already."""
    for canvas in canvases:
        row = q.Canvas(*(x[:1] for x in canvas))
        start, length = int(row.prompt_length[0]), int(row.length[0])
        tokens, is_masked, written_at, confidence = (
            x[:, start:length] for x in (row.tokens, row.is_masked, row.written_at, row.confidence)
        )
        yield row._replace(
            tokens=tokens,
            is_masked=is_masked,
            written_at=written_at,
            confidence=confidence,
            places=row.places - start,
            prompt_length=row.prompt_length - start,
            length=row.length - start,
        )


def changed(settings: SamplerConfig, text: str, opened: Opened) -> SamplerConfig:
    """Settings with `name=value` changed; the value `default` takes it back.

    Raises:
        InputError: no such setting, or an impossible value.
    """
    name, equals, value = text.partition("=")
    name, value = name.strip().replace("-", "_"), value.strip()
    if name not in SETTINGS or not equals:
        raise InputError(
            f"/set takes NAME=VALUE with a setting's name, not {text!r}" + command_line.nearest(name, [*SETTINGS])
        )
    kind = SETTINGS[name][0]
    try:
        new: Any = (
            getattr(SamplerConfig(), name) if value == "none" else value if isinstance(kind, tuple) else kind(value)
        )
    except ValueError as error:
        raise InputError(f"{name} must be a number, not {value!r}") from error
    settings = dataclasses.replace(settings, **{name: new})
    settings.for_model(opened.model.config)
    say_if_approximate(settings, opened.model.config)
    return settings


if __name__ == "__main__":
    command_line.run(main)
