"""The optimizer, from optax: clipping, one of six update rules, masked decay, the scheduled rate."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from qwen3llada_jax.model.roles import Role, by_role

from ..config.schema import Config, OptimConfig
from . import freeze
from .eight_bit import in_8_bits
from .schedule import schedule


def optimizer(config: Config, steps: int, roles: Any) -> optax.GradientTransformation:
    """The whole chain, of parameters with these roles. State is float32 unless the configuration says otherwise."""
    t = config.training
    tx = optax.chain(
        *([optax.clip_by_global_norm(t.grad_clip)] if t.grad_clip > 0 else []),
        rule(config.optim, roles),
        optax.add_decayed_weights(t.weight_decay, mask=by_role(roles, is_matrix)),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )
    return freeze.hold(tx, roles, t.freeze) if t.freeze else tx


def rule(o: OptimConfig, roles: Any) -> optax.GradientTransformation:
    """Gradients to updates of learning rate 1, before decay.

    AdamW (arXiv 1711.05101) · Lion (2302.06675) · Adafactor (1804.04235) without its momentum and relative step, so
    that `lr` means what it means elsewhere · Muon, scaled to AdamW's size of update (2502.16982, equation 4).
    """
    b1, b2 = o.betas or ((0.9, 0.99) if o.name.startswith("lion") else (0.9, 0.95))
    adam = optax.scale_by_adam(b1, b2, o.eps or 1e-8, mu_dtype=o.moment_dtype)
    lion = optax.scale_by_lion(b1, b2, mu_dtype=o.moment_dtype)
    match o.name:
        case "adamw":
            return adam
        case "lion":
            return lion
        case "adamw8bit":
            return in_8_bits(adam, by_role(roles, is_matrix))
        case "lion8bit":
            return in_8_bits(lion, by_role(roles, is_matrix))
        case "adafactor":
            return optax.chain(optax.scale_by_factored_rms(), optax.stateless(by_role(roles, _clip_rms)))
        case "muon":
            axes = by_role(roles, lambda role, _: optax.contrib.MuonDimensionNumbers(role.input_dims, role.output_dims))
            muon = optax.contrib.scale_by_muon(mu_dtype=o.moment_dtype, weight_dimension_numbers=axes)
            muon = optax.chain(muon, optax.stateless(by_role(roles, _scale_to_adam)))
            kinds = by_role(roles, lambda role, _: "muon" if role.kind == "matrix" else "adam")
            return optax.partition({"muon": muon, "adam": adam}, kinds)
    raise ValueError(f"no optimizer {o.name!r}")


def state_shardings(tx: optax.GradientTransformation, params: Any, of_params: Any) -> Any:
    """Where the optimizer's state lies: each array like the parameter it belongs to, as far as its axes go.

    An axis that a scale has fewer of is split like the parameter's if that divides it; a factor (Adafactor's) that
    lacks an axis is split along the others. What remains is everywhere.

    Args:
        params: shapes of the parameters.
        of_params: their NamedShardings.
    """
    everywhere = NamedSharding(jax.tree.leaves(of_params)[0].mesh, P())

    def one(leaf: Any, param: Any, where: NamedSharding) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        parts = [*where.spec, *[None] * (param.ndim - len(where.spec))]
        for i in range(param.ndim):
            if leaf.shape == param.shape[:i] + param.shape[i + 1 :]:
                return NamedSharding(where.mesh, P(*parts[:i], *parts[i + 1 :]))
        if leaf.ndim != param.ndim:
            return everywhere
        fits = [p if n % _ways(where, p) == 0 else None for n, p in zip(leaf.shape, parts, strict=True)]
        return NamedSharding(where.mesh, P(*fits))

    return optax.tree.map_params(
        tx, one, jax.eval_shape(tx.init, params), params, of_params,
        transform_non_params=lambda _: everywhere, is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )  # fmt: skip


def _ways(where: NamedSharding, part: Any) -> int:
    return math.prod(where.mesh.shape[a] for a in ((part,) if isinstance(part, str) else part or ()))


def is_matrix(role: Role, _: Any) -> bool:
    """Whether a weight is a projection or a table; norms and biases are not decayed, nor their moments in 8 bits."""
    return role.kind in ("matrix", "table")


def _scale_to_adam(role: Role, u: Array) -> Array:
    inputs, outputs = (math.prod(u.shape[i] for i in dims) for dims in (role.input_dims, role.output_dims))
    return 0.2 * math.sqrt(max(inputs, outputs)) * u


def _clip_rms(role: Role, u: Array) -> Array:
    """Adafactor's clipping of an update to a root mean square of 1, each weight of a stacked one by itself."""
    rms = jnp.sqrt(jnp.mean(u * u, axis=range(len(role.stacked), u.ndim), keepdims=True))
    return u / jnp.maximum(rms, 1.0)
