"""Writing until a stop string: a text ends before the first, and its row as soon as what is final of it holds one.

Rows are an engine's, so that the next request takes the place of one that has ended.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.config import SamplerConfig, whole_blocks
from qwen3llada_jax.sampling.engine import Engine
from qwen3llada_jax.sampling.layout import bucket
from qwen3llada_jax.text.tokens import up_to_stop
from qwen3llada_jax.writing.completions import rows_of_a_batch, text_of
from qwen3llada_jax.writing.opening import Folder


@dataclass(frozen=True)
class Asked:
    """A text to write.

    Attributes:
        until: strings that it ends before.
        most: tokens; it is written in whole blocks, and cut.
        settings: with `eos_token_ids`.
    """

    ids: tuple[int, ...]
    key: PRNGKeyArray
    until: tuple[str, ...]
    most: int
    settings: SamplerConfig


class Text(NamedTuple):
    """A finished text, the tokens that were written of it, and its forward passes."""

    text: str
    tokens: int
    nfe: int


def room(settings: SamplerConfig, config: ModelConfig) -> int:
    """Tokens of a prompt that positions hold beside what is written."""
    return config.max_position_embeddings - settings.gen_length - whole_blocks(settings.for_model(config), config) + 1


def write(model: Qwen3LLaDA, folder: Folder, asked: Sequence[Asked], batch_size: int) -> Iterator[tuple[int, Text]]:
    """(its number, the text) of every request as it is done. What stands beside it changes nothing (float32).

    Raises:
        InputError: as `Engine`, or logits that are not finite.
    """
    groups: dict[Any, list[int]] = {}
    for number, one in enumerate(asked):
        whole = whole_blocks(one.settings.for_model(model.config), model.config)
        length = -(-(len(one.ids) + one.settings.gen_length) // whole) * whole
        groups.setdefault((bucket(length), one.settings), []).append(number)
    for (length, settings), numbers in groups.items():
        size = rows_of_a_batch(len(numbers), batch_size, folder.ways)
        with folder.on_mesh():
            engine = Engine(model, settings, slots=size, length=length)
            yield from _served(engine, folder.tokenizer, {number: asked[number] for number in numbers})


def _served(engine: Engine, tokenizer: Any, asked: Mapping[int, Asked]) -> Iterator[tuple[int, Text]]:
    """The texts of requests that one engine writes."""
    waiting, at = list(asked), dict[int, int]()  # slot → number of its request
    seen: dict[int, int] = {}  # slot → final tokens that were looked through
    while waiting or at:
        for slot in engine.free[: len(waiting)]:
            at[slot], seen[slot] = waiting.pop(0), 0
            one = asked[at[slot]]
            engine.admit(slot, one.ids, one.settings, key=one.key)
        # A stop string may be there after any pass.
        engine.advance(1 if any(asked[number].until for number in at.values()) else None)
        for done in engine.harvest():
            if done.error:
                raise InputError("the model's logits are not finite; weights are damaged, or float16 overflows")
            number, (ids,) = at.pop(done.slot), done.result.answers()
            yield number, _text(tokenizer, asked[number], ids, int(done.result.nfe[0]))[0]
        for slot, written in engine.look().items():
            if len(written.ids) == seen[slot]:
                continue
            seen[slot] = len(written.ids)
            text, is_stopped = _text(tokenizer, asked[at[slot]], written.ids, written.nfe)
            if is_stopped:
                engine.cancel(slot)
                yield at.pop(slot), text


def _text(tokenizer: Any, one: Asked, ids: list[int], nfe: int) -> tuple[Text, bool]:
    """(the text of ids before the first stop string, whether there is one)."""
    ids = up_to_stop(ids[: one.most], one.settings.eos_token_ids or ())
    text = text_of(tokenizer, ids)
    ends = [place for stop in one.until if (place := text.find(stop)) >= 0]
    return Text(text[: min(ends, default=len(text))], len(ids), nfe), bool(ends)
