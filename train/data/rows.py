"""From tokenized entries to the rows that are trained on: documents packed or cut, answers behind their prompts."""

import hashlib
import itertools
from typing import Any

import numpy as np

from qwen3llada_jax.errors import InputError

from . import sources
from .loader import Row, Rows, Tokens
from .token_cache import tokenized
from .tokenize import PROMPT_FILLS, Examples, Reading, TokenizeConfig


def rows_of(
    source: sources.Source, how: TokenizeConfig, tokenizer: Any, reading: Reading, *, num_proc: int | None
) -> Rows:
    """The rows of a whole dataset.

    pretrain: documents, each ended by EOS, joined and cut into rows of `length` (what is left over at the end is
    dropped); or, without `pack`, cut into rows of their own. sft: one row for every answer of every conversation, its
    history as the prompt; an answer that does not fit is cut at its end, a prompt that leaves no room is dropped.

    Raises:
        InputError: unknown columns, or nothing left to train on.
    """
    made = tokenized(source, how, tokenizer, reading, num_proc)
    account = made.account(source)
    kept, length, total = made.is_used, how.length, len(made.values)
    if not total:
        hint = "; raise training.max_length" if account.left_out.get(PROMPT_FILLS) else ""
        if any("chat template" in reason for reason in account.left_out):
            hint += "; dataset.template: plain uses none"
        raise InputError(f"{source.name}: nothing to train on: {account.refusal()}{hint}")
    said = [source.report, account.report]
    starts = made.starts[:-1][kept]
    if how.mode == "sft":
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
        digest = digest_of(made.digest, "sft")
        return Rows(made.values, starts, sizes, prompts, "\n".join(said), digest=digest)
    said.append(f"documents: {len(starts):,}, {total:,} tokens")
    digest = digest_of(made.digest, how.length, how.pack, how.boundaries)
    if not how.pack:
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
                starts if how.boundaries else None, digest)  # fmt: skip


def cut_rows(entry: Examples, how: TokenizeConfig, carry: list[list[int]]) -> tuple[list[Row], list[list[int]]]:
    """Rows of a few tokenized examples of a stream, and the tokens that fill no row yet (one list per document)."""
    documents = [np.asarray(ids, np.int32) for ids in entry["ids"]]
    if how.mode == "sft":
        return [Row(d, p) for d, p in zip(documents, entry["prompt"], strict=True) if len(d)], []
    if not how.pack:
        return [Row(d[i : i + how.length]) for d in documents for i in range(0, len(d), how.length)], []
    documents = [np.asarray(ids, np.int32) for ids in carry] + [d for d in documents if len(d)]
    ends = np.cumsum([len(d) for d in documents], dtype=np.int64)
    tokens = Tokens(documents)
    whole = len(tokens) // how.length * how.length
    rows = []
    for start in range(0, whole, how.length):
        end = start + how.length
        inside = ends[np.searchsorted(ends, start, "right") : np.searchsorted(ends, end)] - start
        rows.append(Row(tokens[start:end], 0, inside if how.boundaries else None))
    left = [d[max(0, len(d) - int(end - whole)) :] for d, end in zip(documents, ends, strict=True) if end > whole]
    return rows, [d.tolist() for d in left]


def digest_of(*parts: object) -> str:
    """Tells these values, as they are written, from any others."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
