"""Writing many texts: batches of one size, a random key for every text, and how its ids become a text.

Programs, samples of training and `q.write` end texts here, all alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from qwen3llada_jax import threefry
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import api
from qwen3llada_jax.sampling.config import SamplerConfig, whole_blocks
from qwen3llada_jax.sampling.layout import for_holes
from qwen3llada_jax.sampling.limits import check_memory, check_positions
from qwen3llada_jax.sampling.state import Canvas, Generation, NotFiniteError, to_host
from qwen3llada_jax.text.tokens import up_to_stop
from qwen3llada_jax.writing.opening import Folder
from qwen3llada_jax.writing.requests import Request

BATCH_SIZE = 8  # texts written together, where nobody says
_NOT_FINITE = "the model's logits are not finite (NaN or infinite)"

Watcher = Callable[[Iterator[Canvas]], Canvas]  # looks at every canvas, gives back the last


@dataclass(frozen=True)
class Completion:
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
        completions: the texts.
        result: its first `len(completions)` rows are the texts; those behind them only fill up the batch.
    """

    completions: list[Completion]
    result: Generation


def check(
    requests: Sequence[Request], settings: SamplerConfig, config: ModelConfig, rows: int, what: str = "prompt"
) -> SamplerConfig:
    """Complete the settings as the sampler will use them (of an infilling: for the first batch of `rows`).

    Args:
        what: a request is called in messages.

    Raises:
        InputError: they do not fit together, or positions or memory do not hold them, in any batch.
    """
    texts, to_write, whole = [request.ids for request in requests], 0, 1
    if requests[0].kind == "infill":
        complete, *_ = [for_holes(config, texts[i : i + rows], settings) for i in range(0, len(texts), rows)]
    else:
        complete, to_write = settings.for_model(config), settings.gen_length
        whole = whole_blocks(complete, config)
    lengths = [len(text) for text in texts]
    check_positions(config, lengths, to_write, what, whole)
    check_memory(config, rows, max(lengths) + to_write, complete)
    return complete


def write(
    model: Qwen3LLaDA,
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
        settings: with `eos_token_ids`, which end the texts (`Folder.ending`).
        rows: a multiple of `folder.ways` (`rows_of_a_batch`).
        watcher: if given, sees each canvas of each batch.
    """
    for begin in range(0, len(requests), rows):
        part = requests[begin : begin + rows]
        full = [*part, *[part[-1]] * (rows - len(part))]
        broken: list[int] = []
        with folder.on_mesh():
            try:
                result = _call(model, full, settings, keys_of(seed, full), watcher)
            except NotFiniteError as error:  # these rows are lost, the others are not
                result, broken = error.result, error.rows
        yield Batch(_completions(result, part, folder.tokenizer, settings.eos_token_ids or (), broken), result)


def rows_of_a_batch(texts: int, batch_size: int, ways: int) -> int:
    """At most `batch_size`, no more than there are texts, and a multiple of `ways`."""
    return -(-min(batch_size, texts) // ways) * ways


def keys_of(seed: int, requests: Sequence[Request]) -> PRNGKeyArray:
    """[B] one random key for each request, of its number and its sample."""
    pairs = np.array([(request.number, request.sample) for request in requests])
    return _keys(threefry.quick(jax.random.key(seed)), pairs)


@jax.jit
def _keys(key: PRNGKeyArray, pairs: Int[Array, "B 2"]) -> PRNGKeyArray:
    fold = jax.random.fold_in
    return jax.vmap(lambda pair: fold(fold(key, pair[0]), pair[1]))(pairs)


def text_of(tokenizer: Any, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """The text of ids, nothing in it tidied up."""
    return tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


def answer_of(tokenizer: Any, ids: list[int], stops: Sequence[int]) -> str:
    """The text of an answer: what stands before the first id that ends it, without special tokens."""
    return text_of(tokenizer, up_to_stop(ids, stops))


def _call(
    model: Qwen3LLaDA,
    requests: list[Request],
    settings: SamplerConfig,
    keys: PRNGKeyArray,
    watcher: Watcher | None,
) -> Generation:
    ids: Any = [request.ids for request in requests]
    with_holes = requests[0].kind == "infill"
    if watcher is None:
        return (api.infill if with_holes else api.generate)(model, ids, settings, key=keys)
    canvases = (api.watch_infill if with_holes else api.watch)(model, ids, settings, key=keys)
    return to_host(watcher(canvases))


def _completions(
    result: Generation, requests: Sequence[Request], tokenizer: Any, stops: tuple[int, ...], broken: list[int]
) -> list[Completion]:
    found = []
    for i, (request, answer) in enumerate(zip(requests, result.answers(), strict=False)):
        nfe = int(result.nfe[i])
        if i in broken:
            found.append(Completion(request, "", 0, nfe, _NOT_FINITE))
        elif request.kind == "infill":
            text = filled(tokenizer, request, result.tokens[i, : len(request.ids)].tolist())
            found.append(Completion(request, text, len(answer), nfe))
        else:
            ids = up_to_stop(answer, stops)
            found.append(Completion(request, text_of(tokenizer, ids), len(ids), nfe))
    return found


def filled(tokenizer: Any, request: Request, ids: Sequence[int]) -> str:
    """A text with holes as far as `ids` fill it: the special tokens that it held stay, written ones are no text."""
    special = set(tokenizer.all_special_ids)
    kept = [now for now, given in zip(ids, request.ids, strict=False) if given is not None or now not in special]
    return text_of(tokenizer, kept, skip_special_tokens=False)
