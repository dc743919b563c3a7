"""Who may attend to whom: one formula on coordinates that tokens carry.

With q the looking token and k the looked-at one,

    own    = (k.block == q.block) & (k.clean == q.clean)
    before = k.clean & (k.block < q.until)
    sees   = (own | before) & (k.segment == q.segment)

A row is a prompt, all of it block -1, and an answer cut into blocks. The kinds of `Mask` (masks.py) are choices:

| visibility     | a token sees                                                         | until     | clean      |
|----------------|----------------------------------------------------------------------|-----------|------------|
| full           | everything (LLaDA, arXiv 2502.09992)                                 | one block | all        |
| block_bias     | the prompt and its own block                                         | 0         | all        |
| block_causal   | the prompt, all earlier blocks and its own (BD3-LM, arXiv 2503.09573)| own block | all        |
| block_diffusion| input [noisy ; clean]: a noisy block sees itself and the clean blocks| own block | the second |
|                | before it, a clean block the clean blocks up to itself (BD3-LM, 3.3) |           | half       |

Causal attention is one token per block. Documents of a packed row are segments, padding is segment -1.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError

_ALL_BLOCKS = np.int32(2**31 - 1)  # no block is numbered higher


class Run(NamedTuple):
    """Tokens of every row, and all that any of them may see.

    Attributes:
        begin, end: the tokens, [begin, end).
        keys: stretches of positions that they may see.
        own: beside these, a token sees positions of the run itself, those of its own part of so many tokens.
    """

    begin: int
    end: int
    keys: tuple[tuple[int, int], ...]
    own: int | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["position", "segment", "block", "clean", "until"],
    meta_fields=["runs"],
)
@dataclass(frozen=True)
class Coordinates:
    """Where each token stands: arrays [R, L] with R = B, or 1 where all rows agree.

    Numpy arrays are known while compiling: splash attention skips what a rule for all rows hides. Others are data:
    whatever their numbers, the program stays the same.

    Attributes:
        position: rotary position; None: 0 … L-1.
        segment: document, -1 for padding: tokens see their own segment only. None: one segment.
        block: -1 for a prompt, then 0, 1, …, of any lengths. None: all one block.
        clean: False for the noisy half of block diffusion, which only noisy tokens of the same block see; needs
            `block`. None: all are clean.
        until: beside its own block a token sees the clean blocks of lower numbers than this (0: the prompt alone);
            needs `block`. None: its own block's number, so all earlier blocks.
        runs: what is known of all this while compiling: the tokens in runs, one after another from the first, each with
            the keys that it may see at most. Attention computes no other pair where its kernel takes no rule.
    """

    position: Int[Array | np.ndarray, "R L"] | None = None
    segment: Int[Array | np.ndarray, "R L"] | None = None
    block: Int[Array | np.ndarray, "R L"] | None = None
    clean: Bool[Array | np.ndarray, "R L"] | None = None
    until: Int[Array | np.ndarray, "R L"] | None = None
    runs: tuple[Run, ...] | None = None

    @property
    def sees_everything(self) -> bool:
        """True when no pair of tokens is hidden: attention needs no mask at all."""
        return self.block is None and self.segment is None


def sees(q: Coordinates, k: Coordinates) -> Bool[Array, "R Q K"] | None:
    """The formula: may token i of `q` attend to token j of `k`? None: all may. Numpy where all of it is."""
    allowed = None
    if q.block is not None and k.block is not None:
        until = q.block if q.until is None else q.until
        own, before = q.block[:, :, None] == k.block[:, None], k.block[:, None] < until[:, :, None]
        if q.clean is not None and k.clean is not None:
            own, before = own & (q.clean[:, :, None] == k.clean[:, None]), before & k.clean[:, None]
        allowed = own | before
    if q.segment is not None and k.segment is not None:
        same = q.segment[:, :, None] == k.segment[:, None]
        allowed = same if allowed is None else allowed & same
    return allowed


def dense(tokens: Coordinates, length: int) -> Bool[Array, "R L L"]:
    """allowed[r, i, j]: may position i of row r attend to position j? R is B, or 1 when all rows agree."""
    tokens = jax.tree.map(jnp.asarray, tokens)  # of numpy the program would hold L · L constants, not L
    allowed = sees(tokens, tokens)
    return jnp.ones((1, length, length), bool) if allowed is None else allowed


@partial(jax.tree_util.register_dataclass, data_fields=["allowed", "own"], meta_fields=["runs"])
@dataclass(frozen=True)
class Tiles:
    """A dense mask in parts: of each run, who of its tokens may see which of its keys.

    Attributes:
        allowed: [R, tokens of the run, its keys] for each run; None: all, or it has no keys.
        own: [R, parts, own, own] for each run that has an own part; None: all.
    """

    runs: tuple[Run, ...]
    allowed: tuple[Bool[Array, "R Q K"] | None, ...]
    own: tuple[Bool[Array, "R P S S"] | None, ...]


def tiles(mask: Coordinates, where: Int[Array, "B W"] | None = None) -> Tiles:
    """The dense mask of coordinates with `runs`, but for what no run may see.

    Args:
        where: the positions that look, in the place of all: the n-th of them is the n-th of the runs' tokens.
    """
    runs, mask = mask.runs, dataclasses.replace(jax.tree.map(jnp.asarray, mask), runs=None)
    assert runs is not None
    queries = mask if where is None else jax.tree.map(lambda x: rows_at(x, where), mask)
    if where is not None:
        runs = tuple(run for run in runs if run.end <= where.shape[1])
    allowed: list[Any] = []
    own: list[Any] = []
    for begin, end, keys, size in runs:
        here = jax.tree.map(lambda x: x[:, begin:end], queries)  # noqa: B023 - called at once
        allowed.append(sees(here, jax.tree.map(lambda x: stretches(x, keys), mask)) if keys else None)  # noqa: B023
        if size is None:
            own.append(None)
            continue
        there = jax.tree.map(lambda x: x[:, begin:end], mask)  # noqa: B023
        parts = (jax.tree.map(lambda x: x.reshape(len(x), -1, size), x) for x in (here, there))  # noqa: B023
        own.append(jax.vmap(sees, in_axes=1, out_axes=1)(*parts))
    return Tiles(runs, tuple(allowed), tuple(own))


def stretches(array: Array, keys: tuple[tuple[int, int], ...]) -> Array:
    """Of [R, L, …] the positions of some stretches, one behind the other."""
    return jnp.concatenate([array[:, begin:end] for begin, end in keys], axis=1)


def laid_out(
    mask: Coordinates | Bool[Array, "R L L"] | None, length: int, *, in_runs: bool
) -> Tiles | Bool[Array, "R L L"] | None:
    """A mask as pairs of positions: dense, or in runs where it has any; None: all is seen."""
    if not isinstance(mask, Coordinates):
        return mask
    if mask.sees_everything:
        return None
    return tiles(mask) if in_runs and mask.runs else dense(mask, length)


def seen_from(
    mask: Coordinates | Bool[Array, "R L L"] | None, where: Int[Array, "B W"]
) -> Tiles | Bool[Array, "B W L"] | None:
    """What the positions `where` may see, as pairs; the n-th of them stands in for the n-th of a mask's runs."""
    if isinstance(mask, Coordinates) and mask.runs:
        return tiles(mask, where)
    if isinstance(mask, Coordinates):
        return sees(jax.tree.map(lambda x: rows_at(x, where), mask), mask)
    return None if mask is None else rows_at(mask, where)


