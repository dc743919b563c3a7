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

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.errors import InputError

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
        kind: one of `KINDS`.
        block_length: tokens of a block; needed by every kind but `full`.
        prompt_sees_answer: under `block_bias`, prompt tokens also see all answers (the PyTorch system's
            rule); off by default, so that the prompt's keys and values never depend on the answer.
        prompt_length: [B] tokens of each row's prompt; None means 0.
        segment_ids: [B, L] document number of each token; tokens see their own document only.
        positions: [B, L] position within the document, which blocks are counted by; None means 0 … L-1
            (0 … L/2-1 twice for `block_diffusion`).
        is_real: [B, L] False where a token is padding, which nobody sees.
    """

    kind: str = "full"
    block_length: int | None = None
    prompt_sees_answer: bool = False
    prompt_length: Int[Array, " B"] | None = field(default=None)
    segment_ids: Int[Array, "B L"] | None = None
    positions: Int[Array, "B L"] | None = None
    is_real: Bool[Array, "B L"] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"visibility {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.kind != "full" and not self.block_length:
            raise InputError(f"visibility {self.kind} needs a block_length")

    @property
    def sees_everything(self) -> bool:
        """True when no pair of positions is hidden: attention needs no mask at all."""
        return self.kind == "full" and self.segment_ids is None and self.is_real is None

    @property
    def is_static(self) -> bool:
        """True when the block rule is the same for every row and known while tracing."""
        return self.kind == "full" or (self.prompt_length is None and self.positions is None)


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
    if mask.kind == "full":
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
    assert mask.segment_ids is None
    assert mask.kind != "block_diffusion"
    allowed = jnp.ones((*where.shape, length), bool)
    if mask.kind != "full":
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
