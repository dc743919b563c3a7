"""The page of the sampler: rows of tokens, which of them are still to be written, and how far the writing has come."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import arguments, sharding
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.coordinates import block_of
from qwen3llada_jax.model.kv_cache import Cache
from qwen3llada_jax.model.model import check_tokens
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.limits import check_memory, check_positions


class Canvas(NamedTuple):
    """What is on the page between two passes.

    Attributes:
        tokens: [B, L] ids; the mask token where nothing is written yet.
        is_masked: [B, L] positions still to be written.
        written_at: [B, L] the row's pass (0, 1, …) that wrote a position; -1: none did (yet).
        confidence: [B, L] probability the model gave a token when it was written; 1 for what was given.
        places: [B, T] the positions to write, `block_length` for each block, in order; L where it has fewer.
        prompt_length, length: [B] tokens of each row's prompt, and of prompt and answer.
        passes: [B] passes that each row has taken part in.
        nfe: [B] its forward passes of the model: the same, twice that under guidance.
    """

    tokens: Int[Array, "B L"]
    is_masked: Bool[Array, "B L"]
    written_at: Int[Array, "B L"]
    confidence: Float[Array, "B L"]
    places: Int[Array, "B T"]
    prompt_length: Int[Array, " B"]
    length: Int[Array, " B"]
    passes: Int[Array, " B"]
    nfe: Int[Array, " B"]


class Generation(NamedTuple):
    """Finished texts, on the host.

    Attributes:
        tokens: [B, P + gen_length] prompts, each followed at once by its answer (then padding, where a prompt is
            shorter than the longest); of `infill` the texts, filled.
        prompt_length: [B].
        written_at, confidence, places: as in `Canvas`.
        nfe: [B] forward passes of the model that each row took part in. Filling a cache with the prompt, which
            gives no logits, is not counted.
        passes: of the whole batch.
    """

    tokens: Int[np.ndarray, "B L"]
    prompt_length: Int[np.ndarray, " B"]
    written_at: Int[np.ndarray, "B L"]
    confidence: Float[np.ndarray, "B L"]
    places: Int[np.ndarray, "B T"]
    nfe: Int[np.ndarray, " B"]
    passes: int

    def answers(self) -> list[list[int]]:
        """The written ids of each row."""
        return [row[at[at < len(row)]].tolist() for row, at in zip(self.tokens, self.places, strict=True)]


class NotFiniteError(InputError):
    """The logits of some rows were NaN or infinite; `result` holds all rows, each as far as it was written.

    Attributes:
        rows: their numbers, from 0.
    """

    def __init__(self, result: Generation, rows: list[int]):
        named = ", ".join(str(row + 1) for row in rows[:10]) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
        super().__init__(
            f"row{'s' * (len(rows) > 1)} {named} of {len(result.tokens)}: the model's logits are not finite (NaN or "
            "infinite), so nothing can be written; its weights are damaged, or float16 overflows: try float32"
        )
        self.result, self.rows = result, rows


class GenerationInputs(NamedTuple):
    """What never changes while writing.

    Attributes:
        is_given: [B, L] tokens that were there before.
        block: [B, L] block of each token (coordinates.py): -1 before the first that is written, then counted from it;
            None under `full`, where all is one block.
        keys: [B] one a row.
        steps: [B] passes of a block.
        forbidden, ends: [B, n] ids that are never written, and that end a text; [1, n]: of all rows. Ids outside the
            table fill up.
    """

    is_given: Bool[Array, "B L"]
    block: Int[Array, "B L"] | None
    keys: PRNGKeyArray
    steps: Int[Array, " B"]
    forbidden: Int[Array, "#B n"]
    ends: Int[Array, "#B m"]


class SamplerState(NamedTuple):
    """Where every row stands.

    Attributes:
        canvas: what is on the page.
        block, step: [B] the row's current block, and its passes in that block so far.
        to_write: [B, G] masked positions of the current block(s) when begun; G is 1, or all blocks in parallel.
        revised: [B, G] how many of its tokens have been masked again.
        done: [B].
        cache: keys and values, or None.
    """

    canvas: Canvas
    block: Int[Array, " B"]
    step: Int[Array, " B"]
    to_write: Int[Array, "B G"]
    revised: Int[Array, "B G"]
    done: Bool[Array, " B"]
    cache: Cache | None

    @property
    def begins(self) -> Bool[Array, " B"]:
        """[B] the row's next pass is the first in its block."""
        return (self.step == 0) & ~self.done


