"""Parameters that training leaves as they are, named by patterns.

    embed_tokens · norm · layers.q_proj · layers.*_norm      whole arrays (all layers of one)
    layers.3.* · layers.0-11.q_proj                          single layers, counted from 0, both ends included

`*` and `?` are as in a shell. A tied head is the embedding, so it is frozen and trained with it.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.errors import InputError

_SINGLE_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?\.(.+)")


def frozen(params: Any, roles: Any, patterns: Sequence[str]) -> Any:
    """A tree like `params`: True (all of it is frozen), False, or bool [layers] on the host.

    Args:
        roles: of the parameters or more.

    Raises:
        InputError: a pattern that matches nothing, layers that are not there, or nothing left to train.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names, role_of = [".".join(key.key for key in path) for path, _ in leaves], flatten(roles)
    marks = {
        name: np.zeros(leaf.shape[0] if "layers" in role_of[name].stacked[:1] else 1, bool)
        for name, (_, leaf) in zip(names, leaves, strict=True)
    }
    for pattern in patterns:
        single = _SINGLE_LAYERS.fullmatch(pattern)
        wanted = f"layers.{single[3]}" if single else pattern
        matched = [name for name in names if fnmatchcase(name, wanted)]
        if not matched and names:
            raise InputError(f"training.freeze: {pattern!r} matches no parameter; there are {', '.join(names)}")
        for name in matched:
            marks[name][_layers(pattern, single, len(marks[name])) if single else slice(None)] = True
    if names and all(mark.all() for mark in marks.values()):
        raise InputError("training.freeze leaves nothing to train; take a pattern out")
    short = [bool(m.all()) if m.all() or not m.any() else m for m in marks.values()]
    return jax.tree_util.tree_unflatten(structure, short)


def stop_gradients(params: Any, roles: Any, patterns: Sequence[str]) -> Any:
    """`params`, whose frozen parts have a gradient of 0, that of whole arrays never being computed."""

    def one(mark: Any, x: Array) -> Array:
        if isinstance(mark, bool):
            return jax.lax.stop_gradient(x) if mark else x
        return _without_gradient(x, _along_first(mark, x))

    return jax.tree.map(one, frozen(params, roles, patterns), params) if patterns else params


def hold(tx: optax.GradientTransformation, roles: Any, patterns: Sequence[str]) -> optax.GradientTransformation:
    """`tx` for what is trained; whole frozen arrays carry no state, and nothing frozen gets an update."""

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda mark: "frozen" if mark is True else "trained", frozen(params, roles, patterns))

    def only_trained(updates: Any, params: Any) -> Any:
        def one(mark: Any, u: Array) -> Array:
            return u if isinstance(mark, bool) else jnp.where(_along_first(mark, u), 0.0, u)

        return jax.tree.map(one, frozen(updates, roles, patterns), updates)

    return optax.chain(
        optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels), optax.stateless(only_trained)
    )


def _layers(pattern: str, single: re.Match[str], layers: int) -> slice:
    first, last = int(single[1]), int(single[2] or single[1])
    if not first <= last < layers:
        raise InputError(f"training.freeze: {pattern!r}: the model's layers are 0 to {layers - 1}")
    return slice(first, last + 1)


def _along_first(mark: Bool[np.ndarray, " layers"], x: Array) -> Bool[np.ndarray, "layers ..."]:
    return mark.reshape(-1, *(1,) * (x.ndim - 1))


@jax.custom_vjp
def _without_gradient(x: Array, where: Array) -> Array:
    """x itself (a `where` of x and stop_gradient(x) would copy it)."""
    return x


_without_gradient.defvjp(
    lambda x, where: (x, where), lambda where, gradient: (jnp.where(where, 0.0, gradient).astype(gradient.dtype), None)
)
