"""Floating-point operations of matrix products: what a step needs, and what a traced program does.

A product of [m, k] by [k, n] is 2·m·k·n. Everything else (norms, softmax, the optimiser) is left out, as usual.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from qwen3llada_jax.config import ModelConfig


# Tokens that go through the head: the noised ones, half of them under the schedules that are symmetric in t.
NOISED_SHARE = 0.5


class Flops(NamedTuple):
    """FLOPs of one training step of the whole batch.

    Attributes:
        weights: products with weights, 6·N·(tokens): N counts the layers' projections, for every token, and the
            head, for noised ones. The embedding is looked up: an untied table costs nothing, a tied one as the head.
        attention: 12·layers·heads·head_dim·L² a row: scores and their product with the values, backward twice.
            Everyone sees everyone, so there is no half as under a causal mask.
    """

    weights: int
    attention: int

    @property
    def total(self) -> int:
        return self.weights + self.attention


def ideal(config: ModelConfig, rows: int, length: int) -> Flops:
    """The least a step of `rows` × `length` tokens needs: one forward and one backward pass, nothing twice."""
    c = config
    D, F, N, K, H = c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
    of_layer = D * H * (2 * N + 2 * K) + 3 * D * F
    used = c.num_hidden_layers * of_layer + NOISED_SHARE * c.vocab_size * D
    attention = 12 * c.num_hidden_layers * N * H * length * length
    return Flops(round(6 * used * rows * length), attention * rows)


class Traced(NamedTuple):
    """FLOPs of a traced program over all devices.

    Attributes:
        recomputed: the part inside rematerialised computations.
        kernels: the part inside Pallas kernels, which the compiled text does not show.
    """

    total: int
    recomputed: int
    kernels: int


def traced(jaxpr: Any, rounds: Mapping[str, int]) -> Traced:
    """Count a (closed) jaxpr: loops multiplied, the dearest branch of a conditional.

    Args:
        rounds: how often loops go round whose data decide it, by a word in their name stack.

    Raises:
        ValueError: such a loop, with matrix products, that `rounds` does not tell.
    """
    return _count(getattr(jaxpr, "jaxpr", jaxpr), rounds, "", in_kernel=False)


def _count(jaxpr: Any, rounds: Mapping[str, int], stack: str, *, in_kernel: bool) -> Traced:
    counts = []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        here = f"{stack}/{equation.source_info.name_stack}"
        if name == "dot_general":
            flops = _product(equation)
            counts.append(Traced(flops, flops * ("rematted_computation" in here), flops * in_kernel))
            continue
        kernel = in_kernel or name == "pallas_call"
        parts = [_count(inner, rounds, here, in_kernel=kernel) for inner in jax.core.jaxprs_in_params(params)]
        if not parts:
            continue
        times = 1
        if name == "scan":
            times = params["length"]
        elif name == "shard_map":
            times = math.prod(params["mesh"].shape[axis] for axis in params["manual_axes"])
        elif name == "pallas_call":
            times = math.prod(params["grid_mapping"].grid)
        elif name == "while" and sum(part.total for part in parts):
            known = [n for word, n in rounds.items() if word in here]
            if not known:
                raise ValueError(f"a loop in {here} goes round as its data decide")
            times = known[0]
        part = max(parts) if name == "cond" else _sum(parts)
        counts.append(Traced(*(times * n for n in part)))
    return _sum(counts)


def _sum(counts: list[Traced]) -> Traced:
    return Traced(*(sum(n) for n in zip(*counts, strict=True))) if counts else Traced(0, 0, 0)


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[d] for d in contracted)
