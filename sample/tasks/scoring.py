"""Likelihoods as lm-evaluation-harness asks for them: of continuations behind contexts, and of whole texts.

Text becomes ids as its `hf` model makes them: blanks at a context's end belong to the continuation, both are encoded as
one text and parted where the context ends, and what stands before a first token is the tokenizer's BOS, else its EOS.
A model without shift predicts a token where it stands, so it needs nothing before the first.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.likelihood.api import each, rows_of
from qwen3llada_jax.likelihood.reading import Reading
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import api
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.layout import bucket
from qwen3llada_jax.writing.completions import keys_of
from qwen3llada_jax.writing.opening import Folder
from qwen3llada_jax.writing.requests import Request, encode

from ..measuring.passages import Window, window_of, windows
from ..measuring.tally import check_finite


class Row(NamedTuple):
    """Ids of which those behind the given ones are counted."""

    ids: list[int]
    given: int


class Score(NamedTuple):
    """log p of what is counted, in nats: exact, or a bound below it.

    Attributes:
        tokens: that are counted.
        nfe: rows that the model read.
    """

    log_p: float
    standard_error: float
    tokens: int
    nfe: int

    @property
    def told(self) -> dict[str, Any]:
        """As logged samples have it."""
        of_it = {"standard_error": self.standard_error, "tokens": self.tokens, "nfe": self.nfe}
        return {"log_likelihood": self.log_p, **of_it}


class Encoder:
    """A tokenizer, as lm-evaluation-harness uses it.

    Attributes:
        begin: ids that stand before every text, as the tokenizer itself writes them: [BOS] or nothing.
        before: what a text's first token is predicted behind.
    """

    def __init__(self, tokenizer: Any, *, shift: bool):
        self.tokenizer, bos = tokenizer, tokenizer.bos_token_id
        self.begin = [bos] if bos is not None and tokenizer("").input_ids[:1] == [bos] else []
        first = bos if bos is not None else tokenizer.eos_token_id
        if shift and first is None:
            raise InputError("the tokenizer has neither BOS nor EOS, which a text's first token is predicted behind")
        self.before = self.begin or ([first] if shift else [])

    def whole(self, text: str) -> list[int]:
        """A text with what begins it, unless that is written in it."""
        bos = self.tokenizer.bos_token
        return ([] if bos and text.startswith(bos) else self.begin) + encode(self.tokenizer, text)

    def pair(self, context: str, continuation: str) -> Row:
        """A continuation behind its context."""
        kept = context.rstrip()
        context, continuation = kept, context[len(kept) :] + continuation
        if not context:
            ids = encode(self.tokenizer, continuation)
            is_there = ids[:1] == self.before  # it begins with BOS itself
            return Row(ids if is_there else self.before + ids, len(self.before))
        return Row(self.whole(context + continuation), len(self.whole(context)))

    def windows(self, text: str, window: Window) -> list[Row]:
        """A text in windows, all its tokens counted once."""
        ids, found = self.before + encode(self.tokenizer, text), []
        for begin, counted, end in windows(len(ids), window):
            given = max(counted, len(self.before)) - begin
            if end - begin > given:
                found.append(Row(ids[begin:end], given))
        return found


def rolling_window(config: ModelConfig, how: Reading, window: int | None, stride: int | None) -> Window:
    """As long as the model's positions, and moving on by as much, as lm-evaluation-harness does, unless said otherwise.

    With shift a token (where there are blocks, a block) of each window is context.

    Raises:
        InputError: as `passages.window_of`.
    """
    S = how.block_length or 1
    length = window or max(config.max_position_embeddings // S, 1) * S
    stride = stride or (max(length - S, S) if how.shift else length)
    return window_of(dataclasses.replace(config, shift=how.shift), how.block_length, length, stride)


def cut(row: Row, config: ModelConfig) -> tuple[Row, bool]:
    """(a row with as much of its context as positions hold, the last of it; whether it lost any).

    Raises:
        InputError: the continuation alone is longer.
    """
    over = len(row.ids) - config.max_position_embeddings
    if over <= 0:
        return row, False
    if over >= row.given:
        raise InputError(
            f"a continuation of {len(row.ids) - row.given:,} tokens is beyond the {config.max_position_embeddings:,} "
            "positions the model was made for; leave the task out"
        )
    return Row(row.ids[over:], row.given - over), True


def keys(seed: int, contents: Sequence[Any]) -> PRNGKeyArray:
    """[B] a key of each request: of what it asks, and how often that was asked before, whatever stands beside it."""
    seen: Counter[int] = Counter()
    requests = []
    for content in contents:
        number = int.from_bytes(hashlib.sha256(repr(content).encode()).digest()[:4], "big") >> 1
        requests.append(Request(number, seen[number], "prompt", "", ()))
        seen[number] += 1
    return keys_of(seed, requests)


def score(
    model: Qwen3LLaDA, folder: Folder, rows: Sequence[Row], how: Reading, *, samples: int, seed: int, batch_size: int
) -> Iterator[tuple[int, Score]]:
    """(its number, its score) of every row, the shorter ones first.

    Raises:
        InputError: probabilities that are not finite.
    """
    if not rows:
        return
    asked = rows_of(model, [row.ids for row in rows], [row.given for row in rows], keys(seed, rows))
    with folder.on_mesh():
        for number, draws in each(model, asked, how, samples, "stratified", batch_size):
            (nats, variance), counted = draws.nats, draws.start.size
            check_finite(nats)
            yield number, Score(-nats, float(variance**0.5), counted, len(draws.value) if counted else 0)


def written_greedily(
    model: Qwen3LLaDA, folder: Folder, rows: Sequence[Row], how: Reading, batch_size: int
) -> list[tuple[bool, int]]:
    """(whether greedy decoding writes just the continuation, its forward passes) of every row.

    So many masks behind the context, of which each pass writes the surest, in the model's blocks (LLaDA's evaluation of
    LAMBADA does so); of an autoregressive model this is whether each token is the likeliest behind those before it.
    """
    found: list[tuple[bool, int]] = [(True, 0)] * len(rows)
    groups: dict[tuple[int, int], list[int]] = {}
    for number, row in enumerate(rows):
        if len(row.ids) > row.given:
            groups.setdefault((bucket(len(row.ids)), len(row.ids) - row.given), []).append(number)
    size = -(-batch_size // folder.ways) * folder.ways
    for (_, holes), numbers in sorted(groups.items()):
        plain = SamplerConfig(visibility=how.visibility, block_length=how.block_length or holes)
        settings = folder.ending(dataclasses.replace(plain, mask_token_id=how.mask_token_id))
        for begin in range(0, len(numbers), size):
            part = numbers[begin : begin + size]
            texts = [[*rows[n].ids[: rows[n].given], *[None] * holes] for n in part]
            with folder.on_mesh():
                result = api.infill(model, texts + texts[-1:] * (size - len(part)), settings, key=0)
            for n, tokens, nfe in zip(part, result.tokens, result.nfe, strict=False):
                found[n] = (tokens[: len(rows[n].ids)].tolist() == rows[n].ids, int(nfe))
    return found
