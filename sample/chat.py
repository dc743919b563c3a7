"""Talk with a diffusion language model; answers appear as they are unmasked.

    python -m sample.chat --model runs/chat [--system TEXT] [--threshold 0.9] …

/clear forgets the conversation, /system TEXT sets the system prompt, /set NAME=VALUE changes a setting of the sampler
(/set shows them), /save FILE writes the conversation as JSON, /quit ends. Ctrl-C stops an answer, not the program.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

import qwen3llada_jax as q
from qwen3llada_jax import command_line
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import write_text
from qwen3llada_jax.sampler_config import SamplerConfig
from sample import flags as common
from sample import opening
from sample.live import show_live
from sample.opening import Folder
from sample.prompts import check_template, encode_chat, read_history, up_to_stop

COMMANDS = ("/clear", "/system", "/set", "/save", "/quit")


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    wanted = common.settings_of(flags)
    system, messages = flags.system, read_history(flags.history) if flags.history else []
    if messages and messages[0]["role"] == "system":
        if system is not None:
            raise InputError("the history has a system message of its own; leave out --system")
        system, messages = messages[0]["content"], messages[1:]
    if messages and messages[-1]["role"] != "assistant":
        raise InputError(f"{flags.history}: the last message must be the assistant's, for you to go on")
    folder = opening.look_at(flags)
    check_template(folder.tokenizer)
    settings = folder.ending(wanted)
    opening.say_if_approximate(settings.for_model(folder.config), folder.config)
    model = opening.load(folder, flags.dtype)
    turn = 0
    for line in lines_typed():
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        try:
            if word == "/quit":
                return
            if word == "/clear":
                messages = []
            elif word == "/system":
                system = rest or None
            elif word == "/set":
                settings = changed(settings, rest, folder)
            elif word == "/save":
                save(rest, with_system(system, messages))
            elif word.startswith("/"):
                raise InputError(f"unknown command {word!r}" + command_line.nearest(word, COMMANDS))
            else:
                asked = [*messages, {"role": "user", "content": line}]
                key = jax.random.fold_in(jax.random.key(flags.seed), turn)
                answer = reply(model, folder, with_system(system, asked), settings, key)
                messages = messages if answer is None else [*asked, {"role": "assistant", "content": answer}]
                turn += 1
        except InputError as error:  # a slip of the keyboard ends no conversation
            print(f"error: {error}", file=sys.stderr)


def parse(arguments: Sequence[str] | None) -> Any:
    """The command line."""
    parser = command_line.Parser(__doc__)
    common.add_model_flags(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    parser.add_argument("--history", type=Path, metavar="FILE", help="go on with a chat that /save wrote")
    common.add_setting_flags(parser)
    return parser.parse(arguments)


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


def reply(
    model: q.Qwen3LLaDA, folder: Folder, messages: list[dict[str, str]], settings: SamplerConfig, key: jax.Array
) -> str | None:
    """The answer, shown while it is written and printed when it is; None if it was stopped."""
    ids = encode_chat(folder.tokenizer, messages)
    try:
        with folder.on_mesh():
            # Passes and not the whole trajectory, so that Ctrl-C is heard between two of them.
            canvases = q.watch(model, [ids] * folder.ways, settings, key=key)
            last = show_live(only_answer(canvases), folder.tokenizer, transient=True)
    except KeyboardInterrupt:
        print("stopped; the question is forgotten", file=sys.stderr)
        return None
    answer = q.finish(last).answers()[0]
    text = folder.tokenizer.decode(up_to_stop(answer, settings.eos_token_ids or ()), skip_special_tokens=True)
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


def changed(settings: SamplerConfig, text: str, folder: Folder) -> SamplerConfig:
    """Settings with `NAME=VALUE` changed; the value `none` takes it back. Without a text they are shown.

    Raises:
        InputError: no such setting, or an impossible value.
    """
    if not text:
        print(" ".join(f"{name}={getattr(settings, name)}" for name in common.SETTINGS), file=sys.stderr)
        return settings
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"/set takes NAME=VALUE, as in /set temperature=0.7, not {text!r}")
    settings = folder.ending(common.changed(settings, {name: value}))
    opening.say_if_approximate(settings.for_model(folder.config), folder.config)
    return settings


def save(name: str, messages: list[dict[str, str]]) -> None:
    """Write the conversation as JSON, which --history reads.

    Raises:
        InputError: no name, nothing said, or the file cannot be written.
    """
    if not name:
        raise InputError("/save takes the name of a file")
    if not messages:
        raise InputError("nothing was said yet; there is nothing to save")
    write_text(Path(name), json.dumps(messages, indent=1, ensure_ascii=False) + "\n")
    print(f"{name}: {len(messages)} messages", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main)
