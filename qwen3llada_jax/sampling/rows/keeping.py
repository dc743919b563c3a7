"""The keys and values of a text that one row wrote, for a row whose text begins with it: a chat's next turn.

They are exact where text is read in blocks that see nothing behind them: then what stands in a text decides its keys
and values, whatever follows it and whoever wrote it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling.parameters import Structure
from qwen3llada_jax.sampling.state import Canvas


class Prefix(NamedTuple):
    """The beginning of a text. `jax.device_get` of it lies in the host's memory, and will do as well.

    Attributes:
        ids: n tokens.
        keys, values: of at least so many positions.
        block_length: it is read in blocks of so many tokens (1: from left to right).
    """

    ids: list[int]
    keys: Float[Array | np.ndarray, "layers N K H"]
    values: Float[Array | np.ndarray, "layers N K H"]
    block_length: int


def blocks_of_context(structure: Structure, model: ModelConfig) -> int | None:
    """Context is read in blocks of so many tokens, which see nothing behind them; None: it is not, or not kept.

    Under guidance a row is read once more with masks for what was given, and the next turn's row gives more.
    """
    is_dynamic = model.rope_scaling is not None and model.rope_scaling.kind == "dynamic"  # keys change with the length
    if structure.cache == "none" or structure.visibility != "block_causal" or structure.cfg_branches > 1 or is_dynamic:
        return None
    if model.causal_context or structure.speculate:
        return 1
    return structure.block_length if structure.block_origin == "start" else None


def known_of(row: Canvas, block: int, step: int, still: int, structure: Structure) -> int:
    """How many tokens at the beginning of a row the cache knows as they are now.

    The block of the last pass is not among them: its keys are those of what stood there before that pass.

    Args:
        row: [L] or a number each, of numpy, after a pass at least.
        block, step: the row's.
        still: tokens of the prompt that stand in no block that is written.
    """
    if structure.speculate:  # what was written last was read by no pass
        return max(int(np.flatnonzero(np.asarray(row.written_at) >= 0).max(initial=-1)), still)
    computed = block if step else block - 1
    return still + max(computed, 0) * structure.block_length


def in_common(prefix: Prefix, tokens: Sequence[int], still: int, like: Any, block_length: int) -> int:
    """How much of a row's prompt a prefix knows: whole blocks.

    Args:
        like: a cache.

    Raises:
        InputError: a prefix of another model, or one that is read in other blocks.
    """
    layers, _, _, *heads = like.shape
    shape = (layers, *heads)
    for name, x in (("keys", prefix.keys), ("values", prefix.values)):
        if (x.shape[0], *x.shape[2:]) != shape or x.shape[1] < len(prefix.ids) or x.dtype != like.dtype:
            raise InputError(
                f"prefix: {name} of shape {list(x.shape)} ({x.dtype}) are not this model's, which are "
                f"[{layers}, n, {heads[0]}, {heads[1]}] ({like.dtype}); give one that an engine of this model kept"
            )
    if prefix.block_length != block_length:
        raise InputError(
            f"prefix: it was read in blocks of {prefix.block_length}, and this engine reads blocks of {block_length}; "
            "leave it out"
        )
    most = min(len(prefix.ids), still)
    same = np.asarray(prefix.ids[:most], np.int64) == np.asarray(tokens[:most], np.int64)
    return int(np.argmin(np.append(same, False))) // block_length * block_length
