"""The sampler's canvas: rows of tokens, which of them are still to be written, and how far the writing has come."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.kv_cache import Cache
from qwen3llada_jax.sampling.parameters import Structure


class Canvas(NamedTuple):
    """What is on the page between two passes.

    Attributes:
        tokens: [B, L] ids; the mask token where nothing is written yet.
        is_masked: [B, L] positions still to be written.
        written_at: [B, L] the row's pass (0, 1, …) that wrote a position; -1: none did (yet).
        confidence: [B, L] probability the model gave a token when it was written; 1 for what was given.
        places: [B, T] the positions to write, `block_length` for each block, in order; L where it has fewer. Where
            blocks are counted from position 0 they are all of a block's, given ones too.
        prompt_length, length: [B] tokens of each row's prompt, and of prompt and answer; where blocks are counted from
            position 0, and what fills the last block up.
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
        written_at, confidence, places: as in `Canvas`, of `places` those of the answer alone.
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
        block: [B, L] block of each token (coordinates.py), as the model counts them (`layout.blocks_of`); None under
            `full`, where all is one block.
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


class Draft(NamedTuple):
    """What was drafted in the pass before, behind the last token that is known (passes/speculation.py).

    Attributes:
        tokens: [B, S - 1] ids, S being the block length.
        is_there: [B] the row has a draft.
        hidden: [B, S - 1, G, D] hidden states that the tokens were drawn from; None: the likeliest were taken.
    """

    tokens: Int[Array, "B S-1"]
    is_there: Bool[Array, " B"]
    hidden: Float[Array, "B S-1 G D"] | None


class SamplerState(NamedTuple):
    """Where every row stands.

    Attributes:
        canvas: what is on the page.
        block, step: [B] the row's current block, and its passes in that block so far.
        to_write: [B, G] masked positions of the current block(s) when begun; G is 1, or all blocks in parallel.
        revised: [B, G] how many of its tokens have been masked again.
        done: [B].
        cache: keys and values, or None.
        memory: what rules remember of the current block's places (passes/memory.py).
        full: [B] passes of the current block since all of it was written; None: no rule replaces what is.
        draft: of self-speculation alone.
    """

    canvas: Canvas
    block: Int[Array, " B"]
    step: Int[Array, " B"]
    to_write: Int[Array, "B G"]
    revised: Int[Array, "B G"]
    done: Bool[Array, " B"]
    cache: Cache | None
    memory: Any = None
    full: Int[Array, " B"] | None = None
    draft: Draft | None = None

    @property
    def begins(self) -> Bool[Array, " B"]:
        """[B] the row's next pass is the first in its block."""
        return (self.step == 0) & ~self.done


def answer_of(
    written: Canvas, is_given: Bool[np.ndarray, "B L"], gen_length: int | None, structure: Structure
) -> Canvas:
    """A canvas whose places are those of the answer alone, and nothing behind it.

    Where blocks are counted from position 0, they hold what was given too, and what fills the last block up.

    Args:
        gen_length: tokens of an answer; None: every hole of a text is asked for.
    """
    if structure.block_origin != "start" or structure.block_length == 1:
        return written
    canvas: Any = on_host(written)
    L = canvas.tokens.shape[1]
    if gen_length is None:
        rows = np.arange(len(canvas.places))[:, None]
        is_hole = ~np.pad(is_given, ((0, 0), (0, 1)), constant_values=True)[rows, canvas.places]
        return canvas._replace(places=np.where(is_hole, canvas.places, L))
    length = canvas.prompt_length + gen_length
    is_behind = np.arange(L) >= length[:, None]
    return canvas._replace(
        tokens=np.where(is_behind, np.int32(structure.mask_token_id), canvas.tokens),
        is_masked=canvas.is_masked & ~is_behind,
        written_at=np.where(is_behind, np.int32(-1), canvas.written_at),
        confidence=np.where(is_behind, np.float32(0), canvas.confidence),
        places=canvas.prompt_length[:, None] + np.arange(gen_length, dtype=np.int32),
        length=length,
    )


def to_host(written: Canvas) -> Generation:
    """The texts of a canvas, without the padding of its bucket, on the host (over several hosts: on each of them)."""
    return texts_of(on_host(written))


def to_host_checked(written: Canvas) -> Generation:
    """`to_host` of a canvas on which nothing more will be written.

    Raises:
        NotFiniteError: rows ended with places still masked.
    """
    canvas = on_host(written)
    unfinished = np.flatnonzero(canvas.is_masked.any(axis=1)).tolist()
    if unfinished:
        raise NotFiniteError(texts_of(canvas), unfinished)
    return texts_of(canvas)


def on_host(written: Canvas) -> Canvas:
    is_here = all(x.is_fully_addressable for x in written if isinstance(x, jax.Array))
    canvas: Any = jax.device_get(written) if is_here else multihost_utils.process_allgather(written, tiled=True)
    return canvas


def texts_of(canvas: Canvas) -> Generation:
    end = int(canvas.length.max())
    tokens, written_at, confidence = (np.asarray(x)[:, :end] for x in canvas[:1] + canvas[2:4])
    places, prompt_length, nfe = (np.asarray(x) for x in (canvas.places, canvas.prompt_length, canvas.nfe))
    return Generation(tokens, prompt_length, written_at, confidence, places, nfe, int(canvas.passes.max()))
