"""Who may attend to whom, as a small value.

A row is a prompt of `prompt_length` tokens (0 in pretraining) and an answer cut into blocks of
`block_length`; token i of the answer is in block b(i) = (i - prompt_length) // block_length, and every
prompt token counts as block -1.

| visibility     | a token sees                                                                        |
|----------------|-------------------------------------------------------------------------------------|
| full           | everything (LLaDA, arXiv 2502.09992)                                                |
| block_bias     | the prompt and its own block                                                        |
| block_causal   | the prompt, all earlier blocks and its own (BD3-LM, arXiv 2503.09573)               |
| block_diffusion| input [noisy ; clean]: a noisy block sees itself and the clean blocks before it, a  |
|                | clean block the clean blocks up to itself (BD3-LM, section 3.3)                     |

Documents of a packed row (`segment_ids`) and padding (`is_real`) combine with any of them.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.model.config import ModelConfig

KINDS = ("full", "block_bias", "block_causal", "block_diffusion")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["prompt_length", "segment_ids", "positions", "is_real"],
    meta_fields=["kind", "block_length", "prompt_sees_answer"],
)
@dataclass(frozen=True)
class Mask:
    """A visibility rule and the rows it applies to. `L` is the length of the model's input.

    Attributes:
        kind: one of `KINDS`; None: the model's own rule, with its block length (`full` where no model is asked).
        block_length: tokens of a block; needed by every kind but `full`.
        prompt_sees_answer: under `block_bias`, prompt tokens also see all answers (the PyTorch system's
            rule); off by default, so that the prompt's keys and values never depend on the answer.
        prompt_length: [B] tokens of each row's prompt, or one number for all rows; None means 0.
        segment_ids: [B, L] document number of each token; tokens see their own document only.
        positions: [B, L] position within the document, which blocks are counted by, and the model's rotary
            positions where it is given no others; None means 0 … L-1 (0 … L/2-1 twice for `block_diffusion`).
        is_real: [B, L] False where a token is padding, which nobody sees.
    """

    kind: str | None = None
    block_length: int | None = None
    prompt_sees_answer: bool = False
    prompt_length: Int[Array, " B"] | None = field(default=None)
    segment_ids: Int[Array, "B L"] | None = None
    positions: Int[Array, "B L"] | None = None
    is_real: Bool[Array, "B L"] | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise InputError(f"visibility {shown(self.kind)} is unknown; choose one of {', '.join(KINDS)}")
        if self.block_length is not None:
            blocks = arguments.whole("block_length", self.block_length)
            if blocks < 1:
                raise InputError(f"block_length must be at least 1, not {blocks}")
            object.__setattr__(self, "block_length", blocks)
        elif not self.hides_no_block:
            raise InputError(f"visibility {self.kind} needs a block_length")
        object.__setattr__(self, "prompt_sees_answer", arguments.flag("prompt_sees_answer", self.prompt_sees_answer))
        if self.prompt_sees_answer and self.kind not in (None, "block_bias"):
            raise InputError(f"prompt_sees_answer has no effect with visibility {self.kind}; it belongs to block_bias")

    @property
    def hides_no_block(self) -> bool:
        """True under `full`."""
        return self.kind in (None, "full")

    @property
    def sees_everything(self) -> bool:
        """True when no pair of positions is hidden: attention needs no mask at all."""
        return self.hides_no_block and self.segment_ids is None and self.is_real is None

    @property
    def is_static(self) -> bool:
        """True when the block rule is the same for every row and known while tracing."""
        return self.hides_no_block or (self.prompt_length is None and self.positions is None)


def for_model(
    mask: Mask | Bool[Array, "R L L"] | None, config: ModelConfig, rows: int, length: int
) -> Mask | Bool[Array, "R L L"] | None:
    """A mask as the model takes it: what is not said is the model's own visibility, and what is given fits the input.

    Returns:
        None where everyone sees everyone.

    Raises:
        InputError: a mask that is neither bool nor 0 and 1, or whose shape does not fit `rows` × `length` tokens.
    """
    if mask is None:
        mask = Mask()
    if isinstance(mask, Mask):
        mask = _fitting(_with_own_rule(mask, config), rows, length)
        return None if mask.sees_everything else mask
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
    mask: Mask | Bool[Array, "R L L"] | None, positions: Int[Array, "R L"] | None, rows: int, length: int
) -> Int[Array, "R L"]:
    """The rotary positions of an input: those given, else the mask's, so that both count alike.

    Raises:
        InputError: they are no whole numbers, or do not fit `rows` × `length` tokens.
    """
    if positions is None and isinstance(mask, Mask):
        positions = mask.positions
        if positions is None and mask.kind == "block_diffusion":
            positions = jnp.tile(jnp.arange(length // 2, dtype=jnp.int32), 2)[None]
    if positions is None:
        return jnp.arange(length, dtype=jnp.int32)[None]
    positions = jnp.asarray(arguments.rows("positions", positions))
    _check_shape("positions", positions.shape, (rows, length))
    return positions


def _with_own_rule(mask: Mask, config: ModelConfig) -> Mask:
    if mask.kind is not None:
        return mask
    if mask.prompt_sees_answer:
        raise InputError("prompt_sees_answer belongs to visibility block_bias; name the mask's kind")
    is_full = config.visibility == "full"
    block = None if is_full else mask.block_length or config.block_length
    sees = config.prompt_sees_answer and config.visibility == "block_bias"
    return dataclasses.replace(mask, kind=config.visibility, block_length=block, prompt_sees_answer=sees)


def _fitting(mask: Mask, rows: int, length: int) -> Mask:
    """The mask with its arrays as arrays, of shapes that fit."""
    if mask.kind == "block_diffusion" and length % 2:
        raise InputError(f"visibility block_diffusion takes [noisy ; clean], an even number of tokens, not {length}")
    changed: dict[str, Any] = {}
    if mask.prompt_length is not None:
        if np.ndim(mask.prompt_length) == 0 and not isinstance(mask.prompt_length, jax.core.Tracer):
            changed["prompt_length"] = np.full(rows, arguments.whole("prompt_length", mask.prompt_length), np.int32)
        else:
            changed["prompt_length"] = arguments.rows("prompt_length", mask.prompt_length, "[B]")
        _check_shape("prompt_length", changed["prompt_length"].shape, (rows,))
        arguments.within("prompt_length", changed["prompt_length"], length)
    for name in ("segment_ids", "positions"):
        if getattr(mask, name) is not None:
            changed[name] = arguments.rows(name, getattr(mask, name))
            _check_shape(name, changed[name].shape, (rows, length))
    if mask.is_real is not None:
        changed["is_real"] = arguments.truth("is_real", mask.is_real)
        _check_shape("is_real", changed["is_real"].shape, (rows, length))
    return dataclasses.replace(mask, **changed)


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """One entry a row, or one for all rows."""
    if len(found) != len(wanted) or found[0] not in (1, wanted[0]) or found[1:] != wanted[1:]:
        raise InputError(f"{name} must be of shape {list(wanted)}, as the tokens are, not {list(found)}")


def dense(mask: Mask, length: int) -> Bool[Array, "R L L"]:
    """allowed[r, i, j]: may position i of row r attend to position j? R is B, or 1 when all rows agree."""
    allowed = block_rule(mask, length)
    if mask.segment_ids is not None:
        allowed = allowed & (mask.segment_ids[:, :, None] == mask.segment_ids[:, None, :])
    if mask.is_real is not None:
        allowed = allowed & mask.is_real[:, None, :]
    return allowed


def block_rule(mask: Mask, length: int) -> Bool[Array, "R L L"]:
    """The visibility rule alone, without documents and padding."""
    if mask.hides_no_block:
        return jnp.ones((1, length, length), bool)
    xp = np if mask.is_static else jnp  # a static rule stays a constant that splash can look into
    block = _block_of(mask, length, xp)
    of_query, of_key = block[:, :, None], block[:, None, :]
    if mask.kind != "block_diffusion":
        return _between(mask, of_query, of_key)
    is_clean = xp.arange(length) >= length // 2
    query_clean, key_clean = is_clean[None, :, None], is_clean[None, None, :]
    own_noisy = ~query_clean & ~key_clean & (of_query == of_key)
    earlier_clean = ~query_clean & key_clean & (of_key < of_query)
    clean = query_clean & key_clean & (of_key <= of_query)
    return own_noisy | earlier_clean | clean


def seen_from(
    mask: "Mask | Bool[Array, 'R L L'] | None", where: Int[Array, "B W"], length: int
) -> Bool[Array, "B W L"] | None:
    """The rows of `dense`, or of a dense mask, that belong to the positions `where`.

    Documents of packed rows and `block_diffusion` are for training: not here.
    """
    if not isinstance(mask, Mask):
        return None if mask is None else rows_at(mask, where)
    if mask.segment_ids is not None or mask.kind == "block_diffusion":
        raise InputError(
            "hidden states of some positions are not given under documents or block_diffusion; ask for all"
        )
    allowed = jnp.ones((*where.shape, length), bool)
    if not mask.hides_no_block:
        block = jnp.broadcast_to(_block_of(mask, length, jnp), (where.shape[0], length))
        allowed = _between(mask, jnp.take_along_axis(block, where, axis=1)[:, :, None], block[:, None, :])
    return allowed if mask.is_real is None else allowed & mask.is_real[:, None, :]


def rows_at(array: Float[Array, "R L ..."], where: Int[Array, "B W"]) -> Float[Array, "B W ..."]:
    """Of each row the positions `where`; R = B, or 1 for an array that all rows share."""
    rows = jnp.arange(where.shape[0])[:, None] if array.shape[0] > 1 else 0
    return array[rows, where]


def _between(mask: Mask, of_query: Array, of_key: Array) -> Bool[Array, "R Q L"]:
    """The block rules, from the block numbers of queries and keys."""
    if mask.kind == "block_causal":
        return of_key <= of_query
    allowed = (of_query == of_key) | (of_key == -1)
    return allowed | (of_query == -1) if mask.prompt_sees_answer else allowed


def _block_of(mask: Mask, length: int, xp):  # noqa: ANN001, ANN202 - numpy or jax.numpy, and its array
    """[R, L] block number of each position, -1 for the prompt."""
    if mask.positions is not None:
        positions = mask.positions
    elif mask.kind == "block_diffusion":
        positions = xp.tile(xp.arange(length // 2), 2)[None]
    else:
        positions = xp.arange(length)[None]
    assert mask.block_length is not None
    prompt = 0 if mask.prompt_length is None else mask.prompt_length[:, None]
    return xp.maximum((positions - prompt) // mask.block_length, -1)


def describe(mask: Mask, length: int, row: int = 0) -> str:
    """A picture in characters: one line per query, `#` where it may look, `·` where not."""
    allowed = np.asarray(dense(mask, length))
    return "\n".join("".join("#" if cell else "·" for cell in line) for line in allowed[min(row, len(allowed) - 1)])
