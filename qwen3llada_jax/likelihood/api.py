"""The likelihood of texts: exact where a model writes token by token, else a bound by Monte Carlo, with its error."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import arguments, sharding, threefry
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.likelihood import noise
from qwen3llada_jax.likelihood.estimate import Draws, Estimate
from qwen3llada_jax.likelihood.noise import METHODS
from qwen3llada_jax.likelihood.reading import Blocks, Reading, cross_entropies, reading_of
from qwen3llada_jax.model.model import Qwen3LLaDA, check_tokens
from qwen3llada_jax.sampling.layout import bucket


def nelbo(
    model: Qwen3LLaDA,
    tokens: Int[Array, "B L"] | Sequence[Sequence[int]],
    *,
    prompt_length: Int[Array, " B"] | Sequence[int] | int | None = None,
    samples: int = 32,
    key: PRNGKeyArray | int | None = None,
    method: str = "stratified",
    visibility: str | None = None,
    block_length: int | None = None,
    shift: bool | None = None,
    block_origin: str | None = None,
    causal_context: bool | None = None,
    mask_token_id: int | None = None,
    batch_size: int = 32,
) -> Estimate:
    """−log p of each row, in nats, or an unbiased estimate of a bound above it (NELBO), with its standard error.

    Tokens of a block are written in any order, blocks from left to right: the bound is a sum over blocks, each with
    clean text before it (BD3-LM, arXiv 2503.09573, equation 8), all in one pass over [noisy ; clean]; under `full` the
    row is one block (LLaDA, arXiv 2502.09992, equations 3 and 6). Blocks of one token leave nothing to chance: the sum
    is exact, in one pass, and with shift it is the chain rule, the log-likelihood of an autoregressive model.

    With shift a row's first token has no position before it: it is given, and not counted.

    Args:
        tokens: ids; rows may differ in length. A mask id among them is text.
        prompt_length: of each row, or of all: tokens that are given and never noised, the answer being what is
            counted. None: 0.
        samples: rows that the model reads for each text, an even number: twice as many halve the squared error.
        key: a seed, a key of JAX, or [B] one for each row; None: seed 0. A row's draws depend on its key (of one key:
            and its row number) and the sample, not on the other rows.
        method: of `noise.METHODS`.
        visibility: None: the model's own (`ModelConfig`).
        block_length: likewise.
        shift: likewise.
        block_origin: likewise.
        causal_context: likewise.
        mask_token_id: likewise.
        batch_size: rows that are read together; on a mesh, as many more as it divides.

    Raises:
        InputError: an id out of range, more than positions hold, a prompt longer than its row, or settings that do not
            go together.
    """
    how = reading_of(
        model.config, visibility=visibility, block_length=block_length, shift=shift, block_origin=block_origin,
        causal_context=causal_context, mask_token_id=mask_token_id,
    )  # fmt: skip
    rows = rows_of(model, tokens, prompt_length, key)
    found = np.zeros((len(rows.ids), 3))
    for number, draws in each(model, rows, how, samples, method, batch_size):
        found[number] = (*draws.nats, draws.start.size)
    return Estimate(found[:, 0], np.sqrt(found[:, 1]), found[:, 2].astype(np.int64))


class Rows(NamedTuple):
    """Texts, how much of each is given, and the key of each."""

    ids: list[Int[np.ndarray, " L"]]
    prompt_length: Int[np.ndarray, " B"]
    keys: PRNGKeyArray


def rows_of(model: Qwen3LLaDA, tokens: Any, prompt_length: Any, key: Any) -> Rows:
    """What `nelbo` was given, checked.

    Raises:
        InputError: as there.
    """
    lists = arguments.rows_of_ids("tokens", tokens)
    for row in lists:
        check_tokens(np.asarray(row, object), model.config.vocab_size)
    ids = [np.asarray(row, np.int32) for row in lists]
    lengths, most = [len(row) for row in ids], model.config.max_position_embeddings
    too_long = [n for n, length in enumerate(lengths) if length > most and model.config.rope_scaling is None]
    if too_long:
        raise InputError(
            f"row {too_long[0]}: {lengths[too_long[0]]:,} tokens are beyond the {most:,} positions the model was made "
            "for; shorten it, or measure it in windows"
        )
    prompts: Any = 0 if prompt_length is None else prompt_length
    if np.ndim(prompts) == 0:
        prompts = np.full(len(ids), arguments.whole("prompt_length", prompts), np.int32)
    prompts = np.asarray(arguments.rows("prompt_length", prompts, "[B]"))
    if prompts.shape != (len(ids),):
        raise InputError(f"prompt_length must be one, or one for each of the {len(ids)} rows, not {len(prompts)}")
    for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        if not 0 <= prompt <= length:
            raise InputError(f"prompt_length of row {number} must lie in 0 … {length}, its tokens, not {prompt}")
    keys = threefry.quick(arguments.key(0 if key is None else key))
    if keys.ndim and keys.shape != (len(ids),):
        raise InputError(f"key must be one, or one for each of the {len(ids)} rows, not {keys.shape}")
    return Rows(ids, prompts.astype(np.int32), keys if keys.ndim else _of_rows(keys, len(ids)))


def check_samples(samples: int, method: str) -> None:
    """Refuse draws whose error could not be told.

    Raises:
        InputError: saying what they must be.
    """
    if method not in METHODS:
        raise InputError(f"method {shown(method)} is unknown; choose one of {', '.join(METHODS)}")
    least = 2 if method == "stratified" else 4
    if arguments.whole("samples", samples) < least or samples % 2:
        raise InputError(f"samples must be even and at least {least} for {method} draws, not {samples}")


def each(
    model: Qwen3LLaDA, rows: Rows, how: Reading, samples: int, method: str, batch_size: int
) -> Iterator[tuple[int, Draws]]:
    """(its number, what its draws gave) of every row, the shorter ones first; rows of like length are read together.

    Raises:
        InputError: as in `nelbo`.
    """
    check_samples(samples, method)
    if arguments.whole("batch_size", batch_size) < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    blocks = [how.blocks_of(int(P), len(ids)) for ids, P in zip(rows.ids, rows.prompt_length, strict=True)]
    counts = [samples if not b.is_certain.all() else min(b.size.size, 1) for b in blocks]
    ways = sharding.ways("batch")
    R = -(-min(batch_size, max(1, sum(counts))) // ways) * ways
    yield from ((i, _draws_of([], blocks[i], method)) for i, count in enumerate(counts) if not count)
    lengths = np.array([bucket(len(ids)) for ids in rows.ids], np.int64)
    for length in np.unique(lengths):
        together = [i for i in np.flatnonzero(lengths == length).tolist() if counts[i]]
        jobs = [(i, sample) for i in together for sample in range(counts[i])]
        kept: dict[int, list[Any]] = {i: [] for i in together}
        for begin in range(0, len(jobs), R):
            part = jobs[begin : begin + R]
            filled = part + part[-1:] * (R - len(part))
            value, level = _read(model, rows, blocks, filled, int(length), how, samples, method)
            for n, (i, _) in enumerate(part):
                end = len(rows.ids[i])
                C = blocks[i].size.size
                kept[i].append((value[n, end - C : end], level[n, end - C : end]))
                if len(kept[i]) == counts[i]:
                    yield i, _draws_of(kept.pop(i), blocks[i], method)


def _draws_of(found: list[Any], blocks: Blocks, method: str) -> Draws:
    value, level = (np.array([x[n] for x in found]).reshape(len(found), blocks.size.size) for n in (0, 1))
    return Draws(value, level, *blocks, method)


def _read(
    model: Qwen3LLaDA,
    rows: Rows,
    blocks: list[Blocks],
    jobs: list[tuple[int, int]],
    length: int,
    how: Reading,
    samples: int,
    method: str,
) -> tuple[Float[np.ndarray, "R L"], Float[np.ndarray, "R L"]]:
    """(weighted −log p, noise level) of the tokens of some (row, sample)s, padded to one length."""
    tokens, start, size, is_certain = (np.full((len(jobs), length), x) for x in (0, length, 0, False))
    for n, (i, _) in enumerate(jobs):
        end = len(rows.ids[i])
        here = slice(end - blocks[i].size.size, end)
        tokens[n, :end] = rows.ids[i]
        start[n, here], size[n, here], is_certain[n, here] = blocks[i]
    which, sample = np.array(jobs, np.int32).T
    real = np.array([len(rows.ids[i]) for i in which], np.int32)
    origin = np.array([how.counted_from(int(rows.prompt_length[i])) for i in which], np.int32)
    given = origin if origin.any() else None
    tokens, start, size = (x.astype(np.int32) for x in (tokens, start, size))
    found = _losses(model, tokens, rows.keys[which], sample, start, size, is_certain, real, given, how, samples, method)
    return np.asarray(found[0]), np.asarray(found[1])


@functools.partial(jax.jit, static_argnames=("how", "samples", "method"))
def _losses(
    model: Qwen3LLaDA,
    tokens: Int[Array, "R L"],
    keys: PRNGKeyArray,
    sample: Int[Array, " R"],
    start: Int[Array, "R L"],
    size: Int[Array, "R L"],
    is_certain: Bool[Array, "R L"],
    length: Int[Array, " R"],
    origin: Int[Array, " R"] | None,
    how: Reading,
    samples: int,
    method: str,
) -> tuple[Float[Array, "R L"], Float[Array, "R L"]]:
    draw = functools.partial(noise.draw, method=method, samples=samples)
    is_noised, weight, level = jax.vmap(draw)(keys, sample, start, size)
    is_alone = size == 1
    is_noised, level = is_noised | is_alone, jnp.where(is_alone, 1.0, level)
    asked, weight = is_noised | is_certain, jnp.where(is_certain, 1.0, weight)
    ce = cross_entropies(model, tokens, is_noised, length, origin, how, asked)
    return jnp.where(asked, weight * ce, 0.0), level


@functools.partial(jax.jit, static_argnames="rows")
def _of_rows(key: PRNGKeyArray, rows: int) -> PRNGKeyArray:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
