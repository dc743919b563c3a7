"""Qwen3 (arXiv 2505.09388) as a bidirectional encoder: the backbone of a masked diffusion language model.

The layers (layers.py) and weights are Qwen3's; only the causal mask is gone.

Dims: B batch · L length · W some of its positions · D hidden · V vocabulary.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_policies
from jaxtyping import Array, Bool, Float, Int

from qwen3llada_jax import arguments, bfloat16, sharding
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.model import attention, coordinates, masks
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.coordinates import Coordinates, Tiles
from qwen3llada_jax.model.embedding import lookup
from qwen3llada_jax.model.layers import Layers, are_faster_apart, new_weight, rms_norm
from qwen3llada_jax.model.masks import Mask
from qwen3llada_jax.model.roles import Role, roles_of
from qwen3llada_jax.model.rope import rope_tables
from qwen3llada_jax.sharding import constrain

# What lies between a stored weight and its gathered form (`fsdp.gather` is the custom_vjp_call).
_ON_THE_WAY = ("custom_vjp_call", "sharding_constraint", "convert_element_type", "reshape", "transpose", "squeeze")


def _all_but_gathered_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keep every activation for the backward pass, but no gathered weight: together they are the whole model."""
    return primitive.name not in _ON_THE_WAY


# What takes a layer out of the stack.
_TAKES = ("dynamic_slice", "squeeze")


def _all_but_taken_weights(policy: Callable[..., Any] | None) -> Callable[..., Any]:
    """What a policy (None: everything) keeps for the backward pass, but for layers out of the stack: all of them would
    be a second stack."""
    return lambda primitive, *x, **y: primitive.name not in _TAKES and (policy is None or policy(primitive, *x, **y))


REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "none": _all_but_gathered_weights,
    "dots": checkpoint_policies.save_from_both_policies(
        checkpoint_policies.dots_with_no_batch_dims_saveable,
        checkpoint_policies.save_only_these_names(bfloat16.PRODUCT),
    ),
    "full": checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class Runtime:
    """How to compute, not what: none of it changes the weights.

    Attributes:
        dtype: compute dtype; None means the weights' own. Norms, softmax, RoPE and logits are float32 always.
        attention: an implementation of `attention.IMPLEMENTATIONS`.
        remat: what the backward pass recomputes, a key of `REMAT_POLICIES`.
        layers_apart: on one CPU compile each layer of 2 MB or more by itself rather than a loop over them: faster,
            where a compiled program runs often enough to make up for compiling longer, as a training step does.
    """

    dtype: str | None = None
    attention: str = "auto"
    remat: str = "none"
    layers_apart: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None:
            object.__setattr__(self, "dtype", arguments.dtype("runtime dtype", self.dtype))
        for name, known in (("attention", attention.IMPLEMENTATIONS), ("remat", tuple(REMAT_POLICIES))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} {shown(getattr(self, name))} is unknown; choose one of {', '.join(known)}")