def to_host(written: Canvas) -> Generation:
    """The texts of a canvas, without the padding of its bucket, on the host (over several hosts: on each of them)."""
    return _texts(_on_host(written))


def to_host_checked(written: Canvas) -> Generation:
    """`to_host` of a canvas on which nothing more will be written.

    Raises:
        NotFiniteError: rows ended with places still masked.
    """
    canvas = _on_host(written)
    unfinished = np.flatnonzero(canvas.is_masked.any(axis=1)).tolist()
    if unfinished:
        raise NotFiniteError(_texts(canvas), unfinished)
    return _texts(canvas)


def _on_host(written: Canvas) -> Canvas:
    is_here = all(x.is_fully_addressable for x in written if isinstance(x, jax.Array))
    canvas: Any = jax.device_get(written) if is_here else multihost_utils.process_allgather(written, tiled=True)
    return canvas


def _texts(canvas: Canvas) -> Generation:
    end = int(canvas.length.max())
    tokens, written_at, confidence = (np.asarray(x)[:, :end] for x in canvas[:1] + canvas[2:4])
    places, prompt_length, nfe = (np.asarray(x) for x in (canvas.places, canvas.prompt_length, canvas.nfe))
    return Generation(tokens, prompt_length, written_at, confidence, places, nfe, int(canvas.passes.max()))


