"""Talk with a diffusion language model; answers appear as they are unmasked.

    python -m sample.chat --model runs/chat [--system TEXT] [--threshold 0.9] …

/help says what can be typed: /clear, /system TEXT, /set NAME=VALUE, /save FILE, /quit. Everything else is said to the
model, as it stands; a line that begins with a blank is never a command. Ctrl-C stops an answer, not the program.
"""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import check_file, write_text
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling.config import SETTINGS, SamplerConfig
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.turns import Message
from qwen3llada_jax.writing.completions import answer_of
from qwen3llada_jax.writing.opening import Folder
from qwen3llada_jax.writing.requests import encode, encode_chat
from qwen3llada_jax.writing.settings import settings_for

from . import flags as common
from . import inputs
from .inputs import read_history
from .live import show_live

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation",
    "/system TEXT": "set the system prompt; without a text there is none",
    "/set NAME=VALUE": "change a setting of the sampler, `default` takes it back; without one they are shown",
    "/save FILE": "write the conversation as JSON, which --history reads",
    "/quit": "end (so does Ctrl-D); Ctrl-C stops an answer, not the program",
}
ROOM = 256  # tokens, and its doubles: what is compiled for, so that few turns of a conversation compile


@dataclass(frozen=True, kw_only=True)
class Flags(common.SamplerFlags, common.MeshFlags):
    system: str | None = flag("the system prompt", None, metavar="TEXT")
    enable_thinking: bool | None = flag(common.THINKING, None)
    history: Path | None = flag("go on with a chat that /save wrote", None, metavar="FILE")


def main(arguments: Sequence[str] | None = None) -> None:
    flags = cli.parse(Flags, arguments)
    common.settings_of(flags)
    cli.check_output()
    system, messages = flags.system, read_history(flags.history) if flags.history else []
    if messages and messages[0]["role"] == "system":
        if system is not None:
            raise InputError("the history has a system message of its own; leave out --system")
        system, messages = messages[0]["content"], messages[1:]
    if messages and messages[-1]["role"] != "assistant":
        raise InputError(f"{flags.history}: the last message must be the assistant's, for you to go on")
    folder = inputs.open_model(flags)
    inputs.check_template(folder.tokenizer)
    encode(folder.tokenizer, system or "")
    settings = folder.ending(common.settings_of(flags, folder.config))
    complete = settings.for_model(folder.config)
    inputs.say_own_settings(common.own_settings(flags, folder.config))
    inputs.say_if_untrained(folder, complete)
    inputs.say_if_approximate(complete, folder.config)
    model = folder.load(flags.dtype)
    inputs.say_if_rounded(model, complete)
    turn = 0
    for line in lines_typed():
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/help":
                show_help()
            elif word == "/clear":
                messages = []
            elif word == "/system":
                encode(folder.tokenizer, rest)  # what is no text is refused here, and not at every question
                system = rest if rest.strip() else None
            elif word == "/set":
                settings = changed(settings, rest.strip(), folder)
            elif word == "/save":
                save(rest.strip(), with_system(system, messages), flags.history)
            elif word.startswith("/"):
                near = cli.nearest(word, [command.split()[0] for command in COMMANDS])
                raise InputError(f"unknown command {word!r}{near}; put a blank before what is no command")
            else:
                asked = [*messages, {"role": "user", "content": line}]
                key = jax.random.fold_in(jax.random.key(flags.seed), turn)
                answer = reply(model, folder, system, asked, settings, key, folder.thinks(flags.enable_thinking))
                messages = messages if answer is None else [*asked, {"role": "assistant", "content": answer}]
                turn += 1
        except InputError as error:  # a slip of the keyboard ends no conversation
            print(f"error: {error}", file=sys.stderr)


def show_help() -> None:
    """What can be typed."""
    for command, text in COMMANDS.items():
        print(f"{command:<16} {text}", file=sys.stderr)
    print("settings:", file=sys.stderr)
    for name, setting in SETTINGS.items():
        print(f"  {name:<18} {setting.help}", file=sys.stderr)
    print(f"  {'rule':<18} a rule of your own, as --rule takes it", file=sys.stderr)


