"""Qwen3's decoder layers without the causal mask: one stack of weights for all of them, or each apart.

Each layer is

    x ← x + Attention(RMSNorm(x)),   x ← x + MLP(RMSNorm(x))

with grouped-query attention, an RMSNorm on every query and key head, rotary positions and a SwiGLU MLP.

Dims: B batch · L length · D hidden · N query heads · K key/value heads · H head · F MLP.
Weights keep PyTorch's [out, in] order, and the weights of all layers are stacked, so that importing a
checkpoint moves bytes and one `scan` runs (and compiles) a single layer.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax import fsdp, sharding
from qwen3llada_jax.model import attention, coordinates
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.coordinates import Coordinates, Tiles
from qwen3llada_jax.model.roles import Kind, Role
from qwen3llada_jax.model.rope import apply_rope
from qwen3llada_jax.sharding import constrain


def new_weight(rngs: nnx.Rngs, dtype: str, shape: tuple[int, ...], role: Role, std: float) -> nnx.Param:
    """Declare one weight: shape, dtype and role, here and nowhere else (std: of matrices and tables)."""
    if role.kind == "norm":
        value = jnp.ones(shape, dtype)
    elif role.kind == "bias" or std == 0:
        value = jnp.zeros(shape, dtype)
    else:
        value = std * jax.random.normal(rngs.params(), shape, dtype)
    return nnx.Param(value, role=role)


class Layers(nnx.Module):
    """All decoder layers, each weight stacked along a leading `layers` axis; called on one slice of it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: str = "float32"):
        c, biases = config, config.family.biases if config.attention_bias else ()
        D, F, N, K, H = c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.config = config

        def weight(kind: Kind, shape: tuple[int, ...], outputs: str, inputs: str = "") -> nnx.Param:
            role = Role(kind, tuple(outputs.split()), tuple(inputs.split()), stacked=("layers",))
            return new_weight(rngs, dtype, (c.num_hidden_layers, *shape), role, c.initializer_range)

        self.input_norm = weight("norm", (D,), "norm")
        self.q_proj = weight("matrix", (N, H, D), "heads head_dim", "embed")
        self.k_proj = weight("matrix", (K, H, D), "kv_heads head_dim", "embed")
        self.v_proj = weight("matrix", (K, H, D), "kv_heads head_dim", "embed")
        self.o_proj = weight("matrix", (D, N, H), "embed", "heads head_dim")
        self.q_norm = weight("norm", (H,), "norm") if c.family.has_qk_norm else None
        self.k_norm = weight("norm", (H,), "norm") if c.family.has_qk_norm else None
        self.q_bias = weight("bias", (N, H), "heads head_dim") if "q" in biases else None
        self.k_bias = weight("bias", (K, H), "kv_heads head_dim") if "k" in biases else None
        self.v_bias = weight("bias", (K, H), "kv_heads head_dim") if "v" in biases else None
        self.o_bias = weight("bias", (D,), "norm") if "o" in biases else None
        self.mlp_norm = weight("norm", (D,), "norm")
        self.gate_proj = weight("matrix", (F, D), "mlp", "embed")
        self.up_proj = weight("matrix", (F, D), "mlp", "embed")
        self.down_proj = weight("matrix", (D, F), "embed", "mlp")

    def one(self, number: Int[Array, ""] | int) -> "Layers":
        """A single layer of the stack."""
        return jax.tree.map(lambda weight: weight[number], self)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        rope: tuple[Array, Array],
        mask: Coordinates | Tiles | Bool[Array, "R L L"] | None,
        attention_implementation: str,
    ) -> Float[Array, "B L D"]:
        """One layer (`self` sliced to it)."""
        x = x + self.attend(self.normed(x), rope, mask, attention_implementation)
        return self.with_mlp(x)

    def only_at(
        self,
        where: Int[Array, "B W"],
        x: Float[Array, "B L D"],
        rope: tuple[Array, Array],
        allowed: Tiles | Bool[Array, "B W L"] | None,
    ) -> Float[Array, "B W D"]:
        """The same, given only at the positions `where`: of the others, keys and values are computed and no more.

        Args:
            allowed: which positions each of `where` may attend to.
        """
        keys, values = self.keys_values(self.normed(x), rope)
        x, *rope_there = (coordinates.rows_at(y, where) for y in (x, *rope))
        queries = self.queries(self.normed(x), (rope_there[0], rope_there[1]))
        return self.with_mlp(x + self.output(attention.attention(queries, keys, values, allowed, "xla")))

    def normed(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """What the attention reads."""
        return rms_norm(x, self.input_norm[...], self.config.rms_norm_eps)

    def with_mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The second half of a layer."""
        x = x + self.mlp(rms_norm(x, self.mlp_norm[...], self.config.rms_norm_eps))
        return constrain(x, "batch", "length", "act_embed")

    @jax.named_scope("attention")
    def attend(
        self,
        x: Float[Array, "B L D"],
        rope: tuple[Array, Array],
        mask: Coordinates | Tiles | Bool[Array, "R L L"] | None,
        implementation: str,
    ) -> Float[Array, "B L D"]:
        """Grouped-query attention with normalized, rotated queries and keys."""
        queries, (keys, values) = self.queries(x, rope), self.keys_values(x, rope)
        return self.output(attention.attention(queries, keys, values, mask, implementation))

    def queries(self, x: Float[Array, "B L D"], rope: tuple[Array, Array]) -> Float[Array, "B L N H"]:
        """Queries, normalized and rotated."""
        return apply_rope(self._heads(x, self.q_proj, self.q_bias, self.q_norm), *rope)

    def keys_values(
        self, x: Float[Array, "B L D"], rope: tuple[Array, Array]
    ) -> tuple[Float[Array, "B L K H"], Float[Array, "B L K H"]]:
        """Keys, normalized and rotated, and values."""
        keys = self._heads(x, self.k_proj, self.k_bias, self.k_norm)
        return apply_rope(keys, *rope), self._heads(x, self.v_proj, self.v_bias, None)

    def _heads(
        self, x: Float[Array, "B L D"], weight: nnx.Param, bias: nnx.Param | None, norm: nnx.Param | None
    ) -> Float[Array, "B L N H"]:
        heads = project(x, weight)
        heads = heads if bias is None else heads + bias.astype(x.dtype)
        heads = constrain(heads, "batch", "length", "act_heads", "head_dim")
        return heads if norm is None else rms_norm(heads, norm[...], self.config.rms_norm_eps)

    def output(self, attended: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
        """The attention's heads mixed back into the hidden size."""
        out = project(attended, self.o_proj)
        return out if self.o_bias is None else out + self.o_bias.astype(out.dtype)

    @jax.named_scope("mlp")
    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """SwiGLU: down(silu(gate(x)) · up(x))."""
        return _down(project(x, self.gate_proj), project(x, self.up_proj), self.down_proj)


def project(x: Float[Array, "B L ..."], weight: nnx.Param) -> Float[Array, "B L ..."]:
    """Contract the last axes of x with the inputs of one layer's weight, in x's dtype.

    One plain matmul over B · L rows: with B and L apart, the weight's gradient runs a third slower on CPUs.
    """
    role = weight.get_metadata("role")
    whole = fsdp.gather(weight[...], role.outputs + role.inputs, x.dtype)
    outer, inner = whole.shape[: len(role.outputs)], math.prod(whole.shape[len(role.outputs) :])
    axes = role.outputs[0], role.inputs[0]  # those that a mesh may split
    rows = fsdp.product(x.reshape(-1, inner), whole.reshape(-1, inner), axes)
    return rows.reshape(*x.shape[: x.ndim - len(role.inputs)], *outer)


# What follows is cheaper to compute again in the backward pass than to write down in the forward pass and read.


@jax.checkpoint
def _down(gate: Float[Array, "B L F"], up: Float[Array, "B L F"], weight: nnx.Param) -> Float[Array, "B L D"]:
    return project(constrain(jax.nn.silu(gate) * up, "batch", "length", "act_mlp"), weight)


@functools.partial(jax.checkpoint, static_argnums=2)
@jax.named_scope("rms_norm")
def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """x / √(mean(x²) + eps) · weight (RMSNorm, arXiv 1910.07467), in float32, rounded once."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * weight.astype(jnp.float32)).astype(x.dtype)


# A layer's weights that are smaller than this are copied out of the stack in less time than a list of arrays costs.
_WORTH_IT = 1 << 21


def are_faster_apart(layers: Layers | nnx.List) -> bool:
    """Whether a program that is traced for one CPU had better have each layer of the stack in it than a loop."""
    return isinstance(layers, Layers) and sharding.is_one_cpu() and _are_large(layers)


def _are_large(layers: Layers) -> bool:
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(layers))
    return total >= layers.config.num_hidden_layers * _WORTH_IT


def unstack_layers(layers: Layers | nnx.List) -> Layers | nnx.List:
    """A list of single layers in place of the stack, where that is faster: on one CPU.

    There XLA copies a layer's weights out of the stack before it multiplies with them, in every pass: a tenth to a
    fifth of a sampler's time. The list's arrays lie in the stack's own memory and cost a few milliseconds; but the
    program has every layer in it, and compiles longer.
    """
    if isinstance(layers, nnx.List):
        return layers
    arrays, count = jax.tree.leaves(layers), layers.config.num_hidden_layers
    devices = {device for x in arrays for device in (x.devices() if isinstance(x, jax.Array) else ())}
    if len(devices) != 1 or not _are_large(layers):
        return layers
    device = devices.pop()
    if device.platform != "cpu":
        return layers
    views = jax.tree.map(np.asarray, layers)
    return nnx.List(jax.device_put([views.one(number) for number in range(count)], device, may_alias=True))
