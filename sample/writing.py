"""Writing many texts: batches of one size, a random key for every text, and what it cost."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

import qwen3llada_jax as q
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.limits import beyond, check_memory, check_positions
from qwen3llada_jax.sampling.state import NotFiniteError, for_holes
from qwen3llada_jax.text.tokens import up_to_stop

from .clock import Clock
from .opening import Folder
from .prompts import Request

Watcher = Callable[[Iterator[q.Canvas]], q.Canvas]  # looks at every canvas, gives back the last


@dataclass(frozen=True)
class Written:
    """A finished text.

    Attributes:
        text: without prompt, end and what follows the end; of an infilling the whole text.
        tokens: that the model wrote in it. Neither the end nor what follows it is one of them.
        nfe: forward passes that its row took part in.
        error: why nothing could be written.
    """

    request: Request
    text: str
    tokens: int
    nfe: int
    error: str | None = None


@dataclass(frozen=True)
class Batch:
    """What one call of the sampler gave.

    Attributes:
        result: its first `len(written)` rows are the texts; those behind them only fill up the batch.
        seconds: without compiling.
        compiling: seconds of tracing and compiling.
    """

    written: list[Written]
    result: q.Generation
    seconds: float
    compiling: float

    @property
    def tokens_per_second(self) -> float:
        """Of all its texts together, without compiling."""
        return sum(w.tokens for w in self.written) / self.seconds


def check(requests: Sequence[Request], settings: SamplerConfig, config: ModelConfig, rows: int) -> SamplerConfig:
    """The settings as the sampler will use them (of an infilling: for the first batch of `rows`).

    Raises:
        InputError: they do not fit together, or positions or memory do not hold them, in any batch.
    """
    texts, to_write = [request.ids for request in requests], 0
    if requests[0].kind == "infill":
        complete, *_ = [for_holes(config, texts[i : i + rows], settings) for i in range(0, len(texts), rows)]
    else:
        complete, to_write = settings.for_model(config), settings.gen_length
    lengths = [len(text) for text in texts]
    check_positions(config, lengths, to_write, "prompt")
    check_memory(config, rows, max(lengths) + to_write, complete)
    stretched = beyond(config, lengths, to_write)
    if stretched:
        print(
            f"{stretched:,} of {len(texts):,} texts go beyond the {config.max_position_embeddings:,} positions the "
            "model was trained on, by its rope_scaling",
            file=sys.stderr,
        )
    return complete


def write(
    model: q.Qwen3LLaDA,
    folder: Folder,
    requests: Sequence[Request],
    settings: SamplerConfig,
    *,
    seed: int,
    rows: int,
    watcher: Watcher | None = None,
) -> Iterator[Batch]:
    """Write every text, in their order, `rows` at a time; the last batch is filled up, so that it compiles nothing.

    A text's random draws depend on the seed, the number of its prompt and of its sample, on nothing else.

    Args:
        settings: with `eos_token_ids`, which end the texts.
        rows: a multiple of `folder.ways`.
        watcher: if given, sees each canvas of each batch.
    """
    for begin in range(0, len(requests), rows):
        part = requests[begin : begin + rows]
        full = [*part, *[part[-1]] * (rows - len(part))]
        clock = Clock()
        with folder.on_mesh():
            keys = keys_of(seed, full)
            broken: list[int] = []
            try:
                result = _call(model, full, settings, keys, watcher)
            except NotFiniteError as error:  # these rows are lost, the others are not
                result, broken = error.result, error.rows
        seconds, compiling = clock.seconds, clock.compiling
        written = _read(result, part, folder.tokenizer, settings.eos_token_ids or (), broken)
        yield Batch(written, result, max(seconds - compiling, 1e-9), compiling)


def rows_of_a_batch(texts: int, batch_size: int, ways: int) -> int:
    """At most `batch_size`, no more than there are texts, and a multiple of `ways`."""
    return -(-min(batch_size, texts) // ways) * ways


def keys_of(seed: int, requests: Sequence[Request]) -> PRNGKeyArray:
    """[B] one for each request."""
    numbers = np.array([(request.number, request.sample) for request in requests])
    fold = jax.random.fold_in
    return jax.vmap(lambda pair: fold(fold(jax.random.key(seed), pair[0]), pair[1]))(numbers)


def _call(
    model: q.Qwen3LLaDA,
    requests: list[Request],
    settings: SamplerConfig,
    keys: PRNGKeyArray,
    watcher: Watcher | None,
) -> q.Generation:
    ids: Any = [request.ids for request in requests]
    with_holes = requests[0].kind == "infill"
    if watcher is None:
        return (q.infill if with_holes else q.generate)(model, ids, settings, key=keys)
    return q.finish(watcher((q.watch_infill if with_holes else q.watch)(model, ids, settings, key=keys)))


def text_of(tokenizer: Any, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """The text of ids, nothing in it tidied up."""
    return tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


def _read(
    result: q.Generation, requests: Sequence[Request], tokenizer: Any, stops: tuple[int, ...], broken: list[int]
) -> list[Written]:
    nfe, tokens = np.asarray(result.nfe), np.asarray(result.tokens)
    written = []
    for i, (request, answer) in enumerate(zip(requests, result.answers(), strict=False)):
        if i in broken:
            written.append(Written(request, "", 0, int(nfe[i]), _NOT_FINITE))
            continue
        if request.kind == "infill":
            ids, count = tokens[i, : len(request.ids)].tolist(), len(answer)
            text = _filled(tokenizer, request, ids)
        else:
            ids = up_to_stop(answer, stops)
            text, count = text_of(tokenizer, ids), len(ids)
        written.append(Written(request, text, count, int(nfe[i])))
    return written


_NOT_FINITE = "the model's logits are not finite (NaN or infinite)"


def _filled(tokenizer: Any, request: Request, ids: list[int]) -> str:
    """A text with its holes filled: the special tokens that it held stay, those that were written are no text."""
    special = set(tokenizer.all_special_ids)
    kept = [now for now, given in zip(ids, request.ids, strict=True) if given is not None or now not in special]
    return text_of(tokenizer, kept, skip_special_tokens=False)
