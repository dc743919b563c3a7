"""What an objective is: a function `(batch, key, step) → Example`.

An Example is what the model reads, what it is asked and where, and what each answer weighs. The training step and the
evaluation know no more of an objective.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax.model.coordinates import Coordinates
from qwen3llada_jax.model.masks import Mask


class DeviceBatch(NamedTuple):
    """A batch on its devices: fields as in `loader.Batch`, whose `used_length` is the real length here, and the numbers
    of its rows, which their noise depends on."""

    tokens: Int[Array, "B L"]
    prompt_length: Int[Array, " B"]
    real_length: Int[Array, " B"]
    row_ids: Int[Array, " B"]
    segment_ids: Int[Array, "B L"] | None = None
    positions: Int[Array, "B L"] | None = None


class Example(NamedTuple):
    """What there is to learn of a batch, in rows of M tokens, of which A are asked for something; B is the batch's
    rows, or a multiple. Its loss is Σ weight · ce over the places `where`.

    Attributes:
        inputs: [B, M] ids that the model reads; M is the batch's L, or more ([noisy ; clean]: 2 L).
        targets: [B, A] the id that each place is asked for.
        weight: [B, A] coefficient of a place's cross-entropy in the loss of the whole batch.
        where: [B, A] places that are asked; no other goes through the head.
        t: [B, A] noise level of each token, which the loss is also reported by.
        tokens: [B] real tokens of each row.
        share: [B] of what the loss is a mean over, each row's part: losses of batches add up by its sum.
        mask: who sees whom, and the positions; its arrays have an entry for each row, or one for all.
        at: [B, A] the position in `inputs` that answers at each place; None: A is M, each position at its own.
        is_next: [B, A] places that are asked for the token after clean text, where nothing is noised: their
            cross-entropy is reported apart. None: nowhere.
        positions: [R, M] rotary positions; None: those of the mask.
    """

    inputs: Int[Array, "B M"]
    targets: Int[Array, "B A"]
    weight: Float[Array, "B A"]
    where: Bool[Array, "B A"]
    t: Float[Array, "B A"]
    tokens: Int[Array, " B"]
    share: Int[Array, " B"]
    mask: Mask | Coordinates | Bool[Array, "R M M"]
    at: Int[Array, "B A"] | None = None
    is_next: Bool[Array, "B A"] | None = None
    positions: Int[Array, "R M"] | None = None


Objective = Callable[[DeviceBatch, PRNGKeyArray, Int[Array, ""]], Example]
