"""What a program of the sampler takes, and what it is compiled for."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from qwen3llada_jax.sampling.slots import Rule


class Parameters(NamedTuple):
    """The rules, and the numbers beside them; None: off. Each number is one for all rows, or [B].

    Attributes:
        order, commit, draw, remask, stop, finish, edit: rules.
    """

    order: Rule
    commit: Rule
    draw: Rule
    remask: Rule | None
    stop: Rule | None
    cfg_scale: Float[Array, "..."] | None
    repetition_penalty: Float[Array, "..."] | None
    min_length: Int[Array, "..."] | None
    sub_block_length: Int[Array, "..."] | None = None
    finish: Rule | None = None
    edit: Rule | None = None


@dataclass(frozen=True)
class Structure:
    """What a program is compiled for, beside shapes and rules: of `SamplerConfig`, complete, and of the model.

    Attributes:
        shift: the token of a position is predicted at the position before it; position 0 keeps its own.
        block_origin: where blocks are counted from (`config.origin_of`).
        is_eos_last: EOS is written last in its block.
        speculate: blocks are drafts that are verified from left to right (passes/speculation.py).
        cfg_branches: forward passes of a step; guidance needs one more, without the prompt.
    """

    block_length: int
    visibility: str
    cache: str
    parallel_blocks: bool
    is_eos_last: bool
    cfg_branches: int
    mask_token_id: int
    shift: bool
    block_origin: str
    speculate: bool = False

    @property
    def is_autoregressive(self) -> bool:
        """Whether a token sees those before it alone, and is predicted by the last of them."""
        return self.shift and self.block_length == 1 and self.visibility == "block_causal"
