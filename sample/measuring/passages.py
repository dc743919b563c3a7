"""What is measured: texts cut into windows, or answers behind their prompts, as rows of ids.

A line of --data has `text`, or a prompt and its answer, or a conversation, in any format that training reads; a .txt is
one text. A prompt is plain text and its answer goes on from it, unless --chat puts both through the chat template, as
conversations always are: then every answer of the assistant is measured behind all that was said before it, and the
token that ends it is a part of it.

A text longer than a window is read in several that move on by a stride. The first counts all its tokens, the others the
last `stride`, so each token is counted once, and all but those of the first window with at least window − stride tokens
before them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import BadRowError, NoFormatError, check_text
from qwen3llada_jax.io.readers import SUFFIXES, raw_rows, unpacked
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.conversations import FORMATS, Conversation, answer_of, read_conversation
from qwen3llada_jax.writing.completions import text_of
from qwen3llada_jax.writing.opening import Folder
from qwen3llada_jax.writing.requests import encode

_LONGEST_WINDOW = 1024  # unless --window says otherwise: what a short row costs little more than


class Line(NamedTuple):
    """What a line of the file holds: one of these.

    Attributes:
        where: its file and line.
        pair: a prompt and its answer, as plain text.
    """

    where: str
    text: str | None = None
    pair: tuple[str, str] | None = None
    talk: Conversation | None = None


class Passage(NamedTuple):
    """A row to measure.

    Attributes:
        given: tokens at its beginning that are not counted.
        size: bytes of the text (UTF-8) that is counted.
        where: what it is called.
    """

    ids: list[int]
    given: int
    size: int
    where: str


class Window(NamedTuple):
    """How long texts are read: so many tokens at a time, moving on by so many."""

    length: int
    stride: int


def read(path: Path, limit: int | None, *, chat: bool) -> list[Line]:
    """The first `limit` lines of a file.

    Args:
        chat: plain prompts and answers are conversations, too.

    Raises:
        InputError: no such file, another kind, an empty one, or a line with nothing to measure.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file; use {', '.join(SUFFIXES)}")
    found: list[Line] = []
    for raw in raw_rows([str(path)]):
        if limit is not None and len(found) == limit:
            break
        where = f"{path}: line {raw['line']}" if path.suffix.lower() != ".txt" else str(path)
        try:
            found.append(_line(where, unpacked(raw), chat=chat))
        except NoFormatError as error:
            raise InputError(f"{where} needs text, {FORMATS.rpartition(', or')[0]}") from error
        except BadRowError as error:
            raise InputError(f"{where} {error.in_full}") from error
    if not found:
        raise InputError(f"{path}: nothing to measure in it")
    if len({line.text is None for line in found}) > 1:
        raise InputError(f"{path}: some lines are texts and some have prompts and answers; use two files")
    return found


def _line(where: str, row: dict[str, Any], *, chat: bool) -> Line:
    if isinstance(row.get("text"), str):
        return Line(where, text=check_text(row["text"]))
    prompt, answer = row.get("prompt"), answer_of(row)
    if isinstance(prompt, str) and not chat and row.get("messages") is None:
        if not isinstance(answer, str) or not answer:
            raise BadRowError("has a prompt and no answer to measure")
        return Line(where, pair=(check_text(prompt), check_text(answer)))
    return Line(where, talk=read_conversation(row))


def window_of(config: ModelConfig, block_length: int | None, window: int | None, stride: int | None) -> Window:
    """The window in force, both of whose sizes are whole blocks, so that blocks are the same in every window.

    Args:
        config: of the model; with shift each window needs a token before those it counts.
        block_length: of the blocks that are read; None: there are none.

    Raises:
        InputError: sizes that do not go together, or with the model.
    """
    S, most = block_length or 1, config.max_position_embeddings
    length = max(min(most, _LONGEST_WINDOW) // S, 1) * S if window is None else window
    if stride is None:
        stride = max(length // 2 // S, 1) * S
    if length > most and config.rope_scaling is None:
        raise InputError(f"--window {length}: is beyond the {most} positions the model was made for")
    if stride > length:
        raise InputError(f"--stride {stride} leaves out tokens between windows of {length}; choose {length} or less")
    for name, size in (("window", length), ("stride", stride)):
        if size % S:
            raise InputError(f"--{name} {size} must be whole blocks of {S} tokens: {size // S * S or S}, say")
    if config.shift and stride == length:
        raise InputError(
            f"--stride {stride}: the model predicts a token at the one before it, so a window needs one before those "
            f"it counts; choose {length - S or f'it below --window {2 * S}'}"
        )
    return Window(length, stride)


def of_texts(lines: Sequence[Line], folder: Folder, window: Window, *, shift: bool) -> list[Passage]:
    """Texts in windows. With shift the first token of a text is not counted, nor are its bytes."""
    found: list[Passage] = []
    for line in lines:
        assert line.text is not None
        ids, size = encode(folder.tokenizer, line.text), len(line.text.encode())
        size -= _first_bytes(folder, ids) if shift else 0
        parts = list(windows(len(ids), window))
        for number, (begin, counted, end) in enumerate(parts):
            own = size if number == 0 else 0  # a text's bytes are counted with its first window
            found.append(Passage(ids[begin:end], counted - begin, own, line.where))
    return found


def windows(length: int, window: Window) -> Iterator[tuple[int, int, int]]:
    """(begin, first token that is counted, end) of each window over a text of so many tokens."""
    counted, end = 0, min(window.length, length)
    while counted < length:
        yield (max(counted - (window.length - window.stride), 0) if counted else 0), counted, end
        counted, end = end, min(end + window.stride, length)


def of_answers(
    lines: Sequence[Line], folder: Folder, *, enable_thinking: bool | None, shift: bool
) -> tuple[list[Passage], int]:
    """(answers behind their prompts, answers that are not measured, as their rows say or because they are empty).

    Raises:
        InputError: no chat template where one is needed, an answer that it does not write whole, or a row beyond the
            positions of the model.
    """
    writer = None
    found: list[Passage] = []
    left_out = 0
    for line in lines:
        if line.talk is not None:
            writer = writer or ChatWriter(folder.tokenizer, "chat", folder.thinks(enable_thinking))
            pairs = []
            for answer in writer.answers(line.talk):
                if answer.refusal is None:
                    pairs.append((answer.prompt, answer.answer))
                elif answer.refusal.is_malformed:
                    raise InputError(f"{line.where} {answer.refusal.in_full}")
                else:
                    left_out += 1
        else:
            assert line.pair is not None
            pairs = [line.pair]
        found += [_passage(pair, line.where, folder, shift=shift) for pair in pairs]
    if not found:
        raise InputError("--data: no answer to measure in it")
    return found, left_out


def _passage(pair: tuple[str, str], where: str, folder: Folder, *, shift: bool) -> Passage:
    prompt, answer = (encode(folder.tokenizer, text) for text in pair)
    size, most = len(text_of(folder.tokenizer, answer).encode()), folder.config.max_position_embeddings
    if len(prompt) + len(answer) > most and folder.config.rope_scaling is None:
        raise InputError(
            f"{where}: prompt and answer are {len(prompt) + len(answer):,} tokens, beyond the {most:,} positions the "
            "model was made for; leave it out"
        )
    if shift and not prompt:
        size -= _first_bytes(folder, answer)
    return Passage(prompt + answer, len(prompt), size, where)


def _first_bytes(folder: Folder, ids: Sequence[int]) -> int:
    return len(text_of(folder.tokenizer, ids[:1]).encode())
