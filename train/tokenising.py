"""From rows of data to rows of token ids: documents packed or cut, conversations as prompt and answer.

Whole datasets are tokenised once (Hugging Face `datasets`, cached on disk by what made them); a stream uses the same
functions on a few rows at a time.
"""

import hashlib
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from qwen3llada_jax import readers
from qwen3llada_jax.chat_template import ChatWriter
from qwen3llada_jax.command_line import nearest
from qwen3llada_jax.conversations import FORMATS, Columns, read_conversation
from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.files import write_text
from qwen3llada_jax.jsonl import BadRowError, NoFormatError, check_text, kind_of, shortened
from qwen3llada_jax.text_ends import END_OF_TURN
from train import sources
from train.account import Account, seen_as
from train.data import Row, Rows, Tokens

_FORMAT = 4  # raise it when tokenised texts change, so that cached ones are made anew
_LOOKED_AT = 1000  # rows that are looked at to find the columns
PROMPT_FILLS = "its prompt leaves no room for an answer"

Examples = dict[str, list[Any]]  # column → values
# (rows, each with the number it has) → one entry per document or answer, of the columns of `FEATURES`
Tokenise = Callable[[Sequence[Mapping[str, Any]], Sequence[int]], Examples]
# `row` is the number of the entry's row, `cut` how many tokens were cut off at its end, or are lost with it where it
# is left out; `why` it is (empty: it is used), with `detail`; `seen` of a row's first entry: its columns and fields.
FEATURES = {"prompt": "int64", "cut": "int64", "row": "int64", "why": "string", "detail": "string", "seen": "string"}


@dataclass(frozen=True)
class Recipe:
    """What rows depend on besides texts and tokenizer.

    Attributes:
        mode: pretrain or sft.
        length: tokens of a row at most.
        pack: pretrain: join documents into full rows; else each gets rows of its own.
        divide: tell where documents begin in packed rows.
        template: sft: chat or plain.
        enable_thinking: sft: answers begin with their reasoning.
        turn_fields: sft: of each turn, beside who speaks and what, only these are used; empty: all.
        on_bad_row: skip (leave it out, and count it) or stop.
    """

    mode: str
    length: int
    pack: bool = True
    divide: bool = False
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
    return rows if is_raw else [{name: readers.from_column(value) for name, value in row.items()} for row in rows]


