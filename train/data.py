"""From a dataset to numbered rows, and from the number of a step to its batch.

Text is tokenised once (Hugging Face `datasets`, cached on disk). Row numbers of every step follow from
(seed, step) alone, so a run that resumes needs to know nothing but its step to see the rows it would have seen.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from qwen3llada_jax.command_line import nearest
from qwen3llada_jax.errors import InputError
from train import conversations

_FORMAT = 1  # raise it when tokenised rows change, so that cached ones are made anew
_BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Rows:
    """Numbered rows of token ids.

    Attributes:
        values: all ids, one row after another.
        starts: [n + 1] where each row begins in `values`.
        prompt_lengths: [n] tokens of each row that are prompt.
        report: what was read, cut and dropped, in words.
    """

    values: Int[np.ndarray, " T"]
    starts: Int[np.ndarray, " n1"]
    prompt_lengths: Int[np.ndarray, " n"]
    report: str

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all that training sees of these rows."""
        digest = hashlib.sha256()
        for array, dtype in ((self.values, np.int32), (self.starts, np.int64), (self.prompt_lengths, np.int64)):
            digest.update(np.ascontiguousarray(array, dtype).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Batch:
    """Padded rows.

    Attributes:
        tokens: [B, L] ids, `pad_id` after a row's end.
        prompt_length: [B].
        real_length: [B] tokens before the padding.
        rows: [B] number of each row in the data.
    """

    tokens: Int[np.ndarray, "B L"]
    prompt_length: Int[np.ndarray, " B"]
    real_length: Int[np.ndarray, " B"]
    rows: Int[np.ndarray, " B"]


def load(name: str, config: str | None, split: str, *, split_key: str = "dataset.split") -> Any:
    """A split of a local file, a folder (of files, or from `save_to_disk`) or a hub dataset.

    Raises:
        InputError: nothing of that name, an unknown kind of file or split, or no rows.
    """
    import datasets

    datasets.disable_progress_bars()
    path = Path(name)
    try:
        if path.is_file():
            if path.suffix not in _BUILDERS:
                raise InputError(f"{name}: unknown kind of file; use {', '.join(_BUILDERS)}")
            options = {"sample_by": "document"} if path.suffix == ".txt" else {}
            # A single file has a single split, whatever it is called.
            dataset = datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train", **options)
        elif path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()):
            loaded = datasets.load_from_disk(str(path))
            dataset = _pick(name, loaded, split, split_key) if isinstance(loaded, datasets.DatasetDict) else loaded
        elif not path.exists() and (name.startswith((".", "/")) or path.suffix in _BUILDERS):
            raise InputError(f"{name}: no such file")
        else:
            dataset = _pick(name, datasets.load_dataset(name, config), split, split_key)
    except InputError:
        raise
    except Exception as error:  # the library raises its own zoo for unreadable files and unknown names
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(f"{name}: cannot be read as a dataset ({type(error).__name__}: {reason})") from error
    if len(dataset) == 0:
        raise InputError(f"{name}: the dataset is empty")
    return dataset


def has_splits(name: str | None) -> bool:
    """False for a single file or a saved single dataset, which `split` cannot choose from."""
    path = Path(name or "")
    return not path.is_file() and not (path / "dataset_info.json").is_file()


def _pick(name: str, loaded: Any, split: str, split_key: str) -> Any:
    if split not in loaded:
        raise InputError(f"{name}: has no split {split!r}; set {split_key} to one of {', '.join(loaded)}")
    return loaded[split]


def text_column(dataset: Any, wanted: str | None, name: str) -> str:
    """The column that holds the text: the one named, `text`, or the only one of strings.

    Raises:
        InputError: no such column, or several that could be meant.
    """
    columns = dataset.column_names
    if wanted is not None:
        if wanted not in columns:
            raise InputError(
                f"{name}: has no column {wanted!r} (it has {', '.join(columns)})" + nearest(wanted, columns)
            )
        return wanted
    if "text" in columns:
        return "text"
    strings = [c for c in columns if getattr(dataset.features[c], "dtype", None) in ("string", "large_string")]
    if len(strings) == 1:
        return strings[0]
    raise InputError(f"{name}: which column is the text? set dataset.text_field to one of {', '.join(columns)}")


