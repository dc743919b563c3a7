"""What a model is asked for noised tokens: how a row is read under each visibility, and which tokens are one block.

| visibility                  | tokens in any order | a row is read                                              |
|-----------------------------|---------------------|------------------------------------------------------------|
| full                        | all of them         | once, noised                                               |
| block_bias                  | each block's        | once, noised: blocks see nothing of one another            |
| block_bias, shift           | each block's        | [noisy ; clean]: a block's first token is asked before it  |
| block_bias, prompt sees all | all of them         | once, noised                                               |
| block_causal                | each block's        | [noisy ; clean]: behind clean earlier blocks               |
| block_causal, S = 1, shift  | nothing to choose   | once, clean: the chain rule                                |
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax.block_diffusion import NoisyClean, asked_at, block_begins, noisy_clean, twice
from qwen3llada_jax.cross_entropy import cross_entropy
from qwen3llada_jax.diffusion import shift_right
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.coordinates import Coordinates, block_of
from qwen3llada_jax.model.masks import Mask, coordinates_of
from qwen3llada_jax.model.model import Qwen3LLaDA


@dataclass(frozen=True)
class Reading:
    """How a model reads; fields as in `ModelConfig`."""

    visibility: str
    block_length: int | None
    prompt_sees_answer: bool
    shift: bool
    block_origin: str
    causal_context: bool
    mask_token_id: int | None

    @property
    def in_blocks(self) -> bool:
        """Whether blocks are noised each on its own."""
        return self.visibility != "full" and not self.prompt_sees_answer

    @property
    def is_chain(self) -> bool:
        """Whether each token is predicted from those before it alone, all in one pass over clean text."""
        return self.visibility == "block_causal" and self.block_length == 1 and self.shift

    def counted_from(self, prompt_length: int) -> int:
        """The position that a row's blocks are counted from."""
        if self.block_origin == "start" or self.block_length is None:
            return 0
        return prompt_length % self.block_length if self.block_origin == "aligned" else prompt_length

    def blocks_of(self, prompt_length: int, length: int) -> "Blocks":
        """The block of each token that is asked for.

        With shift, a row's first token has no position before it and is given, as a prompt is.
        """
        begin = max(prompt_length, int(self.shift))
        place = np.arange(begin, length, dtype=np.int32)
        if not self.in_blocks:
            return Blocks(np.zeros_like(place), np.full_like(place, len(place)), np.full(len(place), len(place) == 1))
        assert self.block_length is not None
        origin, S = self.counted_from(prompt_length), self.block_length
        first = origin + (place - origin) // S * S
        start = np.maximum(first, begin)
        size = np.minimum(first + S, length) - start
        return Blocks(start - begin, size, (size == 1) | (self.shift & (first == place)))


class Blocks(NamedTuple):
    """Of each of the C tokens that a row is asked for, which block it is in.

    Attributes:
        start: how many tokens are asked for before the block.
        size: how many of the block.
        is_certain: no noise changes what it is predicted from: it is alone, or, with shift, the first of a block, which
            is predicted at clean text. Its mean over the noise is known and needs no draw.
    """

    start: Int[np.ndarray, " C"]
    size: Int[np.ndarray, " C"]
    is_certain: Bool[np.ndarray, " C"]


def reading_of(config: ModelConfig, **said: Any) -> Reading:
    """How a model reads: as it was trained, but for what is `said` otherwise (None: nothing).

    Raises:
        InputError: what does not go together, or no mask token where one is needed.
    """
    said = {name: value for name, value in said.items() if value is not None}
    if said.get("block_length") is not None and said.get("visibility", config.visibility) == "full":
        raise InputError("visibility full has no blocks; leave out block_length, or give visibility block_causal")
    if said.get("visibility", "block_causal") != "block_causal":
        said = {"block_origin": "prompt", "causal_context": False} | said
    if said.get("visibility", config.visibility) != "block_bias":
        said["prompt_sees_answer"] = False
    config = dataclasses.replace(config, **said)
    names = [field.name for field in dataclasses.fields(Reading)]
    reading = Reading(**{name: getattr(config, name) for name in names})
    if reading.visibility == "full":
        reading = dataclasses.replace(reading, block_length=None)
    if reading.mask_token_id is None and not reading.is_chain:
        raise InputError("the model has no mask token, which text is noised with; give mask_token_id")
    return reading


def cross_entropies(
    model: Qwen3LLaDA,
    tokens: Int[Array, "B L"],
    is_noised: Bool[Array, "B L"],
    length: Int[Array, " B"],
    origin: Int[Array, " B"] | None,
    how: Reading,
    asked: Bool[Array, "B L"] | None = None,
) -> Float[Array, "B L"]:
    """−log p of each noised token, in nats, given the others; elsewhere 0. Which are noised is said, not read off ids.

    Args:
        asked: tokens to give it of, in the place of the noised ones.
        length: real tokens of each row.
        origin: the position that each row's blocks are counted from; None: 0.
    """
    L = tokens.shape[1]
    is_real = jnp.arange(L)[None] < length[:, None]
    mask = Mask(how.visibility, how.block_length, how.prompt_sees_answer, origin, is_real=is_real)
    if how.is_chain:
        mask = dataclasses.replace(mask, prompt_length=None) if how.causal_context else mask
        hidden = shift_right(model.hidden(tokens, mask))
    else:
        noisy = jnp.where(is_noised, jnp.int32(how.mask_token_id), tokens)
        if how.visibility == "block_causal":
            rows = noisy_clean(noisy, tokens, mask, shift=how.shift, causal_context=how.causal_context)
            hidden = model.hidden(rows.inputs, rows.mask, where=rows.at)
        elif how.in_blocks and how.shift:
            rows = _apart(noisy, tokens, mask)
            hidden = model.hidden(rows.inputs, rows.mask, where=rows.at)
        else:
            hidden = model.hidden(noisy, mask)
            hidden = shift_right(hidden) if how.shift else hidden
    return cross_entropy(hidden, model.head, tokens, jnp.zeros(tokens.shape), is_noised if asked is None else asked)[1]


def _apart(noisy: Int[Array, "B L"], clean: Int[Array, "B L"], mask: Mask) -> NoisyClean:
    """Rows [noisy ; clean] of `block_bias` with shift: blocks see the prompt and themselves, noised or clean.

    A block's first token is asked at the last one before it, as when the block before is written already.
    """
    L = clean.shape[1]
    begins, position = block_begins(mask, L)
    block = block_of(position, mask.prompt_length if mask.prompt_length is not None else 0, mask.block_length or L)
    segment: Any = coordinates_of(mask, L).segment
    is_clean, until = np.arange(2 * L)[None] >= L, np.zeros((1, 2 * L), np.int32)
    sees = Coordinates(twice(position), twice(segment), twice(block), is_clean, until)
    at = jnp.broadcast_to(asked_at(begins, position, shift=True), clean.shape)
    return NoisyClean(jnp.concatenate([noisy, clean], axis=1), sees, at)
