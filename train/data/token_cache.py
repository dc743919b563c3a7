"""A whole dataset tokenized once (Hugging Face `datasets`), and kept on disk under what made it."""

import hashlib
import itertools
import json
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import write_text

from . import sources
from .account import Account
from .loader import Tokens, span_of
from .tokenize import FEATURES, Examples, Reading, TokenizeConfig, first_rows, rows_in, tokenize_with

_ABANDONED = 24 * 3600  # seconds that nobody has written to a half-written file
_FORMAT = 4  # raise it when tokenized texts change, so that cached ones are made anew


def tokenizer_tag(tokenizer: Any) -> str:
    """Tells a tokenizer from any that would give other ids."""
    return f"{tokenizer.backend_tokenizer.to_str()}\0{tokenizer.eos_token_id}"


@dataclass(frozen=True)
class Tokenized:
    """All entries of a dataset, and their ids one after another."""

    values: Tokens
    starts: Int[np.ndarray, " n+1"]
    prompts: Int[np.ndarray, " n"]
    cut: Int[np.ndarray, " n"]
    is_used: Bool[np.ndarray, " n"]
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


def tokenized(
    source: sources.Source, how: TokenizeConfig, tokenizer: Any, reading: Reading, num_proc: int | None
) -> Tokenized:
    """All entries of a dataset, from the cache where the same have been made before."""
    import datasets
    import pyarrow.compute as pc

    dataset = source.dataset
    tokenize = tokenize_with(how, tokenizer, source, reading, first_rows(source))
    features = {"ids": datasets.List(datasets.Value("int32"))}
    features |= {name: datasets.Value(kind) for name, kind in FEATURES.items()}
    # Packing and boundaries come after tokenizing.
    purpose: tuple[Any, ...] = (how.mode, reading, how.on_bad_row)
    if how.mode == "sft":
        template = getattr(tokenizer, "chat_template", None)
        purpose += (how.length, how.template, how.enable_thinking, how.turn_fields, template)
    made_of = (str(_FORMAT), source.cache_key, tokenizer_tag(tokenizer), *map(str, purpose))
    fingerprint = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    # A place of our own, since a folder from `save_to_disk` may be read-only.
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "qwen3llada"
    is_raw = source.is_raw

    def of_batch(batch: Examples, numbers: list[int]) -> Examples:
        return tokenize(rows_in(batch, is_raw), numbers)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_abandoned(folder)
        with warnings.catch_warnings():
            # The workers only tokenize: they never touch the threads of JAX that a fork leaves behind.
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
                desc="tokenizing",
            )
        lists = mapped.data["ids"].chunks
        pieces = [chunk.flatten().to_numpy() for chunk in lists]
        sizes = [np.diff(chunk.offsets.to_numpy()) for chunk in lists]
        starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]), dtype=np.int64)
        prompts = mapped.data["prompt"].to_numpy()
        is_used = pc.equal(mapped.data["why"], "").to_numpy()
        told = folder / f"{fingerprint}.json"  # to read 100 B tokens takes minutes, so it is done once
        if not told.is_file():
            digest = digest_of(pieces, np.diff(starts)[is_used], prompts[is_used])
            write_text(told, json.dumps({"digest": digest, "span": span_of(pieces)}))
        of_all = json.loads(told.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{folder}: tokenized text cannot be written there ({error}); set HF_HOME") from error
    cut = mapped.data["cut"].to_numpy()
    values = Tokens(pieces, tuple(of_all["span"]))
    return Tokenized(values, starts, prompts, cut, is_used, mapped.data.table, of_all["digest"])


def clear_abandoned(folder: Path) -> None:
    """Remove what a killed run left half-written: nobody takes it, it may be large, and the library lets it lie."""
    for path in folder.glob("tmp*"):
        with suppress(FileNotFoundError):  # its writer, or another run, was quicker
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def digest_of(pieces: list[np.ndarray], sizes: np.ndarray, prompts: np.ndarray) -> str:
    """Of all that training sees of entries: ids, where each ends, and how much of it is prompt."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece, np.int32).data)
    for array in (sizes, prompts):
        digest.update(np.ascontiguousarray(array, np.int64).data)
    return digest.hexdigest()