def pretraining_rows(
    dataset: Any, tokenizer: Any, column: str, *, length: int, pack: bool, num_proc: int | None, name: str
) -> Rows:
    """Documents, each ended by EOS, joined and cut into rows of `length`; or, without `pack`, rows of their own.

    Raises:
        InputError: fewer tokens than one packed row.
    """

    def tokenise(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [text for text in batch[column] if text]
        return {"ids": [[*ids, tokenizer.eos_token_id] for ids in _encode(tokenizer, texts)]}

    ids, starts = _tokenised(dataset, tokenise, tokenizer, f"pretrain {column}", num_proc)
    documents = len(starts) - 1
    if pack:
        count = len(ids) // length
        if count == 0:
            raise InputError(
                f"{name}: holds only {len(ids)} tokens, less than one row of max_length {length}; lower it"
            )
        report = (
            f"{documents:,} documents, {count * length:,} tokens in {count:,} full rows, {len(ids) % length} left over"
        )
        return Rows(ids, np.arange(count + 1) * length, np.zeros(count, np.int64), report)
    cuts = np.concatenate([np.arange(a, b, length) for a, b in itertools.pairwise(starts)] + [starts[-1:]])
    report = f"{documents:,} documents, {len(ids):,} tokens in {len(cuts) - 1:,} padded rows"
    return Rows(ids, cuts, np.zeros(len(cuts) - 1, np.int64), report)


def sft_rows(dataset: Any, tokenizer: Any, *, length: int, num_proc: int | None, name: str) -> Rows:
    """One row for every answer of every conversation: its history as the prompt, then the answer and its end.

    An answer that does not fit is cut at its end; a prompt that leaves no room for an answer is dropped.

    Raises:
        InputError: columns that are no known format, or nothing left to train on.
    """
    read = conversations.reader(dataset.column_names, name)

    def tokenise(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {"ids": [], "prompt": [], "cut": []}
        for i in range(len(next(iter(batch.values())))):
            turns = read({column: values[i] for column, values in batch.items()})
            for prompt_text, answer_text in conversations.answers(turns, tokenizer):
                prompt, answer = _encode(tokenizer, [prompt_text, answer_text])
                if answer[-1:] != [tokenizer.eos_token_id] and not answer_text.endswith(conversations.END_OF_TURN):
                    answer.append(tokenizer.eos_token_id)
                row = (prompt + answer)[:length]
                dropped = len(prompt) >= length
                out["ids"].append([] if dropped else row)
                out["prompt"].append(len(prompt))
                out["cut"].append(-1 if dropped else len(prompt) + len(answer) - len(row))
        return out

    purpose = f"sft {length} {getattr(tokenizer, 'chat_template', None)}"
    ids, starts, prompts, cut = _tokenised(dataset, tokenise, tokenizer, purpose, num_proc, "prompt", "cut")
    kept = cut >= 0
    if not kept.any():
        raise InputError(
            f"{name}: no answer to train on: {len(cut)} found, {int((~kept).sum())} dropped because their prompt "
            f"fills max_length {length}"
        )
    report = (
        f"{int(kept.sum()):,} answers, {len(ids):,} tokens; {int((~kept).sum())} dropped (prompt fills the row), "
        f"{int((cut > 0).sum())} cut by {int(cut[cut > 0].sum())} tokens"
    )
    return Rows(ids, np.append(starts[:-1][kept], starts[-1]), prompts[kept], report)


def row_numbers(step: int, batch_size: int, count: int, seed: int) -> Int[np.ndarray, " B"]:
    """Which rows make up the batch of `step`: each epoch is a fresh permutation, batches run on across epochs."""
    slots = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = slots // count
    numbers = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        numbers[here] = _permutation(count, seed, int(epoch))[slots[here] % count]
    return numbers


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def make_batch(rows: Rows, numbers: Int[np.ndarray, " B"], pad_id: int, *, length: int) -> Batch:
    """Those rows, padded to the batch's longest (in quarters of `length`, so that few programs are compiled)."""
    sizes = np.minimum(rows.starts[numbers + 1] - rows.starts[numbers], length)
    quarter = -(-length // 4)
    padded = min(length, -(-int(sizes.max()) // quarter) * quarter)
    tokens = np.full((len(numbers), padded), pad_id, np.int32)
    for line, number, size in zip(tokens, numbers, sizes, strict=True):
        start = rows.starts[number]
        line[:size] = rows.values[start : start + size]
    return Batch(
        tokens, rows.prompt_lengths[numbers].astype(np.int32), sizes.astype(np.int32), numbers.astype(np.int32)
    )


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []


def _tokenised(
    dataset: Any, tokenise: Callable, tokenizer: Any, purpose: str, num_proc: int | None, *more: str
) -> tuple[np.ndarray, ...]:
    """(all ids, starts of documents, one array per further column), cached on disk by what made them."""
    import datasets

    columns = {"ids": datasets.List(datasets.Value("int32")), **dict.fromkeys(more, datasets.Value("int64"))}
    made_of = (
        str(_FORMAT),
        dataset._fingerprint,
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.eos_token_id),
        purpose,
    )
    fingerprint = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    mapped = dataset.map(
        tokenise,
        batched=True,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        features=datasets.Features(columns),
        new_fingerprint=fingerprint,
        desc="tokenising",
    )
    if len(mapped) == 0:
        return np.zeros(0, np.int32), np.zeros(1, np.int64), *(np.zeros(0, np.int64) for _ in more)
    lists = mapped.with_format("arrow")[:]["ids"].combine_chunks()
    starts = lists.offsets.to_numpy().astype(np.int64)
    ids = lists.values.to_numpy(zero_copy_only=False)[starts[0] : starts[-1]]
    return ids, starts - starts[0], *(np.asarray(mapped[column]) for column in more)
