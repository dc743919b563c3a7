"""What the backward pass computes again, because that is cheaper than to write it down and read it."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def keeping_arguments(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` (arrays or trees of them in and out) of which the backward pass keeps nothing but the arguments.

    Unlike `jax.checkpoint` it adds no operation to the forward pass, and a rule of what to keep sees into it.
    """

    @jax.custom_vjp
    def kept(*arguments: Any) -> Any:
        return work(*arguments)

    def backward(arguments: Any, of_result: Any) -> Any:
        # Else the compiler finds the forward pass's results to be the same, and keeps them.
        arguments = jax.lax.optimization_barrier(arguments)
        return jax.vjp(work, *arguments)[1](of_result)

    kept.defvjp(lambda *arguments: (work(*arguments), arguments), backward)
    return functools.wraps(work)(kept)
