"""The batches of a run, from what its configuration says of data; whole datasets and streams behind one face:

take(step) → Batch · state(step), to_save(state) → JSON for the checkpoint · restore(saved, step) · fingerprint · report
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model import model
from qwen3llada_jax.text.conversations import Columns

from ..config.schema import Config, DatasetConfig, SourceConfig
from . import loader, shuffle, sources
from .rows import digest_of, rows_of
from .streams.batches import StreamedBatches
from .streams.rows import Stream, StreamedRows
from .token_cache import tokenizer_tag
from .tokenize import Reading, TokenizeConfig, first_rows

_LOOKED_AT = 1000  # batches that the share of padding is computed over
_SHUFFLE_BUFFER = 1024


@dataclass(frozen=True)
class IndexedBatches:
    """Batches of numbered rows: a function of the step alone, so there is no state.

    Attributes:
        parts: the rows of each dataset.
        weights: how often each is drawn, in any unit.
        host_rows: rows of a batch that this host assembles; None: all.
        pads_answers: the EOS up to a batch's longest row belong to its answers.
    """

    parts: Sequence[loader.Rows]
    weights: tuple[float, ...]
    batch_size: int
    seed: int
    pad_id: int
    length: int
    host_rows: Int[np.ndarray, " b"] | None = None
    pads_answers: bool = False

    def __post_init__(self) -> None:
        shuffle.shares(self.weights)  # refuses impossible ones now

    @functools.cached_property
    def _rows(self) -> loader.Rows:
        return loader.join(self.parts)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of all datasets together."""
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """A digest of all rows and how they are mixed: a run goes on only with the data it began with."""
        return digest_of(self._rows.fingerprint, self.weights, [len(part) for part in self.parts])

    @property
    def report(self) -> str:
        """What was read, cut, left out and mixed, and how batches are filled (of the first epoch's), in words."""
        steps = np.arange(max(1, min(_LOOKED_AT, self.rows_per_epoch // self.batch_size)))
        numbers = self._numbers(np.arange(len(steps) * self.batch_size))
        sizes = np.minimum(self._rows.sizes[numbers], self.length).reshape(len(steps), self.batch_size)
        prompts = self._rows.prompt_lengths[numbers].reshape(sizes.shape)
        lengths, filled = loader.padded_length(sizes, self.length), int(sizes.sum())
        total = int(lengths.sum()) * self.batch_size
        said = [self._rows.report]
        if len(self.weights) > 1:
            said.append(f"drawn {', '.join(f'{share / shuffle.PERIOD:.2%}' for share in shuffle.shares(self.weights))}")
        shares = ", ".join(f"{size} ({(lengths == size).mean():.0%})" for size in np.unique(lengths))
        said.append(f"batches of {self.batch_size} rows, of length {shares}; {1 - filled / total:.1%} padding")
        learned = filled - int(prompts.sum())
        if self.pads_answers:
            ends = int((sizes.max(axis=-1, keepdims=True) - sizes).sum())
            said.append(
                f"trained on: {learned / len(steps):,.0f} tokens an update and {ends / len(steps):,.0f} EOS that pad "
                f"answers to their batch's longest row ({ends / max(1, learned + ends):.0%})"
            )
        else:
            said.append(f"trained on: {learned / len(steps):,.0f} tokens an update")
        return "\n".join(said)

    def take(self, step: int) -> loader.Batch:
        """The batch of update `step` (the first is 0)."""
        numbers = self._numbers(np.arange(step * self.batch_size, (step + 1) * self.batch_size))
        return loader.make_batch(
            self._rows,
            numbers,
            self.pad_id,
            length=self.length,
            host_rows=self.host_rows,
            pads_answers=self.pads_answers,
        )

    def state(self, step: int) -> dict[str, Any]:
        """Nothing: the step is enough."""
        return {}

    def to_save(self, state: dict[str, Any]) -> dict[str, Any]:
        """The same."""
        return state

    def restore(self, state: dict[str, Any] | None, step: int) -> str | None:
        """Nothing to do, and nothing to tell."""
        return None

    def counts(self) -> str:
        """Nothing more than `report` said."""
        return ""

    def _numbers(self, row_ids: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        source, place = shuffle.mixture_schedule(row_ids, self.weights, self.seed)
        numbers = np.empty(len(row_ids), np.int64)
        for i, part in enumerate(self.parts):
            here = source == i
            first = sum(map(len, self.parts[:i]))
            numbers[here] = first + shuffle.row_numbers(place[here], len(part), self.seed, i)
        return numbers


Batches = IndexedBatches | StreamedBatches


def training_batches(
    config: Config, tokenizer: Any, vocab_size: int, host_rows: Int[np.ndarray, " b"] | None = None, lanes: int = 1
) -> Batches:
    """The batches to train on.

    Args:
        vocab_size: rows of the model's embedding, which ids must keep to.
        host_rows: rows of a batch that this host needs (`shuffle.host_rows`); None: all.
        lanes: that the rows of a batch fall into, each for other hosts (`shuffle.lanes_of`).

    Raises:
        InputError: data that is not there, cannot be read, or leaves nothing to train on.
    """
    d, t = config.dataset, config.training
    _check_config_used(d)
    weights = tuple(part.weight for part in d.sources)
    common: dict[str, Any] = {
        "batch_size": t.batch_size,
        "seed": config.project.seed,
        "pad_id": tokenizer.eos_token_id,
        "length": t.max_length,
        "pads_answers": config.pads_answers,
    }
    if d.streaming:
        opened = [_stream(config, tokenizer, part) for part in d.sources]
        made_by = [tokenizer_tag(tokenizer), getattr(tokenizer, "chat_template", None), tokenize_config_of(config)]
        readings = [_reading(part) for part in d.sources]
        by_all = lanes > 1 and not config.is_packed
        return StreamedBatches(
            opened,
            weights,
            lanes=1 if by_all else lanes,
            host_rows=host_rows,
            told="every host reads all of it: how long a batch is its longest row says" if by_all else "",
            shuffle_buffer=_SHUFFLE_BUFFER if d.shuffle_buffer is None else d.shuffle_buffer,
            vocab_size=vocab_size,
            fingerprint=digest_of(*made_by, weights, readings, [stream.source.identity for stream in opened]),
            **common,
        )
    parts = [_rows(config, tokenizer, vocab_size, part) for part in d.sources]
    return IndexedBatches(parts, weights, host_rows=host_rows, **common)


def check_eval_rows(config: Config) -> None:
    """Refuse, before anything is read, a configuration that holds nothing out.

    Raises:
        InputError: naming what to set.
    """
    d, e = config.dataset, config.evaluation
    is_divided = not d.mixture and (sources.has_splits(d.name) or sources.is_part(e.eval_split))
    if e.eval_name is None and not is_divided:
        name = "dataset.mixture" if d.mixture else d.name
        hint = "" if d.mixture else "divide it (dataset.split: train[:90%] and evaluation.eval_split: train[90%:]), "
        raise InputError(
            f"{name} has no splits, so nothing is held out: {hint}set evaluation.eval_name, or "
            "evaluation.do_eval_loss: false"
        )


def load_eval_rows(config: Config, tokenizer: Any, vocab_size: int) -> loader.Rows:
    """The rows of the held-out loss: all of `eval_split`, or as many as are used where the training data is streamed.

    Raises:
        InputError: nothing is held out, or as in `training_batches`.
    """
    check_eval_rows(config)
    d, e = config.dataset, config.evaluation
    part = SourceConfig(e.eval_name or d.name, 1.0, d.config, e.eval_split, d.text_field, d.columns)
    if not d.streaming:
        rows = _rows(config, tokenizer, vocab_size, part, "evaluation.eval_split")
        update = config.training.batch_size
        used = min(len(rows) // update, e.eval_max_batches) * update
        said = f"evaluated: the first {used:,} of them" if used else f"evaluated: all, some again to fill {update} rows"
        return dataclasses.replace(rows, report=f"{rows.report}\n{said}")
    stream = _stream(config, tokenizer, part, "evaluation.eval_split")
    found = stream.rows().first(e.eval_max_batches * config.training.batch_size)
    rows = loader.collect(found, f"{stream.source.report}, the first {len(found):,} rows", stream.source)
    model.check_tokens(np.array(rows.values.span()), vocab_size)
    return rows


def trained_on_too(config: Config, batches: Batches, eval_rows: loader.Rows) -> str | None:
    """A warning where held-out rows are also trained on; None: they are not."""
    d, e = config.dataset, config.evaluation
    parts: Sequence[loader.Rows | StreamedRows] = batches.parts
    for part, rows in zip(d.sources, parts, strict=True):
        assert rows.source is not None
        assert eval_rows.source is not None
        if sources.shares_rows(rows.source, eval_rows.source):
            name = f"{e.eval_name or d.name} {e.eval_split}"
            return f"held-out rows are trained on too: {name} shares rows with {part.name} {part.split}"
    return None


def _check_config_used(d: DatasetConfig) -> None:
    """Refuse a configuration (a hub dataset's) for what has none."""
    for i, part in enumerate(d.mixture):
        if part.config is not None and not sources.takes_config(part.name or ""):
            raise InputError(f"dataset.mixture[{i}].config has no effect on {part.name}, which has no configurations")
    names = [part.name or "" for part in d.sources]
    if d.config is not None and not any(map(sources.takes_config, names)):
        raise InputError(f"dataset.config has no effect on {names[0]}, which has no configurations; leave it out")


def lengths_of(config: Config) -> list[int]:
    """All lengths that batches of this run may have, ascending."""
    length = config.training.max_length
    return [length] if config.is_packed else loader.buckets(length)


def tokenize_config_of(config: Config) -> TokenizeConfig:
    """How texts become rows in this run."""
    d, t = config.dataset, config.training
    return TokenizeConfig(
        t.mode, t.max_length, d.pack_to_max_length, d.pack_boundaries, d.template, bool(d.enable_thinking),
        d.turn_fields, d.on_bad_row,
    )  # fmt: skip


def _reading(part: SourceConfig) -> Reading:
    return Reading(part.text_field, part.columns or Columns())


def _rows(
    config: Config, tokenizer: Any, vocab_size: int, part: SourceConfig, split_key: str = "dataset.split"
) -> loader.Rows:
    assert part.name is not None
    assert part.split is not None
    source = sources.load(part.name, part.config, part.split, split_key=split_key)
    workers = config.dataset.num_proc
    with sources.readable(part.name):
        rows = rows_of(source, tokenize_config_of(config), tokenizer, _reading(part), num_proc=workers)
    model.check_tokens(np.array(rows.values.span()), vocab_size)
    return dataclasses.replace(rows, source=source)


def _stream(config: Config, tokenizer: Any, part: SourceConfig, split_key: str = "dataset.split") -> Stream:
    assert part.name is not None
    assert part.split is not None
    source = sources.stream(part.name, part.config, part.split, split_key=split_key)
    with sources.readable(part.name):
        return Stream(source, tokenize_config_of(config), tokenizer, _reading(part), first_rows(source))