def lines_typed() -> Iterator[str]:
    """What is typed, or piped in, line by line, as it stands; Ctrl-D ends it, Ctrl-C only clears the line."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is no letter: an error of its line, not the end
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").removesuffix("\r")
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        except EOFError:
            return
        if line.strip():
            yield line


def with_system(system: str | None, messages: list[Message]) -> list[Message]:
    """The conversation as the chat template takes it."""
    return ([] if system is None else [{"role": "system", "content": system}]) + messages


def reply(
    model: q.Qwen3LLaDA,
    folder: Folder,
    system: str | None,
    messages: list[Message],
    settings: SamplerConfig,
    key: jax.Array,
    enable_thinking: bool = False,
) -> str | None:
    """The answer, shown while it is written and printed when it is; None if it was stopped."""
    ids = fitting(folder, system, messages, settings, enable_thinking)
    stops = settings.eos_token_ids or ()
    try:
        with folder.on_mesh():
            # Passes and not the whole trajectory, so that Ctrl-C is heard between two of them.
            room = room_for(len(ids), folder.config, settings.gen_length)
            canvases = q.watch(model, [ids] * folder.ways, settings, key=key, room=room)
            last = show_live(only_answer(canvases), folder.tokenizer, stops=stops, transient=True)
    except KeyboardInterrupt:
        print("stopped; the question is forgotten", file=sys.stderr)
        return None
    text = answer_of(folder.tokenizer, q.finish(last).answers()[0], stops)
    print(text, flush=True)
    return text


def fitting(
    folder: Folder, system: str | None, messages: list[Message], settings: SamplerConfig, enable_thinking: bool
) -> list[int]:
    """The ids of the conversation; of one longer than the model's positions without its first turns, saying so.

    Raises:
        InputError: the question alone is too long.
    """
    config, kept = folder.config, messages
    writer = ChatWriter(folder.tokenizer, enable_thinking=enable_thinking)
    while True:
        ids = encode_chat(writer, with_system(system, kept))
        if config.rope_scaling is not None or len(ids) + settings.gen_length <= config.max_position_embeddings:
            break
        later = [i for i, turn in enumerate(kept) if i and turn["role"] == "user"]
        if not later:
            raise InputError(
                f"the question ({len(ids):,} tokens) and {settings.gen_length:,} to write are beyond the "
                f"{config.max_position_embeddings:,} positions the model was made for; ask shorter, or /set gen_length"
            )
        kept = kept[later[0] :]
    if len(kept) < len(messages):
        print(
            f"the conversation is longer than the model's {config.max_position_embeddings:,} positions: its first "
            f"{len(messages) - len(kept)} messages are left out (/clear forgets all)",
            file=sys.stderr,
        )
    elif len(ids) + settings.gen_length > config.max_position_embeddings:
        print(f"beyond the {config.max_position_embeddings:,} positions the model was trained on", file=sys.stderr)
    return ids


def room_for(length: int, config: ModelConfig, gen_length: int) -> int:
    """Tokens of prompt to compile for: doubles of `ROOM`, within the model's positions while the prompt is."""
    room = max(ROOM, 1 << (length - 1).bit_length())
    return max(length, min(room, config.max_position_embeddings - gen_length))


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
    """Settings with `NAME=VALUE` changed; the value `default` takes it back. Without a text they are shown.

    Raises:
        InputError: no such setting, or an impossible value.
    """
    if not text:
        print(" ".join(f"{name}={value}" for name, value in common.told(settings).items()), file=sys.stderr)
        return settings
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"/set takes NAME=VALUE, as in /set temperature=0.7, not {text!r}")
    rules = [value.strip()] if name.strip() == "rule" else []
    own = settings_for(folder.config)
    settings = folder.ending(common.changed(settings, {} if rules else {name: value}, rules, own))
    complete = settings.for_model(folder.config)
    inputs.say_if_approximate(complete, folder.config)
    if name.strip() in ("block_length", "visibility"):
        inputs.say_if_untrained(folder, complete)
    return settings


def save(name: str, messages: list[Message], history: Path | None) -> None:
    """Write the conversation as JSON, which --history reads.

    Raises:
        InputError: no name, nothing said, a file that is no conversation, or it cannot be written.
    """
    if not name:
        raise InputError("/save takes the name of a file")
    if not messages:
        raise InputError("nothing was said yet; there is nothing to save")
    check_file(Path(name))
    if Path(name).is_file() and Path(name) != history:
        try:
            read_history(Path(name))
        except InputError as error:
            raise InputError(f"{name} is there and is no conversation; choose another name") from error
    write_text(Path(name), json.dumps(messages, indent=1, ensure_ascii=False) + "\n")
    print(f"{name}: {len(messages)} messages", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
