"""Floating-point operations of the matrix products of a traced program; a product [m, k] · [k, n] is 2·m·k·n."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from .hlo_parser import NO_SHARES

# cuDNN's attention, products of all queries with all keys: two forward, five backward (the scores again).
_CUDNN = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


class Traced(NamedTuple):
    """FLOPs of a traced program over all devices.

    Attributes:
        recomputed: the part inside rematerialized computations.
        kernels: the part inside kernels of Pallas or cuDNN, which the compiled text does not show.
    """

    total: int
    recomputed: int
    kernels: int


def traced(
    jaxpr: Any, trip_counts: Mapping[str, int], branch_shares: Mapping[str, Sequence[float]] = NO_SHARES
) -> Traced:
    """Count a (closed) jaxpr: loops multiplied, of a conditional the mean or, where no shares are given, the dearest
    branch.

    Args:
        trip_counts: how often loops go round whose data decide it, by a word in their name stack.
        branch_shares: the share of the runs of each branch, by the end of the conditional's name.

    Raises:
        ValueError: such a loop, with matrix products, that `trip_counts` does not tell.
    """
    return _count(getattr(jaxpr, "jaxpr", jaxpr), trip_counts, branch_shares, "", in_kernel=False)


def _count(
    jaxpr: Any, trip_counts: Mapping[str, int], branch_shares: Mapping[str, Sequence[float]], stack: str, *,
    in_kernel: bool,
) -> Traced:  # fmt: skip
    counts = []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        here = f"{stack}/{equation.source_info.name_stack}"
        if name == "dot_general" or name in _CUDNN:
            flops = _product(equation) if name == "dot_general" else _attention(equation)
            again, hidden = "rematted_computation" in here, in_kernel or name in _CUDNN
            counts.append(Traced(flops, flops * again, flops * hidden))
            continue
        kernel = in_kernel or name == "pallas_call"
        inner = jax.core.jaxprs_in_params(params)
        parts = [_count(one, trip_counts, branch_shares, here, in_kernel=kernel) for one in inner]
        if not parts:
            continue
        times = 1
        if name == "scan":
            times = params["length"]
        elif name == "shard_map":
            times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        elif name == "pallas_call":
            times = math.prod(params["grid_mapping"].grid)
        elif name == "while" and sum(part.total for part in parts):
            known = [n for word, n in trip_counts.items() if word in here]
            if not known:
                raise ValueError(f"a loop in {here} goes round as its data decide")
            times = known[0]
        part = _sum(parts)
        if name == "cond":
            shares = next((s for end, s in branch_shares.items() if f"{here}/cond".endswith(end)), None)
            part = max(parts) if shares is None else _mean(parts, shares)
        counts.append(Traced(*(times * n for n in part)))
    return _sum(counts)


def _sum(counts: list[Traced]) -> Traced:
    return Traced(*(sum(n) for n in zip(*counts, strict=True))) if counts else Traced(0, 0, 0)


def _mean(counts: list[Traced], shares: Sequence[float]) -> Traced:
    return Traced(*(round(sum(map(operator.mul, shares, of_all))) for of_all in zip(*counts, strict=True)))


def _attention(equation: Any) -> int:
    queries, keys = (v.aval.shape for v in equation.invars[:2])  # B L N H, B S K H
    return 2 * _CUDNN[equation.primitive.name] * math.prod(queries) * keys[1]


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[d] for d in contracted)
