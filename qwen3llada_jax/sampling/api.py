"""Writing by unmasking: LLaDA's sampler (arXiv 2502.09992, algorithms 4 and 5) and what the field added to it.

A canvas holds a row's tokens, masks where something is to be written. The places to write are cut into blocks of
`block_length` that are filled one after another. Each pass runs the model once, proposes a token for every masked
position of the row's current block (proposals.py), and writes those that the rules choose (rules.py). Which positions
are masked is carried along, never read back from the ids. Rows go on by themselves, each with its own block, pass
and end; the whole trajectory of all rows is one compiled program, and watching it runs the same one pass by pass.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jaxtyping import Array, Int, PRNGKeyArray

from qwen3llada_jax.model.kv_cache import AXES, Cache
from qwen3llada_jax.model.layers import apart
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import state as pages
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.forward import block_start_differs, first_cache
from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.state import Canvas, Generation, GenerationInputs, SamplerState, to_host_checked
from qwen3llada_jax.sampling.step import unmask
from qwen3llada_jax.sharding import canonical_spec, constrain

Prompts = Int[Array, "B P"] | Sequence[Sequence[int]]
_TO_THE_END = 2**31 - 1  # passes: more than any row takes


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
    return _generate(model, *pages.continuation(model.config, prompts, config, key, room), config)


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
            the holes among `block_length` positions, counted from the first hole, before which all is prompt.
        config: `gen_length` and `stop_at_eos` do not matter here: the holes say how much there is to write.
        key: as in `generate`.

    Raises:
        InputError: a row without a hole, an id out of range, settings that do not fit together, or more than positions
            or memory hold.
        NotFiniteError: as in `generate`.
    """
    config = pages.for_holes(model.config, texts, config)
    return _generate(model, *pages.with_holes(model.config, texts, config, key), config)


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
    return _watch(model, *pages.continuation(model.config, prompts, config, key, room), config)


def watch_infill(
    model: Qwen3LLaDA,
    texts: Sequence[Sequence[int | None]],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
) -> Iterator[Canvas]:
    """The same as `infill`, pass by pass."""
    config = pages.for_holes(model.config, texts, config)
    return _watch(model, *pages.with_holes(model.config, texts, config, key), config)


def compilations() -> int:
    """How many sampling programs this process has compiled so far."""
    return sum(program._cache_size() for programs in (_begin, _advance) for program in programs.values())


def _generate(model: Qwen3LLaDA, canvas: Canvas, inputs: GenerationInputs, config: SamplerConfig) -> Generation:
    step = _stepper(model, inputs, config)
    return to_host_checked(step(_started(model, canvas, inputs, config), _TO_THE_END).canvas)


def _watch(model: Qwen3LLaDA, canvas: Canvas, inputs: GenerationInputs, config: SamplerConfig) -> Iterator[Canvas]:
    step, state = _stepper(model, inputs, config), _started(model, canvas, inputs, config)
    yield state.canvas
    while not np.asarray(state.done).all():
        state = step(state, 1)
        yield state.canvas
    to_host_checked(state.canvas)


def _stepper(
    model: Qwen3LLaDA, inputs: GenerationInputs, config: SamplerConfig
) -> Callable[[SamplerState, int], SamplerState]:
    """So many passes more: the one program that `generate`, `watch` and everything that shows the writing run."""
    is_late = _is_converted_on_cpu(model)
    model, parameters, structure = _laid_out(model, config, is_late), config.parameters(), config.structure()

    def step(state: SamplerState, passes: int) -> SamplerState:
        # The cache is ours alone, so it is renewed in its own memory; canvases are the caller's.
        return _advance[is_late](
            state.cache, model, state._replace(cache=None), inputs, parameters, np.int32(passes), structure
        )

    return step


def _started(model: Qwen3LLaDA, canvas: Canvas, inputs: GenerationInputs, config: SamplerConfig) -> SamplerState:
    """Nothing written yet, and the prompt in the cache where it never changes; where the passes leave it."""
    assert config.block_length is not None
    B, G = len(canvas.tokens), canvas.places.shape[1] // config.block_length if config.parallel_blocks else 1
    zero, zeros, done = np.zeros(B, np.int32), np.zeros((B, G), np.int32), ~np.asarray(canvas.is_masked).any(axis=1)
    cache = None
    if config.cache != "none":
        is_late = _is_converted_on_cpu(model)
        cache = _begin[is_late](_laid_out(model, config, is_late), canvas, inputs, config.structure())
    state: Any = (canvas, zero, zero, zeros, zeros, done, cache)
    return _placed(SamplerState(*state), model)


def _placed(state: SamplerState, model: Qwen3LLaDA) -> SamplerState:
    """Where the passes leave it: else a second call would be compiled anew.

    Over several hosts that stays: no host has the rows of the others.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        weights = next(x for x in jax.tree.leaves(model) if isinstance(x, jax.Array))
        return jax.device_put(state, SingleDeviceSharding(next(iter(weights.devices()))))
    if jax.process_count() > 1:
        return state
    places = jax.tree.map(lambda axes: NamedSharding(mesh, canonical_spec(axes)), _axes(state), is_leaf=_is_axes)
    return jax.device_put(state, places)


def _axes(state: SamplerState) -> Any:
    """The logical axes of every array of a state."""
    rows = jax.tree.map(lambda x: ("batch",) + ("length",) * (np.ndim(x) - 1), state._replace(cache=None))
    cache: Any = (AXES, AXES)
    return rows._replace(cache=None if state.cache is None else Cache(*cache))


def _is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(axis, str) for axis in x)


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


def _passes(
    cache: Cache | None,
    model: Qwen3LLaDA,
    state: SamplerState,
    inputs: GenerationInputs,
    parameters: Parameters,
    passes: Int[Array, ""],
    structure: Structure,
) -> SamplerState:
    """At most so many passes: those of a block start where a row begins a block, others until the next row does."""
    Carry = tuple[SamplerState, Array]

    def goes_on(carry: Carry) -> Array:
        return ~carry[0].done.all() & (carry[1] > 0)

    def one(is_block_start: bool) -> Callable[[Carry], Carry]:
        return lambda carry: (
            unmask(model, carry[0], inputs, parameters, structure, is_block_start),
            carry[1] - 1,
        )

    def both(carry: Carry) -> Carry:
        carry = jax.lax.while_loop(lambda c: goes_on(c) & c[0].begins.any(), one(True), carry)
        return jax.lax.while_loop(lambda c: goes_on(c) & ~c[0].begins.any(), one(False), carry)

    body = both if block_start_differs(model, structure) else one(False)
    state = jax.lax.while_loop(goes_on, body, (state._replace(cache=cache), passes))[0]
    return jax.tree.map(lambda axes, x: constrain(x, *axes), _axes(state), state, is_leaf=_is_axes)


def _programs(function: Callable[..., Any], donated: tuple[str, ...] = ()) -> dict[bool, Any]:
    """A function compiled as XLA likes it; and (True) so that each layer's weights are converted where they are used.

    XLA likes to convert all weights before the first pass and to hold both.
    """
    late = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
    return {
        is_late: jax.jit(
            function, static_argnames="structure", donate_argnames=donated, compiler_options=late if is_late else None
        )
        for is_late in (False, True)
    }


_begin = _programs(first_cache)
_advance = _programs(_passes, donated=("cache",))