class Qwen3LLaDA(nnx.Module):
    """Tokens [B, L] in, a distribution over every position's token out.

    Who sees whom is `config.visibility` unless a mask says otherwise: everyone sees everyone in a plain import.

    A tied head is the embedding table itself, one array, in memory, in training and on disk.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: str = "float32", runtime: Runtime = Runtime()):
        """A model with freshly drawn weights of `dtype`."""
        table, std = (config.vocab_size, config.hidden_size), config.initializer_range
        looked_up, multiplied = Role("table", ("vocab", "embed")), Role("table", ("vocab",), ("embed",))
        self.config, self.runtime = config, runtime
        self.embed_tokens = new_weight(rngs, dtype, table, multiplied if config.tie_word_embeddings else looked_up, std)
        self.layers: Layers | nnx.List = Layers(config, rngs=rngs, dtype=dtype)
        self.norm = new_weight(rngs, dtype, (config.hidden_size,), Role("norm", ("norm",)), std)
        if not config.tie_word_embeddings:
            self.lm_head = new_weight(rngs, dtype, table, multiplied, std)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        mask: Mask | Coordinates | Bool[Array, "R L L"] | None = None,
        positions: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of every position, float32.

        Args:
            tokens: ids in [0, V); lists will do.
            mask: who attends to whom: a rule, the coordinates of every token, or a bool array (or one of 0 and 1) with
                R = B or 1, True = may attend; None: the model's own visibility, with blocks counted from position 0
                (an empty prompt), or from left to right where context is read so.
                `q.Mask("full")` asks for everyone to see everyone.
            positions: rotary positions; None means those of the mask, which without any are 0 … L-1 in every row
                (0 … L/2-1 twice under `block_diffusion`).

        Raises:
            InputError: an id outside the embedding table (checked when the ids are known, outside `jit`), or
                arguments whose kind or shape does not fit.
        """
        tokens = arguments.rows("tokens", tokens)
        check_tokens(tokens, self.config.vocab_size)
        return self.logits(self.hidden(tokens, mask, positions))

    def hidden(
        self,
        tokens: Int[Array, "B L"],
        mask: Mask | Coordinates | Bool[Array, "R L L"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        where: Int[Array, "B W"] | None = None,
    ) -> Float[Array, "B W D"]:
        """Final hidden states, normalized: what `logits` takes. Arguments as in `__call__`.

        Args:
            where: the positions to give, in [0, L); None: all, in order. The last layer computes no other.

        Raises:
            InputError: arguments whose kind or shape does not fit.
        """
        tokens = jnp.asarray(arguments.rows("tokens", tokens))
        visible: Any = masks.for_model(mask, self.config, *tokens.shape)
        if where is not None:
            where = jnp.asarray(_places(where, *tokens.shape))
        given = (self, tokens, visible, positions, where)
        is_late = sharding.is_one_cpu() and not _are_traced(given) and is_converted_on_cpu(self)
        return _hidden_late(*given) if is_late else Qwen3LLaDA._hidden(*given)

    def _hidden(
        self,
        tokens: Int[Array, "B L"],
        visible: Any,
        positions: Int[Array, "B L"] | None,
        where: Int[Array, "B W"] | None,
    ) -> Float[Array, "B W D"]:
        L = tokens.shape[1]
        x = constrain(lookup(self.embed_tokens[...], tokens, self.compute_dtype), "batch", "length", "act_embed")
        positions = masks.positions_of(visible, positions, *tokens.shape)
        rope = rope_tables(self.config, positions)
        kind = attention.choose(self.runtime.attention, x.dtype, L, self.config.head_dim)
        # Once, not in every layer; splash takes coordinates.
        pairs = visible if kind.startswith("splash") else coordinates.laid_out(visible, L, in_runs=kind == "xla")

        def layer(x: Array, _: Array | int, weights: Layers) -> Array:
            return weights(x, rope, pairs, kind)

        # Gathered or cast, they would be kept for the backward pass, every layer's. A CPU has the memory, and would
        # compute again all that follows from a cast.
        are_cast = self.compute_dtype != self.embed_tokens.dtype and not sharding.is_one_cpu()
        weights_are_made = sharding.mesh_axes("embed") or are_cast
        is_computed_again = self.runtime.remat != "none" or weights_are_made
        count = self.config.num_hidden_layers if where is None else self.config.num_hidden_layers - 1
        # Outside a loop XLA would compute it once and keep it; tiles are many attentions a layer.
        may_be_apart = self.runtime.layers_apart and not is_computed_again and not isinstance(pairs, Tiles)
        apart = may_be_apart and are_faster_apart(self.layers)
        policy = REMAT_POLICIES[self.runtime.remat] if is_computed_again else None
        x = self.scan_layers(layer, x, count, apart=apart, policy=policy)
        if where is not None:
            x = self._last_layer(x).only_at(where, x, rope, coordinates.seen_from(visible, where))
        return rms_norm(x, self.norm[...], self.config.rms_norm_eps)

    def scan_layers(
        self,
        step: Callable[[Any, Array | int, Layers], Any],
        carry: Any,
        count: int,
        *,
        apart: bool = False,
        policy: Callable[..., Any] | None = None,
    ) -> Any:
        """`step(carry, number, layer)` over the first `count` layers.

        Compiled once for all layers of a stack, or `apart`: each by itself, without copies to the stack and from it.

        Args:
            policy: what of a step is kept for the backward pass; None: everything.
        """
        layers = self.layers
        numbers, unroll = jnp.arange(count), count if apart else 1
        if isinstance(layers, Layers) and count < self.config.num_hidden_layers:  # a part of it would be a copy

            def one(carry: Any, number: Array) -> Any:
                return step(carry, number, layers.one(number))

            one = jax.checkpoint(one, prevent_cse=False, policy=_all_but_taken_weights(policy))
            return jax.lax.scan(lambda carry, n: (one(carry, n), None), carry, numbers, unroll=unroll)[0]
        if policy is not None:
            step = jax.checkpoint(step, prevent_cse=False, policy=policy)
        if isinstance(layers, nnx.List):
            for number in range(count):
                carry = step(carry, number, layers[number])
            return carry
        return jax.lax.scan(lambda carry, x: (step(carry, *x), None), carry, (numbers, layers), unroll=unroll)[0]

    def _last_layer(self, x: Float[Array, "B L D"]) -> Layers:
        if isinstance(self.layers, nnx.List):
            return self.layers[-1]
        last = self.config.num_hidden_layers - 1
        # Were the number a constant, XLA would copy that layer once and hold it through all passes of a sampler.
        return self.layers.one(jnp.minimum(last + jnp.isnan(x[0, 0, 0]), last))

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
        """Unnormalized log-probabilities of the given hidden states (any positions), float32."""
        return jnp.einsum("bld,vd->blv", hidden, self.head.astype(hidden.dtype), preferred_element_type=jnp.float32)


# For `jax.jit(compiler_options=…)` where `is_converted_on_cpu`: each layer's weights are converted where they are used.
# XLA likes to convert all weights before the first layer and to hold both.
CONVERTED_LATE = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
_hidden_late = jax.jit(Qwen3LLaDA._hidden, compiler_options=CONVERTED_LATE)


def _are_traced(given: Any) -> bool:
    """Whether these are a part of a program that is being traced, where what is computed anew is a tracer too."""
    return any(isinstance(x, jax.core.Tracer) for x in (jnp.zeros(()), *jax.tree.leaves(given)))


def is_converted_on_cpu(model: Qwen3LLaDA) -> bool:
    """Whether XLA may convert weights before it multiplies: on CPUs, to float32, but for most products of bfloat16."""
    weights = jax.tree.leaves(model)
    platforms = {device.platform for x in weights if isinstance(x, jax.Array) for device in x.devices()}
    return "cpu" in platforms and {str(x.dtype) for x in weights} | {str(jnp.dtype(model.compute_dtype))} != {"float32"}


def _places(where: Any, rows: int, length: int) -> Int[Array, "B W"]:
    """The positions that are asked for.

    Raises:
        InputError: none in [0, L), or of other rows than the tokens'.
    """
    places = arguments.rows("where", where, "[B, W]")
    if places.shape[0] != rows:
        raise InputError(f"where must be [{rows}, W], as many rows as tokens, not of shape {list(places.shape)}")
    arguments.within("where", places, length - 1)
    return places


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
            "was the text tokenized with another model's tokenizer?"
        )


