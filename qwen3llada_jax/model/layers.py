"""Qwen3's decoder layers without the causal mask: one stack of weights for all of them, or each apart.

Each layer is

    x ← x + Attention(RMSNorm(x)),   x ← x + MLP(RMSNorm(x))

with grouped-query attention, an RMSNorm on every query and key head, rotary positions and a SwiGLU MLP.

Dims: B batch · L length · D hidden · N query heads · K key/value heads · H head · F MLP.
Weights keep PyTorch's [out, in] order, and the weights of all layers are stacked, so that importing a
checkpoint moves bytes and one `scan` runs (and compiles) a single layer.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax import sharding
from qwen3llada_jax.model import attention, masks
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.masks import Mask
from qwen3llada_jax.model.rope import apply_rope
from qwen3llada_jax.sharding import constrain


def new_weight(
    rngs: nnx.Rngs, dtype: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float | None
) -> nnx.Param:
    """One weight: shape, dtype, logical axes and initialiser, here and nowhere else (std None: ones)."""
    if std is None:
        value = jnp.ones(shape, dtype)
    elif std == 0:
        value = jnp.zeros(shape, dtype)
    else:
        value = std * jax.random.normal(rngs.params(), shape, dtype)
    return nnx.Param(value, axes=axes)


class Layers(nnx.Module):
    """All decoder layers, each weight stacked along a leading `layers` axis; called on one slice of it."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: str = "float32"):
        c, std = config, config.initializer_range
        D, F, N, K, H = c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.config = config

        def weight(shape: tuple[int, ...], axes: str, std: float | None) -> nnx.Param:
            return new_weight(rngs, dtype, (c.num_hidden_layers, *shape), ("layers", *axes.split()), std)

        self.input_norm = weight((D,), "norm", None)
        self.q_proj = weight((N, H, D), "heads head_dim embed", std)
        self.k_proj = weight((K, H, D), "kv_heads head_dim embed", std)
        self.v_proj = weight((K, H, D), "kv_heads head_dim embed", std)
        self.o_proj = weight((D, N, H), "embed heads head_dim", std)
        self.q_norm = weight((H,), "norm", None)
        self.k_norm = weight((H,), "norm", None)
        if c.attention_bias:
            self.q_bias = weight((N, H), "heads head_dim", 0)
            self.k_bias = weight((K, H), "kv_heads head_dim", 0)
            self.v_bias = weight((K, H), "kv_heads head_dim", 0)
            self.o_bias = weight((D,), "norm", 0)
        self.mlp_norm = weight((D,), "norm", None)
        self.gate_proj = weight((F, D), "mlp embed", std)
        self.up_proj = weight((F, D), "mlp embed", std)
        self.down_proj = weight((D, F), "embed mlp", std)

    def one(self, number: Int[Array, ""] | int) -> "Layers":
        """A single layer of the stack."""
        return jax.tree.map(lambda weight: weight[number], self)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        rope: tuple[Array, Array],
        mask: Mask | Bool[Array, "R L L"] | None,
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
        mask: Mask | Bool[Array, "R L L"] | None,
    ) -> Float[Array, "B W D"]:
        """The same, given only at the positions `where`: of the others, keys and values are computed and no more."""
        allowed = masks.seen_from(mask, where, x.shape[1])
        keys, values = self.keys_values(self.normed(x), rope)
        x, *rope_there = (masks.rows_at(y, where) for y in (x, *rope))
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
        mask: Mask | Bool[Array, "R L L"] | None,
        implementation: str,
    ) -> Float[Array, "B L D"]:
        """Grouped-query attention with normalised, rotated queries and keys."""
        queries, (keys, values) = self.queries(x, rope), self.keys_values(x, rope)
        return self.output(attention.attention(queries, keys, values, mask, implementation))

    def queries(self, x: Float[Array, "B L D"], rope: tuple[Array, Array]) -> Float[Array, "B L N H"]:
        """Queries, normalised and rotated."""
        q = self._heads(x, self.q_proj, self.q_bias if self.config.attention_bias else None)
        return apply_rope(rms_norm(q, self.q_norm[...], self.config.rms_norm_eps), *rope)

    def keys_values(
        self, x: Float[Array, "B L D"], rope: tuple[Array, Array]
    ) -> tuple[Float[Array, "B L K H"], Float[Array, "B L K H"]]:
        """Keys, normalised and rotated, and values."""
        has_bias = self.config.attention_bias
        k = self._heads(x, self.k_proj, self.k_bias if has_bias else None)
        v = self._heads(x, self.v_proj, self.v_bias if has_bias else None)
        return apply_rope(rms_norm(k, self.k_norm[...], self.config.rms_norm_eps), *rope), v

    def _heads(self, x: Float[Array, "B L D"], weight: nnx.Param, bias: nnx.Param | None) -> Float[Array, "B L N H"]:
        heads = project(x, weight)
        heads = heads if bias is None else heads + bias.astype(x.dtype)
        return constrain(heads, "batch", "length", "act_heads", "head_dim")

    def output(self, attended: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
        """The attention's heads mixed back into the hidden size."""
        out = project(attended, self.o_proj, inputs=2)
        return out + self.o_bias.astype(out.dtype) if self.config.attention_bias else out

    @jax.named_scope("mlp")
    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """SwiGLU: down(silu(gate(x)) · up(x))."""
        gate, up = project(x, self.gate_proj), project(x, self.up_proj)
        hidden = constrain(jax.nn.silu(gate) * up, "batch", "length", "act_mlp")
        return project(hidden, self.down_proj)


def project(x: Float[Array, "B L ..."], weight: nnx.Param, inputs: int = 1) -> Float[Array, "B L ..."]:
    """Contract the last `inputs` axes of x with the last of one layer's weight, in x's dtype.

    One plain matmul over B · L rows: with B and L apart, the weight's gradient runs a third slower on CPUs.
    """
    axes = weight.get_metadata("axes")[1:]  # without `layers`
    whole = sharding.gather(weight[...], axes, x.dtype)
    outer, inner = whole.shape[: whole.ndim - inputs], math.prod(whole.shape[whole.ndim - inputs :])
    rows = jnp.einsum("ri,oi->ro", x.reshape(-1, inner), whole.reshape(-1, inner))
    return rows.reshape(*x.shape[: x.ndim - inputs], *outer)


@jax.named_scope("rms_norm")
def rms_norm(x: Float[Array, "... D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """x / √(mean(x²) + eps) · weight (RMSNorm, arXiv 1910.07467), in float32, rounded once."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * weight.astype(jnp.float32)).astype(x.dtype)


# A layer's weights that are smaller than this are copied out of the stack in less time than a list of arrays costs.
_WORTH_IT = 1 << 21


def apart(layers: Layers | nnx.List) -> Layers | nnx.List:
    """A list of single layers in place of the stack, where that is faster: on one CPU.

    There XLA copies a layer's weights out of the stack before it multiplies with them, in every pass: a tenth to a
    fifth of a sampler's time. The list's arrays lie in the stack's own memory and cost a few milliseconds; but the
    program has every layer in it, and compiles longer.
    """
    if isinstance(layers, nnx.List):
        return layers
    arrays, count = jax.tree.leaves(layers), layers.config.num_hidden_layers
    devices = {device for x in arrays for device in (x.devices() if isinstance(x, jax.Array) else ())}
    if len(devices) != 1 or sum(x.nbytes for x in arrays) < count * _WORTH_IT:
        return layers
    device = devices.pop()
    if device.platform != "cpu":
        return layers
    views = jax.tree.map(np.asarray, layers)
    return nnx.List(jax.device_put([views.one(number) for number in range(count)], device, may_alias=True))
