"""What a traced training step keeps of the forward pass for the backward one."""

import math
from typing import Any

import jax


def saved_bytes(jaxpr: Any, layers: int) -> int:
    """Bytes, over all devices, that the forward loop over the layers stacks up: what `remat` is about.

    A micro-batch's, where there are several: they are gone when the next begins. Arrays of integers and
    booleans count too; what lies before and behind the layers (the embedded rows, the head's slices) does not, nor does
    block diffusion's last layer, which stands behind its loop.
    """
    return _saved_bytes(getattr(jaxpr, "jaxpr", jaxpr), layers)


def _saved_bytes(jaxpr: Any, layers: int) -> int:
    found = 0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "scan" and params["length"] in (layers, layers - 1) and not params["reverse"]:
            stacked = [v.aval for v in equation.outvars[params["num_carry"] :]]
            found = max(found, sum(math.prod(a.shape) * a.dtype.itemsize for a in stacked))
        for inner in jax.core.jaxprs_in_params(params):
            found = max(found, _saved_bytes(inner, layers))
    return found