def bucket(length: int) -> int:
    """A length rounded up, by at most a quarter, so that few lengths are compiled for."""
    step = max(16, (1 << max(length - 1, 0).bit_length()) // 8)
    return max(16, -(-length // step) * step)


def continuation(
    model: ModelConfig,
    prompts: Int[Array, "B P"] | Sequence[Sequence[int]],
    config: SamplerConfig,
    key: PRNGKeyArray | int | None,
    room: int = 0,
) -> tuple[Canvas, GenerationInputs]:
    """Prompts followed by `gen_length` masks, on a canvas for prompts of at least `room` tokens."""
    rows = [_ids(p, model.vocab_size) for p in arguments.rows_of_ids("prompts", prompts)]
    if not rows:
        raise InputError("no prompt to write after")
    lengths = [len(row) for row in rows]
    check_positions(model, lengths, config.gen_length)
    length = max(bucket(max(lengths)), room) + config.gen_length
    check_memory(model, len(rows), length, config)
    rows = [np.concatenate([row, np.full(config.gen_length, -1, np.int32)]) for row in rows]
    return _lay_out(model, rows, lengths, length, config, key)


def for_holes(model: ModelConfig, texts: Sequence[Sequence[int | None]], config: SamplerConfig) -> SamplerConfig:
    """The config of an infilling, complete: as many tokens as the fullest row has holes, in whole blocks.

    Raises:
        InputError: no holes, or settings that do not go with them.
    """
    rows = arguments.rows_of_ids("texts", texts, holes=True)
    holes = [np.flatnonzero([token is None for token in row]) for row in rows]
    if not holes or not min(map(len, holes)):
        raise InputError("nothing to fill: every text needs at least one hole (None)")
    block, visibility = config.block_length or model.block_length, config.visibility or model.visibility
    block = block or min(32, max(map(len, holes)))
    blocks = [int(_order(row, block, visibility)[-1]) // block + 1 for row in holes]
    length, cache = max(blocks) * block, config.cache or "none"
    config = dataclasses.replace(config, gen_length=length, block_length=block, stop_at_eos=False, cache=cache)
    config.passes_of_a_block(list(map(len, holes)), blocks)
    is_dual, config = cache == "dual", config.for_model(model)
    if config.cache == "prefix":
        uses = f"none (under {config.visibility} dual is prefix)" if is_dual else "dual or none"
        raise InputError(f"infilling has no prefix to keep, text stands on both sides; use cache {uses}")
    return config


def with_holes(
    model: ModelConfig, texts: Sequence[Sequence[int | None]], config: SamplerConfig, key: PRNGKeyArray | int | None
) -> tuple[Canvas, GenerationInputs]:
    """Texts with masks for their holes."""
    texts = arguments.rows_of_ids("texts", texts, holes=True)
    lengths = [len(text) for text in texts]
    check_positions(model, lengths, 0)
    check_memory(model, len(texts), bucket(max(lengths)), config)
    rows = []
    for text in texts:
        row = np.full(len(text), -1, np.int32)
        row[[token is not None for token in text]] = _ids([t for t in text if t is not None], model.vocab_size)
        rows.append(row)
    return _lay_out(model, rows, [0] * len(rows), bucket(max(lengths)), config, key)


def _lay_out(
    model: ModelConfig,
    rows: list[np.ndarray],
    prompt_length: list[int],
    length: int,
    config: SamplerConfig,
    key: PRNGKeyArray | int | None,
) -> tuple[Canvas, GenerationInputs]:
    """Rows with -1 where something is to be written, padded to `length`."""
    assert config.mask_token_id is not None
    assert config.block_length is not None
    assert config.visibility is not None
    B = len(rows)
    sharding.check_rows(B)
    config.check_rows(B)
    tokens = np.full((B, length), config.mask_token_id, np.int32)
    is_masked, is_given = np.zeros((B, length), bool), np.zeros((B, length), bool)
    places = np.full((B, config.gen_length), length, np.int32)
    block, blocks = np.zeros((B, length), np.int32), np.zeros(B, np.int32)
    for i, row in enumerate(rows):
        holes = np.flatnonzero(row == -1)
        tokens[i, : len(row)] = np.where(row == -1, config.mask_token_id, row)
        is_masked[i, holes], is_given[i, : len(row)] = True, row != -1
        order = _order(holes, config.block_length, config.visibility)
        places[i, order], blocks[i] = holes, order[-1] // config.block_length + 1
        block[i] = block_of(np.arange(length), int(holes[0]), config.block_length)
    zeros = np.zeros(B, np.int32)
    # All of numpy: an operation for each of them, outside a program, would cost more than a pass.
    arrays: list[Any] = [
        tokens,
        is_masked,
        np.full((B, length), -1, np.int32),
        is_given.astype(np.float32),
        places,
        np.asarray(prompt_length, np.int32),
        np.asarray([len(row) for row in rows], np.int32),
        zeros,
        zeros,
    ]
    still: list[Any] = [
        is_given,
        block if config.visibility != "full" else None,
        _keys(key, B),
        config.passes_of_a_block(is_masked.sum(axis=1).tolist(), blocks.tolist()),
        *(_padded(ids, model.vocab_size)[None] for ids in ids_of(config)),
    ]
    return Canvas(*arrays), GenerationInputs(*still)


def ids_of(config: SamplerConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ids that are never written, ids that end a text) of a complete config."""
    ends = config.eos_token_ids or ()
    return config.forbid + (ends if config.eos == "never" else ()), ends


def _padded(ids: Sequence[int], outside: int) -> Int[np.ndarray, " n"]:
    """Ids, filled up to a power of two, so that few numbers of them are compiled for."""
    padded = np.full(1 << (len(ids) - 1).bit_length() if ids else 0, outside, np.int32)
    padded[: len(ids)] = ids
    return padded


def _order(holes: Int[np.ndarray, " H"], block_length: int, visibility: str) -> Int[np.ndarray, " H"]:
    """Where in `Canvas.places` each hole stands: a block is of so many holes, or where it is a rule's, positions."""
    number = np.arange(len(holes))
    if visibility == "full":
        return number
    _, first, block = np.unique((holes - holes[0]) // block_length, return_index=True, return_inverse=True)
    return block * block_length + number - first[block]


def _ids(row: list[int], vocab_size: int) -> Int[np.ndarray, " P"]:
    array = np.asarray(row, dtype=object)  # of any size: what lies outside the table is named
    check_tokens(array, vocab_size)
    return array.astype(np.int32)


def _keys(key: PRNGKeyArray | int | None, rows: int) -> PRNGKeyArray:
    key = arguments.key(0 if key is None else key)
    if key.ndim:
        if key.shape != (rows,):
            raise InputError(f"key must be one, or one for each of the {rows} rows, not {key.shape}")
        return key
    return _of_rows(key, rows)


@functools.partial(jax.jit, static_argnames="rows")
def _of_rows(key: PRNGKeyArray, rows: int) -> PRNGKeyArray:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