def rows_at(array: Float[Array | np.ndarray, "R L ..."], where: Int[Array, "B W"]) -> Float[Array, "B W ..."]:
    """Of each row the positions `where`; R = B, or 1 for an array that all rows share."""
    rows = jnp.arange(where.shape[0])[:, None] if array.shape[0] > 1 else 0
    return jnp.asarray(array)[rows, where]


def block_of(
    position: Int[Array | np.ndarray, "R L"],
    prompt_length: Int[Array | np.ndarray, " B"] | int,
    block_length: Int[Array | np.ndarray, "*B"] | int,
) -> Int[Any, "R L"]:
    """The coordinate `block`: (position - prompt_length) // block_length, and -1 in the prompt.

    Args:
        prompt_length, block_length: of all rows, or of each.
    """
    prompt, length = (x if isinstance(x, int) or not x.ndim else x[:, None] for x in (prompt_length, block_length))
    xp = module_of(position, prompt, length)
    return xp.maximum((xp.asarray(position, np.int32) - prompt) // length, -1).astype(np.int32)


def until_of(kind: str, block: Int[Any, "R L"], *, prompt_sees_answer: bool = False) -> Int[Any, "R L"] | None:
    """The coordinate `until` of a kind of mask (masks.py)."""
    if kind != "block_bias":
        return None
    xp = module_of(block)
    return xp.where(block == -1, _ALL_BLOCKS, 0) if prompt_sees_answer else xp.zeros_like(block[:1])


def module_of(*arrays: Any) -> Any:
    """What to compute with, so that numpy stays numpy."""
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def fitting(tokens: Coordinates, rows: int, length: int) -> Coordinates:
    """Coordinates that a caller gave: as arrays, for `rows` × `length` tokens.

    Raises:
        InputError: what are no whole numbers, shapes that do not fit, or `clean` or `until` without `block`.
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(Coordinates):
        if field.name == "runs":
            _check_runs(tokens.runs, length)
        elif (value := getattr(tokens, field.name)) is not None:
            take = arguments.truth if field.name == "clean" else arguments.whole_rows
            changed[field.name] = take(field.name, value)
            check_shape(field.name, changed[field.name].shape, (rows, length))
    for name in ("clean", "until"):
        if name in changed and "block" not in changed:
            raise InputError(f"coordinates: {name} has no effect without block; give both")
    return Coordinates(**changed, runs=tokens.runs)


def _check_runs(runs: tuple[Run, ...] | None, length: int) -> None:
    """One behind the other, all tokens in them, and no key outside."""
    if runs is None:
        return
    begins, ends = [run.begin for run in runs], [run.end for run in runs]
    keys = [stretch for run in runs for stretch in run.keys]
    parted = all(run.own is None or (run.own > 0 and (run.end - run.begin) % run.own == 0) for run in runs)
    whole = begins == [0, *ends[:-1]] and ends[-1:] == [length] and all(map(lambda b, e: b < e, begins, ends))
    if not whole or not parted or not all(0 <= begin < end <= length for begin, end in keys):
        raise InputError(f"coordinates: runs must be stretches of the tokens 0 … {length}, all of them, in order")


def check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """One entry a row, or one for all rows."""
    if len(found) != len(wanted) or found[0] not in (1, wanted[0]) or found[1:] != wanted[1:]:
        raise InputError(f"{name} must be of shape {list(wanted)}, as the tokens are, not {list(found)}")
