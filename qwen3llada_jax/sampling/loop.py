"""The compiled programs of the sampler: passes until rows are done, and where everything lies meanwhile."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jaxtyping import Array, Bool, Int

from qwen3llada_jax import threefry
from qwen3llada_jax.model.kv_cache import AXES, Cache
from qwen3llada_jax.model.layers import unstack_layers
from qwen3llada_jax.model.model import CONVERTED_LATE, Qwen3LLaDA
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.parameters import Parameters, Structure
from qwen3llada_jax.sampling.passes.block_starts import are_block_starts, block_start_differs, most_that_begin_apart
from qwen3llada_jax.sampling.passes.forward import first_cache, with_finished_blocks, with_new_rows
from qwen3llada_jax.sampling.passes.speculation import speculate
from qwen3llada_jax.sampling.passes.step import unmask
from qwen3llada_jax.sampling.state import Canvas, GenerationInputs, SamplerState
from qwen3llada_jax.sharding import canonical_spec, constrain

TO_THE_END = 2**31 - 1  # passes: more than any row takes


def compilations() -> int:
    """How many sampling programs this process has compiled so far."""
    return sum(program._cache_size() for programs in (begin, advance, serve) for program in programs.values())


def placed(state: SamplerState, model: Qwen3LLaDA) -> SamplerState:
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


def laid_out(model: Qwen3LLaDA, config: SamplerConfig, is_converted: bool) -> Qwen3LLaDA:
    """The same model in the same memory, its layers as they are fastest to run.

    With a cache they stay stacked: such a program holds them three times over, and would compile ten times as long; but
    not of an autoregressive model, whose passes are all alike, and so short that to copy a layer takes longer than to
    multiply by it. Of converted layers that lie apart XLA would hold the copies of all at once.
    """
    is_long = config.cache != "none" and not config.structure(model.config).is_autoregressive
    if is_long or is_converted:
        return model
    model = jax.tree.map(lambda x: x, model)  # a shallow copy
    model.layers = unstack_layers(model.layers)
    return model


def passes_of(
    cache: Cache | None,
    model: Qwen3LLaDA,
    state: SamplerState,
    inputs: GenerationInputs,
    parameters: Parameters,
    passes: Int[Array, ""],
    enough: Int[Array, ""],
    structure: Structure,
) -> SamplerState:
    """At most so many passes, until `enough` rows are done.

    Passes of a block start while more than a `few` rows begin a block, others until so many do.
    """
    Carry = tuple[SamplerState, Array]
    few = most_that_begin_apart(model, structure, len(state.done))

    def goes_on(carry: Carry) -> Array:
        return (carry[0].done.sum() < enough) & (carry[1] > 0)

    def one(is_block_start: bool) -> Callable[[Carry], Carry]:
        return lambda carry: (
            unmask(model, carry[0], inputs, parameters, structure, is_block_start),
            carry[1] - 1,
        )

    def starts(carry: Carry) -> Array:
        return are_block_starts(model, carry[0], structure).sum()

    def finished(_: Array, state: SamplerState) -> SamplerState:
        return with_finished_blocks(model, state, inputs, structure, few)

    def within(carry: Carry) -> Carry:
        if few:
            is_needed = (starts(carry) > 0).astype(jnp.int32)
            carry = jax.lax.fori_loop(0, is_needed, finished, carry[0]), carry[1]
        return one(False)(carry)

    def both(carry: Carry) -> Carry:
        carry = jax.lax.while_loop(lambda c: goes_on(c) & (starts(c) > few), one(True), carry)
        return jax.lax.while_loop(lambda c: goes_on(c) & (starts(c) <= few), within, carry)

    def drafted(carry: Carry) -> Carry:
        return speculate(model, carry[0], inputs, parameters, structure), carry[1] - 1

    body = drafted if structure.speculate else both if block_start_differs(model, structure) else one(False)
    state = jax.lax.while_loop(goes_on, body, (state._replace(cache=cache), passes))[0]
    return jax.tree.map(lambda axes, x: constrain(x, *axes), _axes(state), state, is_leaf=_is_axes)


def served(
    cache: Cache | None,
    model: Qwen3LLaDA,
    state: SamplerState,
    new: Canvas,
    is_new: Bool[Array, " B"],
    known: Int[Array, " B"],
    inputs: GenerationInputs,
    parameters: Parameters,
    passes: Int[Array, ""],
    structure: Structure,
) -> SamplerState:
    """Rows that begin take their places; then passes until one row more is done, at most so many.

    Args:
        new: what the rows `is_new` begin with; one with nothing to write is done.
        known: tokens at the beginning of such a row that the cache knows already.
        inputs: its `keys` are their data.
    """
    inputs = inputs._replace(keys=threefry.quick(jax.random.wrap_key_data(inputs.keys)))

    def begun(x: Array, new: Array) -> Array:
        return jnp.where(is_new.reshape(-1, *[1] * (x.ndim - 1)), new, x)

    zero = jnp.zeros_like(state.block)
    first = SamplerState(new, zero, zero, zero[:, None], zero[:, None], ~new.is_masked.any(axis=1), None)
    first = first._replace(memory=state.memory, full=state.full)  # of the row before; its first pass forgets them
    if state.draft is not None:
        first = first._replace(draft=state.draft._replace(is_there=jnp.zeros_like(state.done)))
    state = jax.tree.map(begun, state, first)
    if cache is not None:
        cache = jax.lax.cond(
            is_new.any(),
            lambda cache: with_new_rows(model, cache, state.canvas, inputs, structure, is_new, known),
            lambda cache: cache,
            cache,
        )
    return passes_of(cache, model, state, inputs, parameters, passes, state.done.sum() + 1, structure)


def regrouped(state: SamplerState, slots: Int[Array, " B"]) -> SamplerState:
    """The rows of these slots, one after another; where there is no such slot, a row that has to begin anew."""
    rows = len(state.done)

    def of(axes: tuple[str, ...], x: Array) -> Array:
        at = axes.index("batch")
        branches = x.shape[at] // rows
        index = (slots[:, None] * branches + jnp.arange(branches)).ravel()
        return constrain(jnp.take(x, index, axis=at, mode="fill", fill_value=0), *axes)

    return jax.tree.map(of, _axes(state), state, is_leaf=_is_axes)


def taken(cache: Cache, slot: Int[Array, ""], length: int) -> Cache:
    """So many positions of one row, [layers, length, K, H]."""
    return Cache(*(jax.lax.dynamic_index_in_dim(x, slot, axis=1, keepdims=False)[:, :length] for x in cache))


def given(cache: Cache, part: Cache, slot: Int[Array, ""]) -> Cache:
    """A cache in which a row begins with these positions, as far as it goes."""

    def of(x: Array, new: Array) -> Array:
        return constrain(jax.lax.dynamic_update_slice(x, new[:, None, : x.shape[2]], (0, slot, 0, 0, 0)), *AXES)

    return Cache(of(cache.keys, part.keys), of(cache.values, part.values))


def _programs(function: Callable[..., Any], donated: tuple[str, ...] = ()) -> dict[bool, Any]:
    """A function compiled as XLA likes it, and (True) so that each layer's weights are converted where it is used."""
    compiled = functools.partial(jax.jit, function, static_argnames="structure", donate_argnames=donated)
    return {False: compiled(), True: compiled(compiler_options=CONVERTED_LATE)}


begin = _programs(first_cache)
advance = _programs(passes_of, donated=("cache",))
serve = _programs(served, donated=("cache",))
regroup = jax.jit(regrouped)
take = jax.jit(taken, static_argnames="length")
give = jax.jit(given, donate_argnames="cache")
