"""What is asked, laid out for a sampler: prompts or texts with holes as rows of a canvas, with each row's numbers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.coordinates import block_of
from qwen3llada_jax.model.model import check_tokens
from qwen3llada_jax.sampling.config import SamplerConfig, origin_of, whole_blocks
from qwen3llada_jax.sampling.limits import check_memory, check_positions
from qwen3llada_jax.sampling.state import Canvas, GenerationInputs


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
    """Prompts followed by `gen_length` masks, on a canvas for prompts of at least `room` tokens.

    Where blocks are counted from position 0, masks fill the last block up (`config.whole_blocks`).
    """
    rows = [_ids(p, model.vocab_size) for p in arguments.rows_of_ids("prompts", prompts)]
    if not rows:
        raise InputError("no prompt to write after")
    assert config.block_length is not None
    lengths, S = [len(row) for row in rows], config.block_length
    whole = whole_blocks(config, model)
    check_positions(model, lengths, config.gen_length, whole_blocks=whole)
    places = -(-(config.gen_length + whole - 1) // S) * S  # of a prompt that leaves most of its last block given
    length = max(bucket(max(lengths)), room) + places
    check_memory(model, len(rows), length, config)
    ends = [-(-(len(row) + config.gen_length) // whole) * whole for row in rows]
    rows = [np.concatenate([row, np.full(end - len(row), -1, np.int32)]) for row, end in zip(rows, ends, strict=True)]
    return _lay_out(model, rows, lengths, length, places, config, key)


def for_holes(model: ModelConfig, texts: Sequence[Sequence[int | None]], config: SamplerConfig) -> SamplerConfig:
    """The config of an infilling, complete: as many tokens as the fullest row has holes, in whole blocks.

    Where a row ends is said by the text, so no stop rule holds.

    Raises:
        InputError: no holes, or settings that do not go with them.
    """
    holes = [np.flatnonzero([token is None for token in row]) for row in texts]
    if config.speculate:
        raise InputError("speculate writes from left to right, and holes have text behind them; leave it out")
    if not holes or not min(map(len, holes)):
        raise InputError("nothing to fill: every text needs at least one hole (None)")
    block, visibility = config.block_length or model.block_length, config.visibility or model.visibility
    block = block or min(32, max(map(len, holes)))
    origin = origin_of(config, model)
    blocks = [int(_order(row, block, visibility, origin)[-1]) // block + 1 for row in holes]
    length, cache = max(blocks) * block, config.cache or "none"
    config = dataclasses.replace(
        config, gen_length=length, block_length=block, stop=None, stop_at_eos=False, cache=cache
    )
    config.passes_of_a_block(list(map(len, holes)), blocks)
    is_dual, config = cache == "dual", config.for_model(model)
    if config.cache == "prefix":
        uses = f"none (under {config.visibility} dual is prefix)" if is_dual else "dual or none"
        raise InputError(f"infilling has no prefix to keep, text stands on both sides; use cache {uses}")
    return config


def infilling(
    model: ModelConfig, texts: Sequence[Sequence[int | None]], config: SamplerConfig, key: PRNGKeyArray | int | None
) -> tuple[Canvas, GenerationInputs, SamplerConfig]:
    """Texts with masks for their holes, and the config of it (`for_holes`)."""
    texts = arguments.rows_of_ids("texts", texts, holes=True)  # once: it may be an iterator
    config = for_holes(model, texts, config)
    lengths = [len(text) for text in texts]
    check_positions(model, lengths, 0)
    check_memory(model, len(texts), bucket(max(lengths)), config)
    rows = []
    for text in texts:
        row = np.full(len(text), -1, np.int32)
        row[[token is not None for token in text]] = _ids([t for t in text if t is not None], model.vocab_size)
        rows.append(row)
    return *_lay_out(model, rows, [0] * len(rows), bucket(max(lengths)), config.gen_length, config, key), config


def blank(rows: int, length: int, places: int, mask_token_id: int) -> Canvas:
    """Rows of `length` tokens with nothing to write, all of numpy: each of their own memory.

    An operation of JAX for each array, outside a program, would cost more than a pass.
    """
    shape = rows, length
    arrays: Any = (
        np.full(shape, mask_token_id, np.int32),
        np.zeros(shape, bool),
        np.full(shape, -1, np.int32),
        np.zeros(shape, np.float32),
        np.full((rows, places), length, np.int32),
        *(np.zeros(rows, np.int32) for _ in range(4)),
    )
    return Canvas(*arrays)


def _lay_out(
    model: ModelConfig,
    rows: list[np.ndarray],
    prompt_length: list[int],
    length: int,
    places: int,
    config: SamplerConfig,
    key: PRNGKeyArray | int | None,
) -> tuple[Canvas, GenerationInputs]:
    """Rows with -1 where something is to be written, padded to `length`; of at most so many `places`."""
    assert config.mask_token_id is not None
    assert config.block_length is not None
    assert config.visibility is not None
    B, S, origin = len(rows), config.block_length, origin_of(config, model)
    config.check_rows(B)
    canvas: Any = blank(B, length, places, config.mask_token_id)
    is_given = np.zeros((B, length), bool)
    block, blocks = np.zeros((B, length), np.int32), np.zeros(B, np.int32)
    for i, row in enumerate(rows):
        holes = np.flatnonzero(row == -1)
        canvas.tokens[i, : len(row)] = np.where(row == -1, config.mask_token_id, row)
        canvas.is_masked[i, holes], is_given[i, : len(row)] = True, row != -1
        order = _order(holes, S, config.visibility, origin)
        canvas.places[i, order], blocks[i] = holes, order[-1] // S + 1
        if origin == "start":  # given tokens of a block too: their keys and values change with it
            whole = (np.unique(holes // S)[:, None] * S + np.arange(S)).ravel()
            canvas.places[i, : len(whole)] = np.where(whole < len(row), whole, length)
        block[i] = blocks_of(np.arange(length), int(holes[0]), S, origin)
        canvas.prompt_length[i], canvas.length[i] = prompt_length[i], len(row)
    still: list[Any] = [
        is_given,
        block if config.visibility != "full" else None,
        _keys(key, B),
        config.passes_of_a_block(canvas.is_masked.sum(axis=1).tolist(), _shared(blocks, prompt_length, config, origin)),
        *(_padded(ids, model.vocab_size)[None] for ids in ids_of(config)),
    ]
    return canvas._replace(confidence=is_given.astype(np.float32)), GenerationInputs(*still)


def blocks_of(
    position: Int[Any, "R L"], prompt_length: Int[Any, " B"] | int, block_length: int, origin: str
) -> Int[Any, "R L"]:
    """The coordinate `block` of a model that counts blocks from there (`ModelConfig.block_origin`)."""
    if origin == "start":
        return position // block_length
    if origin == "aligned":
        prompt = prompt_length if isinstance(prompt_length, int) else prompt_length[:, None]
        return (position - prompt) // block_length
    return block_of(position, prompt_length, block_length)


def _shared(blocks: Int[np.ndarray, " B"], prompt_length: list[int], config: SamplerConfig, origin: str) -> list[int]:
    """Blocks that each row's steps are shared among.

    A prompt that ends within a block makes one block more, and that takes as many steps as every block.
    """
    assert config.block_length is not None
    if origin != "start" or not any(prompt_length):
        return blocks.tolist()
    return [-(-config.gen_length // config.block_length)] * len(blocks)


def ids_of(config: SamplerConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ids that are never written, ids that end a text) of a complete config."""
    ends = config.eos_token_ids or ()
    return config.forbid + (ends if config.eos == "never" else ()), ends


def _padded(ids: Sequence[int], outside: int) -> Int[np.ndarray, " n"]:
    """Ids, filled up to a power of two, so that few numbers of them are compiled for."""
    padded = np.full(1 << (len(ids) - 1).bit_length() if ids else 0, outside, np.int32)
    padded[: len(ids)] = ids
    return padded


def _order(holes: Int[np.ndarray, " H"], block_length: int, visibility: str, origin: str) -> Int[np.ndarray, " H"]:
    """Where in `Canvas.places` each hole stands: a block is of so many holes, or where it is a rule's, positions."""
    number = np.arange(len(holes))
    if visibility == "full":
        return number
    begin = 0 if origin == "start" else holes[0]
    _, first, block = np.unique((holes - begin) // block_length, return_index=True, return_inverse=True)
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
