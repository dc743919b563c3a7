"""The batches of a run, from what its configuration says of data; whole datasets and streams behind one face:

take(step) → Batch · state(step) → JSON for the checkpoint · restore(state, step) · fingerprint · report
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from qwen3llada_jax import model
from qwen3llada_jax.errors import InputError
from train import data, order, sources, streaming, tokenising
from train.config import Config, SourceConfig
from train.tokenising import Recipe

_LOOKED_AT = 1000  # batches that the share of padding is computed over
_SHUFFLE_BUFFER = 1024


@dataclass(frozen=True)
class IndexedBatches:
    """Batches of numbered rows: a function of the step alone, so there is no state.

    Attributes:
        parts: the rows of each dataset.
        weights: how often each is drawn, in any unit.
        slots: rows of a batch that this host assembles; None: all.
    """

    parts: Sequence[data.Rows]
    weights: tuple[float, ...]
    batch_size: int
    seed: int
    pad_id: int
    length: int
    slots: Int[np.ndarray, " b"] | None = None

    def __post_init__(self) -> None:
        order.shares(self.weights)  # refuses impossible ones now

    @functools.cached_property
    def _rows(self) -> data.Rows:
        return data.join(self.parts)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of all datasets together."""
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """A digest of all rows and how they are mixed: a run goes on only with the data it began with."""
        return _digest(self._rows.fingerprint, self.weights, [len(part) for part in self.parts])

    @property
    def report(self) -> str:
        """What was read, cut, dropped and mixed, and the share of padding (of the first epoch's batches), in words."""
        steps = np.arange(max(1, min(_LOOKED_AT, self.rows_per_epoch // self.batch_size)))
        sizes = np.minimum(self._rows.sizes[self._numbers(np.arange(len(steps) * self.batch_size))], self.length)
        sizes = sizes.reshape(len(steps), self.batch_size)
        total = int(data.padded_length(sizes, self.length).sum()) * self.batch_size
        said = f"{self._rows.report}; {1 - sizes.sum() / total:.1%} padding"
        if len(self.weights) > 1:
            said += f"; drawn {', '.join(f'{share / order.DECK:.2%}' for share in order.shares(self.weights))}"
        return said

    def take(self, step: int) -> data.Batch:
        """The batch of update `step` (the first is 0)."""
        numbers = self._numbers(np.arange(step * self.batch_size, (step + 1) * self.batch_size))
        return data.make_batch(self._rows, numbers, self.pad_id, length=self.length, slots=self.slots)

    def state(self, step: int) -> dict[str, Any]:
        """Nothing: the step is enough."""
        return {}

    def restore(self, state: dict[str, Any] | None, step: int) -> None:
        """Nothing to do."""

    def counts(self) -> str:
        """Nothing more than `report` said."""
        return ""

    def _numbers(self, slots: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        source, place = order.deal(slots, self.weights, self.seed)
        numbers = np.empty(len(slots), np.int64)
        for i, part in enumerate(self.parts):
            here = source == i
            first = sum(map(len, self.parts[:i]))
            numbers[here] = first + order.row_numbers(place[here], len(part), self.seed, i)
        return numbers


Batches = IndexedBatches | streaming.StreamedBatches


def training_batches(
    config: Config, tokenizer: Any, vocab_size: int, slots: Int[np.ndarray, " b"] | None = None
) -> Batches:
    """The batches to train on.

    Args:
        vocab_size: rows of the model's embedding, which ids must keep to.
        slots: rows of a batch that this host needs (`order.host_slots`); None: all.

    Raises:
        InputError: data that is not there, cannot be read, or leaves nothing to train on.
    """
    d, t = config.dataset, config.training
    weights = tuple(part.weight for part in d.sources)
    common: dict[str, Any] = {
        "batch_size": t.batch_size,
        "seed": config.project.seed,
        "pad_id": tokenizer.eos_token_id,
        "length": t.max_length,
    }
    if d.streaming:
        opened = [_source(config, tokenizer, part) for part in d.sources]
        made_by = [tokenising.tokenizer_tag(tokenizer), getattr(tokenizer, "chat_template", None), recipe_of(config)]
        fields = [part.text_field for part in d.sources]
        return streaming.StreamedBatches(
            [source for source, _ in opened],
            weights,
            shuffle_buffer=_SHUFFLE_BUFFER if d.shuffle_buffer is None else d.shuffle_buffer,
            vocab_size=vocab_size,
            fingerprint=_digest(*made_by, weights, fields, [identity for _, identity in opened]),
            **common,
        )
    parts = [_rows(config, tokenizer, vocab_size, part) for part in d.sources]
    return IndexedBatches(parts, weights, slots=slots, **common)


def check_held_out(config: Config) -> None:
    """Refuse, before anything is read, a configuration that holds nothing out.

    Raises:
        InputError: naming what to set.
    """
    d = config.dataset
    if config.evaluation.eval_name is None and (d.mixture or not sources.has_splits(d.name)):
        raise InputError(
            f"{'dataset.mixture' if d.mixture else d.name} has no splits, so nothing is held out: "
            "set evaluation.eval_name, or evaluation.do_eval_loss: false"
        )


def held_out_rows(config: Config, tokenizer: Any, vocab_size: int) -> data.Rows:
    """The rows of the held-out loss: all of `eval_split`, or as many as are used where the training data is streamed.

    Raises:
        InputError: nothing is held out, or as in `training_batches`.
    """
    check_held_out(config)
    d, e = config.dataset, config.evaluation
    part = SourceConfig(e.eval_name or d.name, 1.0, d.config, e.eval_split, d.text_field)
    if not d.streaming:
        return _rows(config, tokenizer, vocab_size, part, "evaluation.eval_split")
    source, _ = _source(config, tokenizer, part, "evaluation.eval_split")
    found = source.first(e.eval_max_batches * config.training.batch_size)
    rows = data.collect(found, f"the first {len(found):,} rows of {part.name}")
    model.check_tokens(np.array([rows.values.min(), rows.values.max()]), vocab_size)
    return rows


def recipe_of(config: Config) -> Recipe:
    """How texts become rows in this run."""
    d, t = config.dataset, config.training
    return Recipe(t.mode, t.max_length, d.pack_to_max_length, d.pack_boundaries, d.template)


def _rows(
    config: Config, tokenizer: Any, vocab_size: int, part: SourceConfig, split_key: str = "dataset.split"
) -> data.Rows:
    assert part.name is not None
    assert part.split is not None
    dataset = sources.load(part.name, part.config, part.split, split_key=split_key)
    workers = config.dataset.num_proc
    rows = tokenising.rows_of(
        dataset, recipe_of(config), tokenizer, text_field=part.text_field, num_proc=workers, name=part.name
    )
    model.check_tokens(np.array([rows.values.min(), rows.values.max()]), vocab_size)
    return rows


def _source(
    config: Config, tokenizer: Any, part: SourceConfig, split_key: str = "dataset.split"
) -> tuple[streaming.Source, str]:
    """A stream of rows, and what tells it from another."""
    assert part.name is not None
    assert part.split is not None
    opened = sources.stream(part.name, part.config, part.split, split_key=split_key)
    recipe = recipe_of(config)
    columns = sources.columns_of(opened.dataset)
    tokenise = tokenising.tokeniser(recipe, tokenizer, columns, part.text_field, part.name)
    return streaming.Source(opened.dataset, tokenise, recipe, part.name), opened.identity


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
