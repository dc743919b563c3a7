"""Rows [noisy ; clean]: one pass predicts the noised tokens of every block with clean text before it.

Block diffusion (BD3-LM, arXiv 2503.09573, section 3.2): a text is written block by block, so a noised block sees
itself and the clean blocks before it. The text stands in a row twice, noised and clean, at the same positions; who sees
whom is the formula of model/coordinates.py, a block being numbered by the position that it begins at:

    noisy block b   sees itself, noised, and the clean text before its begin
    clean token     sees the clean text up to its block's end, or with `causal_context` up to itself

With shift a token is predicted at the position before it: within its block that is a noised position, and of the first
token of a block the last clean one before it. So blocks of one token with shift are autoregression, exactly.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.coordinates import Coordinates, Run, block_of, module_of
from qwen3llada_jax.model.masks import Mask, coordinates_of

_LONG = 256  # rows of more tokens are cut into 8 runs, others into 4: fewer pairs for nobody, and longer compiles


class NoisyClean(NamedTuple):
    """What a model reads, and where it is asked.

    Attributes:
        inputs: [B, 2 L] ids.
        mask: who sees whom there, and the positions.
        at: [B, L] the position in `inputs` at which each token of the noisy half is asked, for `model.hidden(where=…)`.
    """

    inputs: Int[Array, "B M"]
    mask: Coordinates
    at: Int[Array, "B L"]


def noisy_clean(
    noisy: Int[Array, "B L"],
    clean: Int[Array, "B L"],
    mask: Mask,
    *,
    shift: bool = False,
    causal_context: bool = False,
    longest_block: int | None = None,
) -> NoisyClean:
    """Rows of block diffusion, for `model.hidden`.

    Args:
        noisy: noised ids; what may not be noised (prompts, padding) stands there as it is.
        mask: of rows of L tokens, of kind `block_causal`: length of blocks (a number, or data), prompts, documents,
            padding. Of numpy, or without arrays, the rule stays known while compiling.
        shift: each token is asked at the position before it; of the first of a document what is given means nothing.
        causal_context: clean tokens see nothing behind themselves, as in an autoregressive model.
        longest_block: the length of the longest block where `mask.block_length` is data: pairs that are too far apart
            for it are not computed. None: all are.

    Raises:
        InputError: another kind of mask, or shapes that do not fit.
    """
    noisy, clean = (jnp.asarray(arguments.rows(name, x)) for name, x in (("noisy", noisy), ("clean", clean)))
    if noisy.shape != clean.shape:
        raise InputError(f"noisy and clean must be of one shape, not {list(noisy.shape)} and {list(clean.shape)}")
    if mask.kind != "block_causal":
        raise InputError(f"block diffusion takes a mask of kind block_causal, not {mask.kind}")
    B, L = clean.shape
    begins, position = block_begins(mask, L)
    xp = module_of(begins, position)
    segment = coordinates_of(mask, L).segment
    own = position if causal_context else begins
    block = xp.concatenate(xp.broadcast_arrays(begins, own), axis=1)
    coordinates = Coordinates(
        position=twice(position),
        segment=None if segment is None else twice(segment),
        block=block,
        clean=np.arange(2 * L)[None] >= L,
        runs=_runs(mask, L, shift=shift, causal_context=causal_context, longest_block=longest_block),
    )
    at = jnp.broadcast_to(asked_at(begins, position, shift=shift), (B, L))
    return NoisyClean(jnp.concatenate([noisy, clean], axis=1), coordinates, at)


def asked_at(begins: Int[Any, "R L"], position: Int[Any, "R L"], *, shift: bool) -> Int[Array, "R L"]:
    """Where in [noisy ; clean] each token of the noisy half is asked: at its own place, with shift at the one before,
    which before a block's first token is a clean one."""
    L = position.shape[1]
    place = jnp.arange(L)[None]
    return jnp.where(jnp.asarray(begins == position), jnp.maximum(L + place - 1, L), place - 1) if shift else place


def block_begins(mask: Mask, length: int) -> tuple[Int[Any, "R L"], Int[Any, "R L"]]:
    """(the position that each token's block begins at, its own position), both as blocks are counted.

    A prompt is one block, which begins at 0.
    """
    position: Any = np.arange(length, dtype=np.int32)[None] if mask.positions is None else mask.positions
    prompt: Any = 0 if mask.prompt_length is None else mask.prompt_length
    size: Any = mask.block_length
    block = block_of(position, prompt, size)
    prompt, size = (x[:, None] if np.ndim(x) else x for x in (prompt, size))
    xp = module_of(block, prompt, size)
    return xp.where(block < 0, 0, prompt + block * size).astype(np.int32), position


def twice(array: Any) -> Any:
    """Of both halves what [R, L] says of one."""
    return module_of(array).concatenate([array, array], axis=1)


def _runs(
    mask: Mask, L: int, *, shift: bool, causal_context: bool, longest_block: int | None
) -> tuple[Run, ...] | None:
    """What is seen at most, in stretches; with shift of the places where tokens are asked, too."""
    longest = mask.block_length if isinstance(mask.block_length, int) else longest_block
    if longest is None:
        return None
    # Where blocks are as long as is said here and begin at its multiples, runs of whole blocks see no further.
    is_even = isinstance(mask.block_length, int) and mask.positions is None and mask.prompt_length is None
    further = 0 if is_even else min(longest, L) - 1
    size = -(-L // (8 if L > _LONG else 4))
    size = -(-size // longest) * longest if is_even else size
    noisy, clean = [], []
    for begin in range(0, L, size):
        end = min(begin + size, L)
        before = end - 1 if shift or not is_even else (end - 1) // longest * longest
        context = ((L, L + before),) if before else ()
        if is_even and (end - begin) % longest == 0:
            noisy.append(Run(begin, end, context, longest))
        else:
            noisy.append(Run(begin, end, ((max(0, begin - further), min(L, end + further)), *context)))
        until = end if causal_context else L if mask.prompt_length is not None else min(L, end + further)
        clean.append(Run(L + begin, L + end, ((L, L + until),)))
    return (*noisy, *clean)
