"""Writing by unmasking: LLaDA's sampler (arXiv 2502.09992, algorithms 4 and 5) and what the field added to it.

A canvas holds a row's tokens, masks where something is to be written. The places to write are cut into blocks of
`block_length` that are filled one after another. Each pass runs the model once, proposes a token for every masked
position of the row's current block (proposals.py), and writes those that the rules choose (rules.py). Which positions
are masked is carried along, never read back from the ids. Rows go on by themselves, each with its own block, pass
and end; the whole trajectory of all rows is one compiled program.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from qwen3llada_jax import canvas as pages
from qwen3llada_jax.canvas import Canvas, Generation, Page, Progress, finish
from qwen3llada_jax.layers import apart
from qwen3llada_jax.model import Qwen3LLaDA
from qwen3llada_jax.passes import first_cache, wide_differs
from qwen3llada_jax.sampler_config import Dials, SamplerConfig
from qwen3llada_jax.unmasking import unmask

Prompts = Int[Array, "B P"] | Sequence[Sequence[int]]


def generate(
    model: Qwen3LLaDA,
    prompts: Prompts,
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
) -> Generation:
    """Write an answer to every prompt: the whole trajectory is one compiled program.

    Args:
        prompts: ids; rows may differ in length, and may be empty.
        key: randomness of temperature and random rules: a seed, a key of JAX, or [B] one for each row; None: seed 0.
            A row's draws depend on its key (of one key: and its row number), the pass and the place in the answer,
            not on the other rows.

    Raises:
        InputError: an id out of range, settings that do not fit together, or rows that the mesh does not divide.
    """
    config = config.for_model(model.config)
    return _generate(model, *pages.continuation(model.config, prompts, config, key), config)


def infill(
    model: Qwen3LLaDA,
    texts: Sequence[Sequence[int | None]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
) -> Generation:
    """Fill the holes of texts.

    Args:
        texts: ids, None for a hole. Blocks are groups of `block_length` holes, from left to right.
        config: `gen_length` and `stop_at_eos` do not matter here: the holes say how much there is to write.
        key: as in `generate`.

    Raises:
        InputError: a row without a hole, an id out of range, or settings that do not fit together.
    """
    config = pages.for_holes(model.config, texts, config)
    return _generate(model, *pages.with_holes(model.config, texts, config, key), config)


def watch(
    model: Qwen3LLaDA,
    prompts: Prompts,
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
) -> Iterator[Canvas]:
    """The same as `generate`, pass by pass: the blank canvas, then the canvas after every pass."""
    config = config.for_model(model.config)
    yield from _watch(model, *pages.continuation(model.config, prompts, config, key), config)


def watch_infill(
    model: Qwen3LLaDA,
    texts: Sequence[Sequence[int | None]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
) -> Iterator[Canvas]:
    """The same as `infill`, pass by pass."""
    config = pages.for_holes(model.config, texts, config)
    yield from _watch(model, *pages.with_holes(model.config, texts, config, key), config)


def compilations() -> int:
    """How many sampling programs this process has compiled so far."""
    return sum(program._cache_size() for programs in (_run, _begin, _pass_once) for program in programs.values())


def _generate(model: Qwen3LLaDA, canvas: Canvas, page: Page, config: SamplerConfig) -> Generation:
    is_late = _is_converted_on_cpu(model)
    model = _laid_out(model, config, is_late)
    return finish(_run[is_late](model, canvas, page, config.dials(), config.outline()))


def _watch(model: Qwen3LLaDA, canvas: Canvas, page: Page, config: SamplerConfig) -> Iterator[Canvas]:
    is_late = _is_converted_on_cpu(model)
    model, dials, outline = _laid_out(model, config, is_late), config.dials(), config.outline()
    state = _begin[is_late](model, canvas, page, outline)
    yield state.canvas
    while not bool(state.done.all()):
        wide = bool(state.begins.any())
        state = _pass_once[is_late](model, state, page, dials, outline, wide)
        yield state.canvas


def _laid_out(model: Qwen3LLaDA, config: SamplerConfig, is_converted: bool) -> Qwen3LLaDA:
    """The same model in the same memory, its layers as they are fastest to run.

    With a cache they stay stacked: such a program holds them three times over, and would compile ten times as long.
    Of converted layers that lie apart XLA would hold the copies of all at once.
    """
    if config.cache != "none" or is_converted:
        return model
    model = jax.tree.map(lambda x: x, model)  # a shallow copy
    model.layers = apart(model.layers)
    return model


def _is_converted_on_cpu(model: Qwen3LLaDA) -> bool:
    """Whether XLA converts the weights before it multiplies: CPUs do so in float32."""
    weights = jax.tree.leaves(model)
    platforms = {device.platform for x in weights if isinstance(x, jax.Array) for device in x.devices()}
    return "cpu" in platforms and {str(x.dtype) for x in weights} | {str(jnp.dtype(model.compute_dtype))} != {"float32"}


def _whole(model: Qwen3LLaDA, canvas: Canvas, page: Page, dials: Dials, config: SamplerConfig) -> Canvas:
    """Wide passes where a row begins a block, narrow ones until the next row does."""

    def one(wide: bool) -> Any:
        return lambda state: unmask(model, state, page, dials, config, wide)

    def within_blocks(state: Progress) -> Array:
        return ~state.done.all() & ~state.begins.any()

    def both(state: Progress) -> Progress:
        return jax.lax.while_loop(within_blocks, one(False), one(True)(state))

    body = both if wide_differs(model, config) else one(False)
    return jax.lax.while_loop(lambda state: ~state.done.all(), body, _start(model, canvas, page, config)).canvas


def _start(model: Qwen3LLaDA, canvas: Canvas, page: Page, config: SamplerConfig) -> Progress:
    """Nothing written yet, and the prompt in the cache where it never changes."""
    B, G = len(canvas.tokens), _blocks_at_once(canvas, config)
    zero = jnp.zeros(B, jnp.int32)
    zeros = jnp.zeros((B, G), jnp.int32)
    done = ~canvas.is_masked.any(axis=1)
    return Progress(canvas, zero, zero, zeros, zeros, done, first_cache(model, canvas, page, config))


def _blocks_at_once(canvas: Canvas, config: SamplerConfig) -> int:
    assert config.block_length is not None
    return canvas.places.shape[1] // config.block_length if config.parallel_blocks else 1


def _programs(function: Callable[..., Any], *static: str) -> dict[bool, Any]:
    """A function compiled as XLA likes it; and (True) so that each layer's weights are converted where they are used.

    XLA likes to convert all weights before the first pass and to hold both.
    """
    late = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
    return {is_late: jax.jit(function, static_argnames=static, compiler_options=late if is_late else None)
            for is_late in (False, True)}  # fmt: skip


_run = _programs(_whole, "config")
_begin = _programs(_start, "config")
_pass_once = _programs(unmask, "config", "wide")
