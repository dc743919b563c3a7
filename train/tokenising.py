"""From texts to rows of token ids: documents packed or cut, conversations as prompt and answer.

Whole datasets are tokenised once (Hugging Face `datasets`, cached on disk by what made them); a stream uses the same
functions on a few examples at a time.
"""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from qwen3llada_jax.errors import InputError
from train import conversations, sources
from train.data import Row, Rows, Tokens

_FORMAT = 3  # raise it when tokenised texts change, so that cached ones are made anew

Examples = dict[str, list[Any]]  # column → values
Tokenise = Callable[[Examples], Examples]  # → {"ids", "prompt", "cut"}, one entry per document or answer


@dataclass(frozen=True)
class Recipe:
    """What rows depend on besides texts and tokenizer.

    Attributes:
        mode: pretrain or sft.
        length: tokens of a row at most.
        pack: pretrain: join documents into full rows; else each gets rows of its own.
        divide: tell where documents begin in packed rows.
        template: sft: chat or plain.
    """

    mode: str
    length: int
    pack: bool = True
    divide: bool = False
    template: str = "chat"


def tokeniser(recipe: Recipe, tokenizer: Any, columns: dict[str, bool], text_field: str | None, name: str) -> Tokenise:
    """How to tokenise examples with these columns. `prompt` counts an entry's prompt tokens, `cut` those cut off at
    its end; entries with a negative `cut` have no ids and are dropped: -1, there is no text, or no answer; -n, a
    prompt left no room for its answer, n tokens together.

    Raises:
        InputError: columns that are no known format, here; examples that do not keep to it, when called.
    """
    if recipe.mode == "sft":
        return _conversations(recipe, tokenizer, list(columns), name)
    column = sources.text_column(columns, text_field, name)

    def tokenise(batch: Examples) -> Examples:
        texts = batch[column]
        odd = next((text for text in texts if text is not None and not isinstance(text, str)), None)
        if odd is not None:
            raise InputError(f"{name}: column {column} must hold texts, not {str(odd)[:80]!r}")
        found = iter(_encode(tokenizer, [text for text in texts if text]))
        ids = [[*next(found), tokenizer.eos_token_id] if text else [] for text in texts]
        return {"ids": ids, "prompt": [0] * len(ids), "cut": [0 if text else -1 for text in texts]}

    return tokenise


def _conversations(recipe: Recipe, tokenizer: Any, columns: list[str], name: str) -> Tokenise:
    read = conversations.reader(columns, name)

    def tokenise(batch: Examples) -> Examples:
        out: Examples = {"ids": [], "prompt": [], "cut": []}
        for i in range(len(next(iter(batch.values())))):
            turns = read({column: values[i] for column, values in batch.items()})
            found = len(out["cut"])
            for prompt_text, answer_text in conversations.answers(turns, tokenizer, recipe.template):
                prompt, answer = _encode(tokenizer, [prompt_text, answer_text])
                ends = recipe.template == "chat" and answer_text.endswith(conversations.END_OF_TURN)
                if answer[-1:] != [tokenizer.eos_token_id] and not ends:
                    answer.append(tokenizer.eos_token_id)
                row = (prompt + answer)[: recipe.length]
                is_dropped = len(prompt) >= recipe.length
                out["ids"].append([] if is_dropped else row)
                out["prompt"].append(len(prompt))
                tokens = len(prompt) + len(answer)
                out["cut"].append(-tokens if is_dropped else tokens - len(row))
            if len(out["cut"]) == found:
                for key, nothing in (("ids", []), ("prompt", 0), ("cut", -1)):
                    out[key].append(nothing)
        return out

    return tokenise


