"""Writing by unmasking: LLaDA's sampler (arXiv 2502.09992, algorithms 4 and 5) and what the field added to it.

A canvas holds a row's tokens, masks where something is to be written. The places to write are cut into blocks of
`block_length` that are filled one after another. Each pass runs the model once, proposes a token for every masked
position of the row's current block (passes/proposals.py), and writes those that the rules choose (rules/). Which
positions are masked is carried along, never read back from the ids. Rows go on by themselves, each with its own block,
pass and end; the whole trajectory of all rows is one compiled program, and watching it runs the same one pass by pass.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from qwen3llada_jax import sharding
from qwen3llada_jax.model.model import Qwen3LLaDA, is_converted_on_cpu
from qwen3llada_jax.sampling import layout, loop
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.passes import memory as memories
from qwen3llada_jax.sampling.passes.speculation import no_draft
from qwen3llada_jax.sampling.state import (
    Canvas,
    Generation,
    GenerationInputs,
    SamplerState,
    answer_of,
    to_host_checked,
)

T = TypeVar("T", bound=tuple[Any, ...])
Prompts = Int[Array, "B P"] | Sequence[Sequence[int]]


def generate(
    model: Qwen3LLaDA,
    prompts: Prompts,
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
    room: int = 0,
) -> Generation:
    """Write an answer to every prompt: the whole trajectory is one compiled program.

    Args:
        prompts: ids; rows may differ in length, and may be empty.
        key: randomness of temperature and random rules: a seed, a key of JAX, or [B] one for each row; None: seed 0.
            A row's draws depend on its key (of one key: and its row number), the pass and the place in the answer,
            not on the other rows.
        room: leave place for prompts of so many tokens, so that calls with longer prompts compile nothing (a chat's).

    Raises:
        InputError: an id out of range, settings that do not fit together, rows that the mesh does not divide, or more
            than positions or memory hold.
        NotFiniteError: (an InputError) some rows' logits are NaN or infinite; it holds what the others wrote.
    """
    config = config.for_model(model.config)
    laid_out = _of_the_mesh(layout.continuation(model.config, prompts, config, key, room))
    return _generate(model, *laid_out, config, config.gen_length)


def infill(
    model: Qwen3LLaDA,
    texts: Sequence[Sequence[int | None]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
) -> Generation:
    """Fill the holes of texts.

    Args:
        texts: ids, None for a hole. Blocks are groups of `block_length` holes, from left to right; under block rules
            the holes among `block_length` positions, counted from the first hole, before which all is prompt, or from
            where the model's are (`ModelConfig.block_origin`).
        config: `gen_length` and `stop_at_eos` do not matter here: the holes say how much there is to write.
        key: as in `generate`.

    Raises:
        InputError: a row without a hole, an id out of range, settings that do not fit together, or more than positions
            or memory hold.
        NotFiniteError: as in `generate`.
    """
    return _generate(model, *_of_the_mesh(layout.infilling(model.config, texts, config, key)))


def watch(
    model: Qwen3LLaDA,
    prompts: Prompts,
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
    room: int = 0,
) -> Iterator[Canvas]:
    """The same as `generate`, pass by pass, by the same program: the blank canvas, then that after every pass."""
    config = config.for_model(model.config)
    laid_out = _of_the_mesh(layout.continuation(model.config, prompts, config, key, room))
    return _watch(model, *laid_out, config, config.gen_length)


def watch_infill(
    model: Qwen3LLaDA,
    texts: Sequence[Sequence[int | None]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
) -> Iterator[Canvas]:
    """The same as `infill`, pass by pass."""
    return _watch(model, *_of_the_mesh(layout.infilling(model.config, texts, config, key)))


def _of_the_mesh(laid_out: T) -> T:
    """Rows as they were laid out.

    Raises:
        InputError: the mesh does not divide them.
    """
    sharding.check_rows(len(laid_out[0].tokens))
    return laid_out


def _generate(
    model: Qwen3LLaDA, canvas: Canvas, inputs: GenerationInputs, config: SamplerConfig, gen_length: int | None = None
) -> Generation:
    step = _stepper(model, inputs, config)
    written = step(_started(model, canvas, inputs, config), loop.TO_THE_END).canvas
    return to_host_checked(_answer(model, written, inputs, config, gen_length))


def _watch(
    model: Qwen3LLaDA, canvas: Canvas, inputs: GenerationInputs, config: SamplerConfig, gen_length: int | None = None
) -> Iterator[Canvas]:
    step, state = _stepper(model, inputs, config), _started(model, canvas, inputs, config)
    yield _answer(model, state.canvas, inputs, config, gen_length)
    while not np.asarray(state.done).all():
        state = step(state, 1)
        yield _answer(model, state.canvas, inputs, config, gen_length)
    to_host_checked(_answer(model, state.canvas, inputs, config, gen_length))


def _answer(
    model: Qwen3LLaDA, written: Canvas, inputs: GenerationInputs, config: SamplerConfig, gen_length: int | None
) -> Canvas:
    return answer_of(written, np.asarray(inputs.is_given), gen_length, config.structure(model.config))


def _stepper(
    model: Qwen3LLaDA, inputs: GenerationInputs, config: SamplerConfig
) -> Callable[[SamplerState, int], SamplerState]:
    """So many passes more: the one program that `generate`, `watch` and everything that shows the writing run."""
    is_late = is_converted_on_cpu(model)
    structure = config.structure(model.config)
    model, parameters = loop.laid_out(model, config, is_late), config.parameters()
    rows = np.int32(len(inputs.steps))

    def step(state: SamplerState, passes: int) -> SamplerState:
        # The cache is ours alone, so it is renewed in its own memory; canvases are the caller's.
        return loop.advance[is_late](
            state.cache, model, state._replace(cache=None), inputs, parameters, np.int32(passes), rows, structure
        )

    return step


def _started(model: Qwen3LLaDA, canvas: Canvas, inputs: GenerationInputs, config: SamplerConfig) -> SamplerState:
    """Nothing written yet, and the prompt in the cache where it never changes; where the passes leave it."""
    assert config.block_length is not None
    B, G = len(canvas.tokens), canvas.places.shape[1] // config.block_length if config.parallel_blocks else 1
    zero, zeros, done = np.zeros(B, np.int32), np.zeros((B, G), np.int32), ~np.asarray(canvas.is_masked).any(axis=1)
    cache = None
    if config.cache != "none":
        is_late = is_converted_on_cpu(model)
        cache = loop.begin[is_late](model, canvas, inputs, config.structure(model.config))
    parameters = config.parameters()
    memory = memories.blank(parameters, B, G * config.block_length, model.config.vocab_size)
    full = None if parameters.edit is None else zero
    draft = no_draft(model, B, parameters, config.structure(model.config))
    state: Any = (canvas, zero, zero, zeros, zeros, done, cache, memory, full, draft)
    return loop.placed(SamplerState(*state), model)