def abstract(config: ModelConfig, dtype: str = "float32", runtime: Runtime = Runtime()) -> tuple[Any, dict, dict]:
    """The model without its numbers.

    Returns:
        (graphdef, shapes, roles): `nnx.merge(graphdef, params)` makes a model of a tree like `shapes`, whose
        leaves are ShapeDtypeStructs; `roles` is the same tree of what each weight is (`Role`).
    """
    # 1 and 1.0 are equal, but not to a config.json; the mesh in use is part of the shapes.
    key = repr(config), jax.sharding.get_abstract_mesh()
    graphdef, *trees = _abstract(config, dtype, runtime, key)
    shapes, roles = jax.tree.map(lambda leaf: leaf, trees)  # dicts of the caller's own
    return graphdef, shapes, roles


@functools.lru_cache(maxsize=32)
def _abstract(config: ModelConfig, dtype: str, runtime: Runtime, key: Any) -> tuple[Any, dict, dict]:
    """Kept by what it depends on: every step of opening a folder asks for it, and a model of any size takes 25 ms."""
    model = nnx.eval_shape(lambda: Qwen3LLaDA(config, rngs=nnx.Rngs(0), dtype=dtype, runtime=runtime))
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state), roles_of(model)


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, a tied head counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(config)[1]))
