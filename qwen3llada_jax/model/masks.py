"""Visibility rules by name: `Mask`, a small value that makes the coordinates (coordinates.py) of any rows.

A row is a prompt of `prompt_length` tokens (0 in pretraining) and an answer cut into blocks of `block_length`; token i
of the answer is in block b(i) = (i - prompt_length) // block_length, and every prompt token counts as block -1.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.model import coordinates
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.coordinates import Coordinates, block_of, check_shape, fitting, module_of, until_of

KINDS = ("full", "block_bias", "block_causal", "block_diffusion")


@dataclass(frozen=True)
class Mask:
    """A visibility rule and the rows it applies to. `L` is the length of the model's input.

    Attributes:
        kind: one of `KINDS`; None: the model's own rule, with its block length (`full` where no model is asked).
        block_length: tokens of a block; needed by every kind but `full`. A number is part of the compiled program; an
            array of JAX ([], or [B] one a row; of numpy [B]) is data, for which nothing is compiled anew.
        prompt_sees_answer: under `block_bias`, prompt tokens also see all answers (the PyTorch system's
            rule); off by default, so that the prompt's keys and values never depend on the answer.
        prompt_length: [B] tokens of each row's prompt, or one number for all rows; None means 0.
        segment_ids: [B, L] document number of each token; tokens see their own document only.
        positions: [B, L] position within the document, which blocks are counted by, and the model's rotary
            positions where it is given no others; None means 0 … L-1 (0 … L/2-1 twice for `block_diffusion`).
        is_real: [B, L] False where a token is padding, which no real token sees.
    """

    kind: str | None = None
    block_length: Int[Array, "*B"] | int | None = None
    prompt_sees_answer: bool = False
    prompt_length: Int[Array, " B"] | int | None = None
    segment_ids: Int[Array, "B L"] | None = None
    positions: Int[Array, "B L"] | None = None
    is_real: Bool[Array, "B L"] | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise InputError(f"visibility {shown(self.kind)} is unknown; choose one of {', '.join(KINDS)}")
        if self.block_length is not None:
            object.__setattr__(self, "block_length", _block_length(self.block_length))
        elif not self.hides_no_block:
            raise InputError(f"visibility {self.kind} needs a block_length")
        object.__setattr__(self, "prompt_sees_answer", arguments.flag("prompt_sees_answer", self.prompt_sees_answer))
        if self.prompt_sees_answer and self.kind not in (None, "block_bias"):
            raise InputError(f"prompt_sees_answer has no effect with visibility {self.kind}; it belongs to block_bias")

    @property
    def hides_no_block(self) -> bool:
        """True under `full`."""
        return self.kind in (None, "full")


_ARRAYS = ("block_length", "prompt_length", "segment_ids", "positions", "is_real")


def _flatten(mask: Mask) -> tuple[list[Any], tuple[Any, ...]]:
    number = mask.block_length if isinstance(mask.block_length, int) else None
    arrays = [getattr(mask, name) for name in _ARRAYS]
    return [None if number is not None else arrays[0], *arrays[1:]], (mask.kind, number, mask.prompt_sees_answer)


def _unflatten(structure: tuple[Any, ...], arrays: Any) -> Mask:
    kind, number, sees_answer = structure
    mask = object.__new__(Mask)  # what JAX puts in place of arrays is not to be checked
    fields = {"kind": kind, "prompt_sees_answer": sees_answer, **dict(zip(_ARRAYS, arrays, strict=True))}
    for name, value in fields.items():
        object.__setattr__(mask, name, number if name == "block_length" and number is not None else value)
    return mask


jax.tree_util.register_pytree_node(Mask, _flatten, _unflatten)


def _block_length(value: Any) -> Any:
    """A number, or data: one for all rows, or one a row."""
    if np.ndim(value):
        value = arguments.rows("block_length", value, "[B]")
    elif not (isinstance(value, jax.Array) and value.dtype.kind in "iu"):
        value = arguments.whole("block_length", value)
    if not isinstance(value, jax.core.Tracer) and (shortest := int(np.min(np.asarray(value)))) < 1:
        raise InputError(f"block_length must be at least 1, not {shortest}")
    return value


def coordinates_of(mask: Mask, length: int) -> Coordinates:
    """The coordinates of rows of `length` tokens under a mask's rule."""
    position: Any = mask.positions
    segment: Any = mask.segment_ids
    clean = None
    if mask.is_real is not None:
        segment = module_of(mask.is_real, segment).where(mask.is_real, 0 if segment is None else segment, -1)
    if mask.kind == "block_diffusion":
        clean = np.arange(length)[None] >= length // 2
        position = np.tile(np.arange(length // 2, dtype=np.int32), 2)[None] if position is None else position
    if mask.hides_no_block:
        return Coordinates(position, segment)
    counted = np.arange(length, dtype=np.int32)[None] if position is None else position
    assert mask.block_length is not None
    block = block_of(counted, 0 if mask.prompt_length is None else mask.prompt_length, mask.block_length)
    until = until_of(mask.kind or "full", block, prompt_sees_answer=mask.prompt_sees_answer)
    return Coordinates(position, segment, block, clean, until)


def for_model(
    mask: Mask | Coordinates | Bool[Array, "R L L"] | None, config: ModelConfig, rows: int, length: int
) -> Coordinates | Bool[Array, "R L L"]:
    """A mask as the model takes it: what is not said is the model's own visibility, and what is given fits the input.

    Raises:
        InputError: a mask that is neither bool nor 0 and 1, or whose shape does not fit `rows` × `length` tokens.
    """
    if mask is None or isinstance(mask, Mask):
        mask = _fitting(_with_own_rule(mask or Mask(), config), rows, length)
        if mask.prompt_length is not None:
            arguments.within("prompt_length", mask.prompt_length, length)
        return coordinates_of(mask, length)
    if isinstance(mask, Coordinates):
        return fitting(mask, rows, length)
    allowed = arguments.truth("mask", mask)
    if allowed.ndim == 4 and allowed.shape[1] == 1:  # transformers' axis for heads
        allowed = allowed[:, 0]
    if allowed.ndim != 3 or allowed.shape[0] not in (1, rows) or allowed.shape[1:] != (length, length):
        hint = "; padding is told by q.Mask(is_real=…)" if allowed.ndim == 2 else ""
        raise InputError(
            f"mask must be [{rows} or 1, {length}, {length}], who (rows) may look where (columns), "
            f"not of shape {list(allowed.shape)}{hint}"
        )
    return allowed


def positions_of(
    mask: Coordinates | Bool[Array, "R L L"] | None, positions: Int[Array, "R L"] | None, rows: int, length: int
) -> Int[Array, "R L"]:
    """The rotary positions of an input: those given, else the mask's, so that both count alike.

    Raises:
        InputError: they are no whole numbers, or do not fit `rows` × `length` tokens.
    """
    if positions is None and isinstance(mask, Coordinates):
        positions = None if mask.position is None else jnp.asarray(mask.position)
    if positions is None:
        return jnp.arange(length, dtype=jnp.int32)[None]
    positions = jnp.asarray(arguments.whole_rows("positions", positions))
    check_shape("positions", positions.shape, (rows, length))
    return positions


def _with_own_rule(mask: Mask, config: ModelConfig) -> Mask:
    if mask.kind is not None:
        return mask
    if mask.prompt_sees_answer:
        raise InputError("prompt_sees_answer belongs to visibility block_bias; name the mask's kind")
    own = config.block_length if mask.block_length is None else mask.block_length
    if config.causal_context and mask.block_length is None:
        own = 1  # all of it is context
    block = None if config.visibility == "full" else own
    sees = config.prompt_sees_answer and config.visibility == "block_bias"
    return dataclasses.replace(mask, kind=config.visibility, block_length=block, prompt_sees_answer=sees)


def _fitting(mask: Mask, rows: int, length: int) -> Mask:
    """The mask with its arrays as arrays, of shapes that fit."""
    if mask.kind == "block_diffusion" and length % 2:
        raise InputError(f"visibility block_diffusion takes [noisy ; clean], an even number of tokens, not {length}")
    if isinstance(mask.block_length, jax.Array | np.ndarray) and mask.block_length.ndim:
        check_shape("block_length", mask.block_length.shape, (rows,))
    changed: dict[str, Any] = {}
    if mask.prompt_length is not None:
        if np.ndim(mask.prompt_length) == 0 and not isinstance(mask.prompt_length, jax.core.Tracer):
            changed["prompt_length"] = np.full(1, arguments.whole("prompt_length", mask.prompt_length), np.int32)
        else:
            changed["prompt_length"] = arguments.rows("prompt_length", mask.prompt_length, "[B]")
        check_shape("prompt_length", changed["prompt_length"].shape, (rows,))
    for name in ("segment_ids", "positions", "is_real"):
        if getattr(mask, name) is not None:
            take = arguments.truth if name == "is_real" else arguments.whole_rows
            changed[name] = take(name, getattr(mask, name))
            check_shape(name, changed[name].shape, (rows, length))
    return dataclasses.replace(mask, **changed)


def dense(mask: Mask | Coordinates, length: int) -> Bool[Array, "R L L"]:
    """allowed[r, i, j]: may position i of row r attend to position j? R is B, or 1 when all rows agree."""
    rows = max((np.shape(x)[0] for x in jax.tree.leaves(mask) if np.ndim(x)), default=1)
    if isinstance(mask, Mask):
        return coordinates.dense(coordinates_of(_fitting(mask, rows, length), length), length)
    return coordinates.dense(fitting(mask, rows, length), length)


def describe(mask: Mask | Coordinates, length: int, row: int = 0) -> str:
    """A picture in characters: one line per query, `#` where it may look, `·` where not."""
    allowed = np.asarray(dense(mask, length))
    return "\n".join("".join("#" if cell else "·" for cell in line) for line in allowed[min(row, len(allowed) - 1)])