def tokeniser(recipe: Recipe, tokenizer: Any, source: sources.Source, reading: Reading) -> Tokenise:
    """How to tokenise rows of this source.

    Raises:
        InputError: columns that are not there, or of no known format; when called, and bad rows are to stop the run, a
            bad row.
    """
    first = _first_rows(source)
    if recipe.mode == "sft":
        entries, finish = _answers(recipe, tokenizer, reading, first, source.name)
    else:
        column = reading.text_field or "text"  # where no row can be read, its refusal says more
        if first:
            column = sources.text_column(_columns(first), reading.text_field, source.name)
        entries, finish = _documents(tokenizer, column)

    def tokenise(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> Examples:
        found: list[tuple[int, Entry, str]] = []  # of which row, and what was seen in it
        for raw, number in zip(rows, numbers, strict=True):
            try:
                row = readers.unpacked(raw) if source.is_raw else raw
                of_row, seen = entries(row)
            except BadRowError as error:
                of_row, seen = [Entry(refusal=error)], ""
            found += [(number, entry, seen if i == 0 else "") for i, entry in enumerate(of_row)]
            bad = next((e.refusal for e in of_row if e.refusal is not None and e.refusal.is_malformed), None)
            if bad is not None and recipe.on_bad_row == "stop":
                where = f"{raw['file']}:{raw['line']}" if source.is_raw else f"{source.name}: row {number}"
                raise InputError(f"{where}: {bad.in_full}; mend the row, or set dataset.on_bad_row: skip")
        texts = [text for _, entry, _ in found for text in entry.texts]
        encoded = iter(tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else [])
        out: Examples = {name: [] for name in ("ids", *FEATURES)}
        for number, entry, seen in found:
            ids: list[int] = []
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

    return tokenise


class Entry(NamedTuple):
    """The texts of a document, or of a prompt and its answer; or why it is left out."""

    texts: tuple[str, ...] = ()
    refusal: BadRowError | None = None


Entries = Callable[[Mapping[str, Any]], tuple[list[Entry], str]]  # what is in a row, and what was seen in it
# (ids of each text, the last text) → (ids, tokens of the prompt, tokens cut off or lost, why it is left out)
Finish = Callable[..., tuple[list[int], int, int, BadRowError | None]]


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

    def finish(ids: list[int], _: str) -> tuple[list[int], int, int, None]:
        return [*ids, tokenizer.eos_token_id], 0, 0, None

    return entries, finish


def _answers(
    recipe: Recipe, tokenizer: Any, reading: Reading, first: list[Mapping[str, Any]], name: str
) -> tuple[Entries, Finish]:
    writer = ChatWriter(tokenizer, recipe.template, recipe.enable_thinking)
    _check_columns(first, reading.columns, recipe.turn_fields, name)

    def entries(row: Mapping[str, Any]) -> tuple[list[Entry], str]:
        talk = read_conversation(row, reading.columns, recipe.turn_fields)
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

    def finish(prompt: list[int], answer: list[int], text: str) -> tuple[list[int], int, int, BadRowError | None]:
        ends = recipe.template == "chat" and text.endswith(END_OF_TURN)
        if answer[-1:] != [tokenizer.eos_token_id] and not ends:
            answer = [*answer, tokenizer.eos_token_id]
        tokens = len(prompt) + len(answer)
        if len(prompt) >= recipe.length:
            return [], 0, tokens, BadRowError(PROMPT_FILLS, is_malformed=False)
        ids = (prompt + answer)[: recipe.length]
        return ids, len(prompt), tokens - len(ids), None

    return entries, finish


def _first_rows(source: sources.Source) -> list[Mapping[str, Any]]:
    """The first rows, those that can be read."""
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


def rows_of(source: sources.Source, recipe: Recipe, tokenizer: Any, reading: Reading, *, num_proc: int | None) -> Rows:
    """The rows of a whole dataset.

    pretrain: documents, each ended by EOS, joined and cut into rows of `length` (what is left over at the end is
    dropped); or, without `pack`, cut into rows of their own. sft: one row for every answer of every conversation, its
    history as the prompt; an answer that does not fit is cut at its end, a prompt that leaves no room is dropped.

    Raises:
        InputError: unknown columns, or nothing left to train on.
    """
    made = _tokenised(source, recipe, tokenizer, reading, num_proc)
    account = made.account(source)
    kept, length, total = made.is_used, recipe.length, len(made.values)
    if not total:
        hint = "; raise training.max_length" if account.left_out.get(PROMPT_FILLS) else ""
        raise InputError(f"{source.name}: nothing to train on: {account.refusal()}{hint}")
    said = [source.report, account.report]
    starts = made.starts[:-1][kept]
    if recipe.mode == "sft":
        sizes, prompts = np.diff(made.starts)[kept], made.prompts[kept]
        cut = made.cut[kept]
        learned = int(sizes.sum() - prompts.sum())
        said.append(
            f"answers: {len(sizes):,}, {learned:,} tokens, after {int(prompts.sum()):,} of prompts"
            + (f"; {int((cut > 0).sum()):,} cut by {int(cut.sum()):,} tokens" if cut.any() else "")
        )
        lost = int(made.cut[~kept].sum())
        if lost:
            said.append(f"tokens lost with prompts that leave no room: {lost:,}")
        digest = _digest(made.digest, "sft")
        return Rows(made.values, starts, sizes, prompts, "\n".join(said), digest=digest)
    said.append(f"documents: {len(starts):,}, {total:,} tokens")
    digest = _digest(made.digest, recipe.length, recipe.pack, recipe.divide)
    if not recipe.pack:
        cuts = np.concatenate([np.arange(a, b, length) for a, b in itertools.pairwise([*starts, total])])
        said[-1] += f" in {len(cuts):,} padded rows"
        none = np.zeros(len(cuts), np.int64)
        return Rows(made.values, cuts, np.diff(np.append(cuts, total)), none, "\n".join(said), digest=digest)
    count = total // length
    if count == 0:
        raise InputError(
            f"{source.name}: holds only {total} tokens, less than one row of max_length {length}; lower it"
        )
    said[-1] += f"; {count * length:,} in {count:,} full rows, {total % length:,} left over"
    begins = np.arange(count, dtype=np.int64) * length
    return Rows(made.values, begins, np.full(count, length), np.zeros(count, np.int64), "\n".join(said),
                starts if recipe.divide else None, digest)  # fmt: skip


def cut_rows(entry: Examples, recipe: Recipe, carry: list[list[int]]) -> tuple[list[Row], list[list[int]]]:
    """Rows of a few tokenised examples of a stream, and the tokens that fill no row yet (one list per document)."""
    documents = [np.asarray(ids, np.int32) for ids in entry["ids"]]
    if recipe.mode == "sft":
        return [Row(d, p) for d, p in zip(documents, entry["prompt"], strict=True) if len(d)], []
    if not recipe.pack:
        return [Row(d[i : i + recipe.length]) for d in documents for i in range(0, len(d), recipe.length)], []
    documents = [np.asarray(ids, np.int32) for ids in carry] + [d for d in documents if len(d)]
    ends = np.cumsum([len(d) for d in documents], dtype=np.int64)
    tokens = Tokens(documents)
    whole = len(tokens) // recipe.length * recipe.length
    rows = []
    for start in range(0, whole, recipe.length):
        end = start + recipe.length
        inside = ends[np.searchsorted(ends, start, "right") : np.searchsorted(ends, end)] - start
        rows.append(Row(tokens[start:end], 0, inside if recipe.divide else None))
    left = [d[max(0, len(d) - int(end - whole)) :] for d, end in zip(documents, ends, strict=True) if end > whole]
    return rows, [d.tolist() for d in left]


def tokenizer_tag(tokenizer: Any) -> str:
    """Tells a tokenizer from any that would give other ids."""
    return f"{tokenizer.backend_tokenizer.to_str()}\0{tokenizer.eos_token_id}"


@dataclass(frozen=True)
class _Tokenised:
    """All entries of a dataset, and their ids one after another."""

    values: Tokens
    starts: Int[np.ndarray, " n+1"]
    prompts: Int[np.ndarray, " n"]
    cut: Int[np.ndarray, " n"]
    is_used: np.ndarray
    table: Any
    digest: str

    def account(self, source: sources.Source) -> Account:
        """What became of the rows."""
        import pyarrow.compute as pc

        account = Account()
        for seen in pc.value_counts(self.table["seen"]).to_pylist():
            if seen["values"]:
                account.count_seen(seen["values"], seen["counts"])
        numbers = self.table["row"].to_numpy()
        lost = np.flatnonzero(~self.is_used)
        touched = np.unique(numbers[lost])
        # Of rows without any fault only the number is needed.
        account.rows = account.used = len(np.unique(numbers)) - len(touched)
        found = self.table.select(["row", "why", "detail"]).take(np.flatnonzero(np.isin(numbers, touched)))
        picked = (entry for part in found.to_batches(max_chunksize=4096) for entry in part.to_pylist())
        for number, of_row in itertools.groupby(picked, lambda entry: entry["row"]):
            account.count_row([(entry["why"], entry["detail"]) for entry in of_row], partial(source.where, number))
        return account


def _tokenised(
    source: sources.Source, recipe: Recipe, tokenizer: Any, reading: Reading, num_proc: int | None
) -> _Tokenised:
    """All entries of a dataset, from the cache where the same have been made before."""
    import datasets
    import pyarrow.compute as pc

    dataset = source.dataset
    tokenise = tokeniser(recipe, tokenizer, source, reading)
    features = {"ids": datasets.List(datasets.Value("int32"))}
    features |= {name: datasets.Value(kind) for name, kind in FEATURES.items()}
    # Packing and boundaries come after tokenising.
    purpose: tuple[Any, ...] = (recipe.mode, reading, recipe.on_bad_row)
    if recipe.mode == "sft":
        template = getattr(tokenizer, "chat_template", None)
        purpose += (recipe.length, recipe.template, recipe.enable_thinking, recipe.turn_fields, template)
    made_of = (str(_FORMAT), source.cache_key, tokenizer_tag(tokenizer), *map(str, purpose))
    fingerprint = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    # A place of our own, since a folder from `save_to_disk` may be read-only.
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "qwen3llada"
    is_raw = source.is_raw

    def of_batch(batch: Examples, numbers: list[int]) -> Examples:
        return tokenise(rows_in(batch, is_raw), numbers)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # The workers only tokenise: they never touch the threads of JAX that a fork leaves behind.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            mapped = dataset.map(
                of_batch,
                batched=True,
                with_indices=True,
                remove_columns=dataset.column_names,
                num_proc=num_proc,
                features=datasets.Features(features),
                cache_file_name=str(folder / f"{fingerprint}.arrow"),
                new_fingerprint=fingerprint,
                desc="tokenising",
            )
        lists = mapped.data["ids"].chunks
        pieces = [chunk.flatten().to_numpy() for chunk in lists]
        sizes = [np.diff(chunk.offsets.to_numpy()) for chunk in lists]
        starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]), dtype=np.int64)
        prompts = mapped.data["prompt"].to_numpy()
        is_used = pc.equal(mapped.data["why"], "").to_numpy()
        remembered = folder / f"{fingerprint}.sha256"  # hashing 100 B tokens takes minutes, so it is done once
        if not remembered.is_file():
            write_text(remembered, _digest_of(pieces, np.diff(starts)[is_used], prompts[is_used]))
        digest = remembered.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"{folder}: tokenised text cannot be written there ({error}); set HF_HOME") from error
    cut = mapped.data["cut"].to_numpy()
    return _Tokenised(Tokens(pieces), starts, prompts, cut, is_used, mapped.data.table, digest)


def _digest_of(pieces: list[np.ndarray], sizes: np.ndarray, prompts: np.ndarray) -> str:
    """Of all that training sees of entries: ids, where each ends, and how much of it is prompt."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece, np.int32).data)
    for array in (sizes, prompts):
        digest.update(np.ascontiguousarray(array, np.int64).data)
    return digest.hexdigest()


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
