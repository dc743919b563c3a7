"""Qwen3 (arXiv 2505.09388) as a bidirectional encoder: the backbone of a masked diffusion language model.

The layers and weights are Qwen3's; only the causal mask is gone. Each layer is

    x ← x + Attention(RMSNorm(x)),   x ← x + MLP(RMSNorm(x))

with grouped-query attention, an RMSNorm on every query and key head, rotary positions and a SwiGLU MLP.

Dims: B batch · L length · D hidden · N query heads · K key/value heads · H head · F MLP · V vocabulary.
Weights keep PyTorch's [out, in] order, and the weights of all layers are stacked, so that importing a
checkpoint moves bytes and one `scan` runs (and compiles) a single layer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_policies
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax import attention, masks, sharding
from qwen3llada_jax.config import ModelConfig
from qwen3llada_jax.embedding import lookup
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.masks import Mask
from qwen3llada_jax.rope import apply_rope, rope_tables
from qwen3llada_jax.sharding import constrain

# What lies between a stored weight and its gathered form (`sharding.gather` is the custom_vjp_call).
_ON_THE_WAY = ("custom_vjp_call", "sharding_constraint", "convert_element_type", "reshape", "transpose", "squeeze")


def _all_but_gathered_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keep every activation for the backward pass, but no gathered weight: together they are the whole model."""
    return primitive.name not in _ON_THE_WAY


REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "none": _all_but_gathered_weights,
    "dots": checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class Runtime:
    """How to compute, not what: none of it changes the weights.

    Attributes:
        dtype: compute dtype; None means the weights' own. Norms, softmax, RoPE and logits are float32 always.
        attention: an implementation of `attention.IMPLEMENTATIONS`.
        remat: what the backward pass recomputes, a key of `REMAT_POLICIES`.
    """

    dtype: str | None = None
    attention: str = "auto"
    remat: str = "none"


def _weight(rngs: nnx.Rngs, dtype: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float | None) -> nnx.Param:
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
            return _weight(rngs, dtype, (c.num_hidden_layers, *shape), ("layers", *axes.split()), std)

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


class Qwen3LLaDA(nnx.Module):
    """Tokens [B, L] in, a distribution over every position's token out, each seeing all others.

    A tied head is the embedding table itself, one array, in memory, in training and on disk.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: str = "float32", runtime: Runtime = Runtime()):
        """A model with freshly drawn weights of `dtype`."""
        table, axes = (config.vocab_size, config.hidden_size), ("vocab", "embed")
        self.config, self.runtime = config, runtime
        self.embed_tokens = _weight(rngs, dtype, table, axes, config.initializer_range)
        self.layers = Layers(config, rngs=rngs, dtype=dtype)
        self.norm = _weight(rngs, dtype, (config.hidden_size,), ("norm",), None)
        if not config.tie_word_embeddings:
            self.lm_head = _weight(rngs, dtype, table, axes, config.initializer_range)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        mask: Mask | Bool[Array, "R L L"] | None = None,
        positions: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of every position, float32.

        Args:
            tokens: ids in [0, V).
            mask: who attends to whom: a rule, or a bool array with R = B or 1, True = may attend;
                None: everyone to everyone.
            positions: rotary positions; None means 0 … L-1 in every row.

        Raises:
            InputError: an id outside the embedding table (checked when the ids are known, outside `jit`).
        """
        check_tokens(tokens, self.config.vocab_size)
        return self.logits(self.hidden(tokens, mask, positions))

    def hidden(
        self,
        tokens: Int[Array, "B L"],
        mask: Mask | Bool[Array, "R L L"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        where: Int[Array, "B W"] | None = None,
    ) -> Float[Array, "B W D"]:
        """Final hidden states, normalised: what `logits` takes. Arguments as in `__call__`.

        Args:
            where: the positions to give, in [0, L); None: all, in order. The last layer computes no other.
        """
        L = tokens.shape[1]
        x = constrain(lookup(self.embed_tokens[...], tokens, self.compute_dtype), "batch", "length", "act_embed")
        if positions is None:
            positions = jnp.arange(L, dtype=jnp.int32)[None]
        rope = rope_tables(self.config, positions)
        kind = attention.choose(self.runtime.attention, x.dtype, L, self.config.head_dim)
        if isinstance(mask, Mask) and not mask.sees_everything and kind in ("xla", "cudnn"):
            mask = jnp.asarray(masks.dense(mask, L))  # once, not in every layer

        def layer(x: Array, weights: Layers) -> tuple[Array, None]:
            return weights(x, rope, mask, kind), None

        if self.runtime.remat != "none" or not jax.sharding.get_abstract_mesh().empty:
            layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT_POLICIES[self.runtime.remat])
        if where is None:
            x, _ = jax.lax.scan(layer, x, self.layers)
        else:
            numbers = jnp.arange(self.config.num_hidden_layers)
            x, _ = jax.lax.scan(lambda x, number: layer(x, self.layer(number)), x, numbers[:-1])
            # Were this number a constant, XLA would copy that layer once and hold it through all passes of a sampler.
            last = jnp.minimum(numbers[-1] + jnp.isnan(x[0, 0, 0]), numbers[-1])
            x = self.layer(last).only_at(where, x, rope, mask)
        return rms_norm(x, self.norm[...], self.config.rms_norm_eps)

    def layer(self, number: Int[Array, ""] | int) -> Layers:
        """One layer of the stack."""
        return jax.tree.map(lambda weight: weight[number], self.layers)

    @property
    def compute_dtype(self) -> Any:
        """What matmuls and activations are in: the runtime's dtype, else the weights' own."""
        return self.runtime.dtype or self.embed_tokens.dtype

    @property
    def head(self) -> Float[Array, "V D"]:
        """The output table: the embedding itself when tied."""
        return (self.embed_tokens if self.config.tie_word_embeddings else self.lm_head)[...]

    @jax.named_scope("head")
    def logits(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """Unnormalised log-probabilities of the given hidden states (any positions), float32."""
        return jnp.einsum("bld,vd->blv", hidden, self.head.astype(hidden.dtype), preferred_element_type=jnp.float32)


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


def check_tokens(tokens: Int[Array, "..."] | np.ndarray, vocab_size: int) -> None:
    """Refuse ids outside the table: indexing would clamp them in silence.

    Raises:
        InputError: naming the first id outside. Tracers, whose values are not known, pass.
    """
    if isinstance(tokens, jax.core.Tracer):
        return
    ids = np.asarray(tokens)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise InputError(
            f"token id {wrong} is outside the embedding table (0 … {vocab_size - 1}); "
            "was the text tokenised with another model's tokenizer?"
        )


def abstract(config: ModelConfig, dtype: str = "float32", runtime: Runtime = Runtime()) -> tuple[Any, dict, dict]:
    """The model without its numbers.

    Returns:
        (graphdef, shapes, axes): `nnx.merge(graphdef, params)` makes a model of a tree like `shapes`, whose
        leaves are ShapeDtypeStructs; `axes` is the same tree of logical axis names.
    """
    model = nnx.eval_shape(lambda: Qwen3LLaDA(config, rngs=nnx.Rngs(0), dtype=dtype, runtime=runtime))
    graphdef, state = nnx.split(model, nnx.Param)
    axes = jax.tree.map(lambda p: p.get_metadata("axes"), state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes)


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, a tied head counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(config)[1]))
