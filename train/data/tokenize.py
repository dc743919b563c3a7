"""From rows of data to token ids: documents, and answers with their prompts; or why a row is left out.

Whole datasets (`token_cache`) and streams use the same functions.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from qwen3llada_jax.cli import nearest
from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.io import readers
from qwen3llada_jax.io.jsonl import BadRowError, NoFormatError, check_text, kind_of, shortened
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.conversations import FORMATS, Columns, read_conversation
from qwen3llada_jax.text.text_ends import END_OF_TURN

from . import long_texts, sources
from .account import seen_as

_LOOKED_AT = 1000  # rows that are looked at to find the columns
PROMPT_FILLS = "its prompt leaves no room for an answer"

Examples = dict[str, list[Any]]  # column → values
# (rows, each with the number it has) → one entry per document or answer, of the columns of `FEATURES`
Tokenize = Callable[[Sequence[Mapping[str, Any]], Sequence[int]], Examples]
# `row` is the number of the entry's row, `cut` how many tokens were cut off at its end, or are lost with it where it
# is left out; `why` it is (empty: it is used), with `detail`; `seen` of a row's first entry: its columns and fields.
FEATURES = {"prompt": "int64", "cut": "int64", "row": "int64", "why": "string", "detail": "string", "seen": "string"}


@dataclass(frozen=True)
class TokenizeConfig:
    """What rows depend on besides texts and tokenizer.

    Attributes:
        mode: pretrain or sft.
        length: tokens of a row at most.
        pack: pretrain: join documents into full rows; else each gets rows of its own.
        boundaries: tell where documents begin in packed rows.
        template: sft: chat or plain.
        enable_thinking: sft: answers begin with their reasoning.
        turn_fields: sft: of each turn, beside who speaks and what, only these are used; empty: all.
        on_bad_row: skip (leave it out, and count it) or stop.
    """

    mode: str
    length: int
    pack: bool = True
    boundaries: bool = False
    template: str = "chat"
    enable_thinking: bool = False
    turn_fields: tuple[str, ...] = ()
    on_bad_row: str = "skip"


@dataclass(frozen=True)
class Reading:
    """Where in its rows a dataset has what is trained on.

    Attributes:
        text_field: pretrain: column of the text; None: `text`, or the only one of strings.
        columns: sft: columns of the conversation, where their names do not say so.
    """

    text_field: str | None = None
    columns: Columns = field(default_factory=Columns)


def rows_in(batch: Examples, is_raw: bool) -> list[Mapping[str, Any]]:
    """The rows of a batch of columns."""
    rows: list[Mapping[str, Any]] = [
        dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
    ]
    return rows if is_raw else [readers.from_columns(row) for row in rows]


def tokenize_with(
    how: TokenizeConfig,
    tokenizer: Any,
    source: sources.Source,
    reading: Reading,
    first: list[Mapping[str, Any]],
) -> Tokenize:
    """How to tokenize rows of this source.

    Args:
        first: rows by which columns are found (`first_rows`).

    Raises:
        InputError: columns that are not there, or of no known format; when called, and bad rows are to stop the run, a
            bad row.
    """
    if how.mode == "sft":
        entries, finish = _answers(how, tokenizer, reading, first, source.name)
    else:
        column = reading.text_field or "text"  # where no row can be read, its refusal says more
        if first:
            column = sources.text_column(_columns(first), reading.text_field, source.name)
        entries, finish = _documents(tokenizer, column)

    def tokenize(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> Examples:
        found: list[tuple[int, Entry, str]] = []  # of which row, and what was seen in it
        for raw, number in zip(rows, numbers, strict=True):
            try:
                row = readers.unpacked(raw) if source.is_raw else raw
                of_row, seen = entries(row)
            except BadRowError as error:
                of_row, seen = [Entry(refusal=error)], ""
            found += [(number, entry, seen if i == 0 else "") for i, entry in enumerate(of_row)]
            bad = next((e.refusal for e in of_row if e.refusal is not None and e.refusal.is_malformed), None)
            if bad is not None and how.on_bad_row == "stop":
                where = source.where(number, raw)
                raise InputError(f"{where}: {bad.in_full}; fix the row, or set dataset.on_bad_row: skip")
        texts = [text for _, entry, _ in found for text in entry.texts]
        encoded = iter(long_texts.encode(tokenizer, texts))
        out: Examples = {name: [] for name in ("ids", *FEATURES)}
        for number, entry, seen in found:
            ids: Ids = []
            prompt, cut, refusal = 0, 0, entry.refusal
            if refusal is None:
                ids, prompt, cut, refusal = finish(*(next(encoded) for _ in entry.texts), entry.texts[-1])
            out["ids"].append(ids)
            out["prompt"].append(prompt)
            out["cut"].append(cut)
            out["row"].append(number)
            out["why"].append(str(refusal or ""))
            out["detail"].append(refusal.detail if refusal else "")
            out["seen"].append(seen)
        return out

    return tokenize


class Entry(NamedTuple):
    """The texts of a document, or of a prompt and its answer; or why it is left out."""

    texts: tuple[str, ...] = ()
    refusal: BadRowError | None = None


Entries = Callable[[Mapping[str, Any]], tuple[list[Entry], str]]  # what is in a row, and what was seen in it
Ids = list[int] | Int[np.ndarray, " n"]
# (ids of each text, the last text) → (ids, tokens of the prompt, tokens cut off or lost, why it is left out)
Finish = Callable[..., tuple[Ids, int, int, BadRowError | None]]


def _documents(tokenizer: Any, column: str) -> tuple[Entries, Finish]:
    def entries(row: Mapping[str, Any]) -> tuple[list[Entry], str]:
        if column not in row:
            raise BadRowError(f"has no column {column}")
        text = row[column]
        if text is None or text == "":
            raise BadRowError(f"its {column} is empty", is_malformed=False)
        if not isinstance(text, str):
            raise BadRowError(f"its {column} is {kind_of(text)}, not a text", shortened(text))
        others = [name for name, value in row.items() if name != column and value is not None]
        return [Entry((check_text(text),))], seen_as([column], others, (), ())

    def finish(ids: Ids, _: str) -> tuple[Ids, int, int, None]:
        end = tokenizer.eos_token_id
        return [*ids, end] if isinstance(ids, list) else np.append(ids, np.int32(end)), 0, 0, None

    return entries, finish


def _answers(
    how: TokenizeConfig, tokenizer: Any, reading: Reading, first: list[Mapping[str, Any]], name: str
) -> tuple[Entries, Finish]:
    writer = ChatWriter(tokenizer, how.template, how.enable_thinking)
    _check_columns(first, reading.columns, how.turn_fields, name)

    def entries(row: Mapping[str, Any]) -> tuple[list[Entry], str]:
        talk = read_conversation(row, reading.columns, how.turn_fields)
        found = [
            Entry((answer.prompt, answer.answer)) if answer.refusal is None else Entry(refusal=answer.refusal)
            for answer in writer.answers(talk)
        ]
        if not found:
            reason = "has no answer: no turn of the assistant"
            found = [Entry(refusal=BadRowError(reason, is_malformed=False))]
        unread = {name for name in talk.passed_on if not writer.names.reads(name)}
        used = talk.fields | (talk.passed_on - unread)
        others = [name for name, value in row.items() if name not in talk.columns and value is not None]
        return found, seen_as(talk.columns, others, used, talk.left_out | unread)

    def finish(prompt: Ids, answer: Ids, text: str) -> tuple[Ids, int, int, BadRowError | None]:
        prompt, answer = list(prompt), list(answer)
        ends = how.template == "chat" and text.endswith(END_OF_TURN)
        if answer[-1:] != [tokenizer.eos_token_id] and not ends:
            answer = [*answer, tokenizer.eos_token_id]
        tokens = len(prompt) + len(answer)
        if len(prompt) >= how.length:
            return [], 0, tokens, BadRowError(PROMPT_FILLS, is_malformed=False)
        ids = (prompt + answer)[: how.length]
        return ids, len(prompt), tokens - len(ids), None

    return entries, finish


def first_rows(source: sources.Source) -> list[Mapping[str, Any]]:
    """The first rows of a source, those that can be read."""
    found = []
    for raw in itertools.islice(iter(source.dataset), _LOOKED_AT):
        try:
            found.append(readers.unpacked(raw) if source.is_raw else raw)
        except BadRowError:
            continue
    return found


def _columns(rows: list[Mapping[str, Any]]) -> dict[str, bool]:
    """Every column of these rows, and whether it holds nothing but texts."""
    found: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            found[name] = found.get(name, True) and (value is None or isinstance(value, str))
    return found


def _check_columns(first: list[Mapping[str, Any]], columns: Columns, turn_fields: tuple[str, ...], name: str) -> None:
    """Refuse at once columns and fields that are named but not there, and rows of no format at all."""
    known = list(_columns(first))
    for wanted in columns.named:
        if known and wanted not in known:
            raise InputError(f"{name}: has no column {wanted!r} (it has {listed(known)})" + nearest(wanted, known))
    fields: set[str] = set()
    is_read = not known
    for row in first:
        try:
            talk = read_conversation(row, columns)
        except BadRowError as refusal:
            is_read = is_read or not isinstance(refusal, NoFormatError)
            continue
        is_read = True
        fields |= talk.fields | talk.passed_on
    if not is_read:
        raise InputError(f"{name}: columns {listed(known, room=120)} are no format for sft; it needs {FORMATS}")
    for wanted in turn_fields:
        if fields and wanted not in fields:
            raise InputError(
                f"{name}: no turn has the field {wanted!r} of dataset.turn_fields (they have "
                f"{listed(sorted(fields))})" + nearest(wanted, sorted(fields))
            )