def rows_of(
    dataset: Any, recipe: Recipe, tokenizer: Any, *, text_field: str | None, num_proc: int | None, name: str
) -> Rows:
    """The rows of a whole dataset.

    pretrain: documents, each ended by EOS, joined and cut into rows of `length` (what is left over at the end is
    dropped); or, without `pack`, cut into rows of their own. sft: one row for every answer of every conversation, its
    history as the prompt; an answer that does not fit is cut at its end, a prompt that leaves no room is dropped.

    Raises:
        InputError: unknown columns, or nothing left to train on.
    """
    columns = sources.columns_of(dataset)
    tokenise = tokeniser(recipe, tokenizer, columns, text_field, name)
    purpose = "sft {} {} {}".format(recipe.length, recipe.template, getattr(tokenizer, "chat_template", None))
    if recipe.mode == "pretrain":
        purpose = f"pretrain {sources.text_column(columns, text_field, name)}"
    values, starts, prompts, cut = _tokenised(dataset, tokenise, tokenizer, purpose, num_proc)
    kept, length, total = cut >= 0, recipe.length, len(values)
    lost = losses(cut)
    none = lost["without text"]
    if recipe.mode == "sft":
        if none == len(cut):
            raise InputError(f"{name}: no answer to train on: no assistant's text that follows another turn")
        if not kept.any():
            raise InputError(
                f"{name}: no answer to train on: {len(cut) - none} found, {lost['dropped']} dropped because their "
                f"prompt fills max_length {length}; raise it"
            )
        report = (
            f"{int(kept.sum()):,} answers, {total:,} tokens; "
            + (f"{none:,} conversations without an answer, " if none else "")
            + f"{lost['dropped']:,} dropped (prompt fills the row; {lost['dropped tokens']:,} tokens), "
            f"{lost['cut']:,} cut by {lost['cut tokens']:,} tokens"
        )
        return Rows(values, starts[:-1][kept], np.diff(starts)[kept], prompts[kept], report)
    begins = starts[:-1][kept]
    if not total:
        raise InputError(f"{name}: holds no text")
    said = f"{len(begins):,} documents" + (f" ({none:,} empty ones dropped)" if none else "")
    if not recipe.pack:
        cuts = np.concatenate([np.arange(a, b, length) for a, b in itertools.pairwise([*begins, total])])
        report = f"{said}, {total:,} tokens in {len(cuts):,} padded rows"
        return Rows(values, cuts, np.diff(np.append(cuts, total)), np.zeros(len(cuts), np.int64), report)
    count = total // length
    if count == 0:
        raise InputError(f"{name}: holds only {total} tokens, less than one row of max_length {length}; lower it")
    report = f"{said}, {count * length:,} tokens in {count:,} full rows, {total % length:,} left over"
    documents = begins if recipe.divide else None
    starts = np.arange(count, dtype=np.int64) * length
    return Rows(values, starts, np.full(count, length), np.zeros(count, np.int64), report, documents)


def losses(cut: Int[np.ndarray, " n"]) -> dict[str, int]:
    """How many entries and tokens were left out, by the `cut` of a tokeniser (see `tokeniser`)."""
    dropped, shortened = cut[cut < -1], cut[cut > 0]
    return {
        "without text": int((cut == -1).sum()),
        "dropped": len(dropped),
        "dropped tokens": -int(dropped.sum()),
        "cut": len(shortened),
        "cut tokens": int(shortened.sum()),
    }


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


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []


def _tokenised(
    dataset: Any, tokenise: Tokenise, tokenizer: Any, purpose: str, num_proc: int | None
) -> tuple[Tokens, np.ndarray, np.ndarray, np.ndarray]:
    """(all ids, [n + 1] starts, [n] prompt, [n] cut), from the cache where the same has been made before."""
    import datasets

    features = {"ids": datasets.List(datasets.Value("int32"))}
    features |= dict.fromkeys(("prompt", "cut"), datasets.Value("int64"))
    made_of = (str(_FORMAT), dataset._fingerprint, tokenizer_tag(tokenizer), purpose)
    fingerprint = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    # A place of our own, since a folder from `save_to_disk` may be read-only.
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "qwen3llada"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mapped = dataset.map(
            tokenise,
            batched=True,
            remove_columns=dataset.column_names,
            num_proc=num_proc,
            features=datasets.Features(features),
            cache_file_name=str(folder / f"{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            desc="tokenising",
        )
    except OSError as error:
        raise InputError(f"{folder}: tokenised text cannot be written there ({error}); set HF_HOME") from error
    lists = mapped.data["ids"].chunks if len(mapped) else []
    pieces = [chunk.flatten().to_numpy() for chunk in lists]
    sizes = [np.diff(chunk.offsets.to_numpy()) for chunk in lists]
    starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]), dtype=np.int64)
    prompts, cut = (mapped.data[c].to_numpy() if len(mapped) else np.zeros(0, np.int64) for c in ("prompt", "cut"))
    return Tokens(pieces), starts, prompts, cut
