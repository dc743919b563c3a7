"""Masked diffusion training (LLaDA, arXiv 2502.09992, equations 3 and 5): noise, weights and losses.

    L(θ) = − E_{t, x0, xt} [ 1/p(t) · Σ_i 1[xt_i is noised] log p_θ(x0_i | xt) ]

t is the noise level of a row, or of each of its tokens; a token is noised with probability p(t). Which tokens are
noised is carried as `is_noised`, never read back from the ids: clean text may contain the mask token.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qwen3llada_jax import arguments, threefry
from qwen3llada_jax.errors import InputError

SCHEDULES = ("uniform", "cosine", "md4_cosine", "power", "sigmoid")
NOISE_TYPES = ("mask", "random_replace")
WEIGHTS = ("reference", "elbo", "none")
_MOST_ID = 2**31 - 1  # ids are int32


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """How training text is noised. The defaults are LLaDA's.

    Attributes:
        eps: smallest noise probability: p = (1 − eps) · s(t) + eps.
        schedule: s(t): `uniform` t, `cosine` (1 − cos πt)/2 (the PyTorch system's, not that of MD4 and dllm),
            `md4_cosine` sin(πt/2), what MD4 (arXiv 2406.04329) and dllm call cosine, `power` t², `sigmoid`
            1/(1 + e^(−12(t − ½))).
        weight: `reference` weighs a noised token by 1/p. `elbo` weighs it by s′/s of the schedule (with
            eps), the weight under which the loss of any schedule bounds the likelihood (without
            `at_least_one`, spans and random tokens); for `uniform` both agree up to eps. `none`: 1.
        min_masking_rate: p is at least this.
        reweight_cap: the weight is at most this (None: no cap). Biases the loss as a likelihood.
        mask_contiguous_region_prob: share of rows that noise one span instead, of round(p · n) of the n
            tokens that may be noised.
        noise_type: `mask` puts the mask token, `random_replace` a uniformly random token.
        random_length_prob: share of pretraining rows cut to a uniformly random length.
        antithetic: spread t evenly over the global batch, t_i = (u + i/B) mod 1 (MD4, arXiv 2406.04329).
        at_least_one: a row with no noised token gets one at random, as in the PyTorch system. That token still
            weighs 1/p, so likelihoods must turn this off.
    """

    eps: float = 1e-3
    schedule: str = "uniform"
    weight: str = "reference"
    min_masking_rate: float = 0.0
    reweight_cap: float | None = None
    mask_contiguous_region_prob: float = 0.0
    noise_type: str = "mask"
    random_length_prob: float = 0.01
    antithetic: bool = False
    at_least_one: bool = True

    def __post_init__(self) -> None:
        for name in ("eps", "min_masking_rate", "mask_contiguous_region_prob", "random_length_prob", "reweight_cap"):
            if name != "reweight_cap" or self.reweight_cap is not None:
                object.__setattr__(self, name, arguments.number(f"noise {name}", getattr(self, name)))
        for name in ("antithetic", "at_least_one"):
            object.__setattr__(self, name, arguments.flag(f"noise {name}", getattr(self, name)))
        for name, known in (("schedule", SCHEDULES), ("noise_type", NOISE_TYPES), ("weight", WEIGHTS)):
            if getattr(self, name) not in known:
                raise InputError(f"noise {name} {getattr(self, name)!r} is unknown; choose one of {', '.join(known)}")
        if not 0 < self.eps < 1:
            raise InputError(f"noise eps must lie between 0 and 1, not {self.eps}")
        for name in ("min_masking_rate", "mask_contiguous_region_prob", "random_length_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"noise {name} must lie in [0, 1], not {getattr(self, name)}")
        if self.reweight_cap is not None and not self.reweight_cap > 0:
            raise InputError(f"noise reweight_cap must be above 0, not {self.reweight_cap}")
        if self.weight == "none" and self.reweight_cap is not None:
            raise InputError("noise reweight_cap has no effect with weight 'none'; leave one of them out")
        if self.weight == "elbo" and (self.min_masking_rate > 0 or self.reweight_cap is not None):
            raise InputError("noise weight 'elbo' is no bound with min_masking_rate or reweight_cap; use 'reference'")


class Noised(NamedTuple):
    """Noised rows.

    Attributes:
        tokens: [B, L] what the model sees.
        is_noised: [B, L] the positions to predict.
        p: [B, L] the probability with which each position was noised.
        weight: [B, L] weight of a position's cross-entropy, 1/p unless configured otherwise.
        t: [B] noise level of each row, or [B, L] of each token, as it was given.
    """

    tokens: Int[Array, "B L"]
    is_noised: Bool[Array, "B L"]
    p: Float[Array, "B L"]
    weight: Float[Array, "B L"]
    t: Float[Array, " B"] | Float[Array, "B L"]


def row_keys(seed_key: PRNGKeyArray, step: Int[Array, ""] | int, rows: Int[Array, " B"]) -> PRNGKeyArray:
    """[B] keys that depend on nothing but (seed, step, global row): the same on any mesh, after any resume."""
    at_step = jax.random.fold_in(seed_key, step)
    return jax.vmap(lambda row: jax.random.fold_in(at_step, row))(rows)


def sample_t(
    key: PRNGKeyArray, keys: PRNGKeyArray, rows: Int[Array, " B"], total: int, config: NoiseConfig
) -> Float[Array, " B"]:
    """Noise level of each row, uniform in [0, 1).

    Args:
        key: shared by the global batch, for the antithetic offset.
        keys: [B] one per row.
        rows: [B] number of each row within the global batch of `total` rows.
    """
    if config.antithetic:
        return (jax.random.uniform(key) + rows / total) % 1.0
    return jax.vmap(jax.random.uniform)(keys)


def noise_probability(t: Float[Array, "..."], config: NoiseConfig) -> Float[Array, "..."]:
    """p(t) = max((1 − eps) · s(t) + eps, min_masking_rate)."""
    p = (1 - config.eps) * _schedule(t, config.schedule) + config.eps
    return jnp.maximum(p, config.min_masking_rate)


def loss_weight(t: Float[Array, "..."], config: NoiseConfig) -> Float[Array, "..."]:
    """Weight of a noised token at noise level t.

    `reference`: 1/p. `elbo`: −α′/(1 − α) of the schedule, α = 1 − p (MDLM, arXiv 2406.07524, equation 10),
    which is p′/p, normalized so that its integral over t counts each token's −log p_θ once.
    """
    p = noise_probability(t, config)
    if config.weight == "elbo":
        slope = (1 - config.eps) * jax.vmap(jax.grad(lambda t: _schedule(t, config.schedule)))(t.reshape(-1))
        weight = slope.reshape(t.shape) / p
    elif config.weight == "none":
        weight = jnp.ones_like(p)
    else:
        weight = 1.0 / p
    return weight if config.reweight_cap is None else jnp.minimum(weight, config.reweight_cap)


def forward_process(
    keys: PRNGKeyArray | int,
    tokens: Int[Array, "B L"],
    mask_token_id: int,
    config: NoiseConfig = NoiseConfig(),
    *,
    can_noise: Bool[Array, "B L"] | None = None,
    t: Float[Array, " B"] | Float[Array, "B L"] | None = None,
    vocab_size: int | None = None,
) -> Noised:
    """Noise each row, or each token, at its own level (LLaDA, algorithm 1).

    Args:
        keys: [B] one per row, from `row_keys`; a single key, or a seed, is split over the rows.
        tokens: clean ids; lists will do. Of a narrow or unsigned dtype they become int32, which holds every id.
        can_noise: positions that may be noised (False: prompts and padding); None: all.
        t: noise levels in [0, 1], of rows or of tokens; drawn from `keys`, one a row, if not given. Of tokens, each is
            noised, and weighed, by its own p; `at_least_one` picks any position of a row that may be noised.
        vocab_size: ids below it replace tokens under `random_replace`.

    Raises:
        InputError: arguments whose kind or shape does not fit, a mask token that is no id, levels that are none, levels
            of tokens where spans are asked for, or `random_replace` without a `vocab_size` of 1 or more.
    """
    tokens, keys = jnp.asarray(arguments.rows("tokens", tokens)).astype(jnp.int32), threefry.quick(arguments.key(keys))
    B, L = tokens.shape
    if keys.ndim == 0:
        keys = jax.random.split(keys, B)
    if can_noise is None:
        can_noise = jnp.ones((B, L), bool)
    can_noise = jnp.asarray(arguments.truth("can_noise", can_noise))
    if not isinstance(mask_token_id, jax.core.Tracer):
        mask_token_id = arguments.whole("mask_token_id", mask_token_id)
        if not 0 <= mask_token_id <= _MOST_ID:
            raise InputError(f"mask_token_id must be an id, 0 … {_MOST_ID}, not {mask_token_id}")
    t = None if t is None else _levels(t)
    of_rows, of_tokens = (B,), (B, L)
    fits: tuple[tuple[str, Any, list[Any]], ...] = (
        ("keys", keys, [of_rows]), ("can_noise", can_noise, [of_tokens]), ("t", t, [of_rows, of_tokens]),
    )  # fmt: skip
    for name, array, shapes in fits:
        if array is not None and np.shape(array) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise InputError(f"{name} must be of shape {wanted} for these tokens, not {list(np.shape(array))}")
    if t is not None and t.ndim == 2 and config.mask_contiguous_region_prob > 0:
        raise InputError(
            f"mask_contiguous_region_prob noises spans, whose size is a row's noise level: t must be of shape [{B}], "
            f"not {list(t.shape)}"
        )
    if config.noise_type == "random_replace":
        if vocab_size is None:
            raise InputError("noise_type random_replace needs vocab_size: it puts ids below that")
        vocab_size = arguments.whole("vocab_size", vocab_size)
        if not 1 <= vocab_size <= _MOST_ID:
            raise InputError(f"vocab_size must be 1 … {_MOST_ID}, not {vocab_size}")
    if t is None:
        t = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0)))(keys)
    p = noise_probability(t, config)
    is_noised = jax.vmap(lambda k, p, can: _noise_row(jax.random.fold_in(k, 1), p, can, config))(keys, p, can_noise)
    if config.noise_type == "mask":
        replacement = jnp.full_like(tokens, mask_token_id)
    else:
        assert vocab_size is not None  # seen to above
        draw = lambda k: jax.random.randint(jax.random.fold_in(k, 2), (L,), 0, vocab_size, tokens.dtype)  # noqa: E731
        replacement = jax.vmap(draw)(keys)
    wide = lambda x: jnp.broadcast_to(x if x.ndim == 2 else x[:, None], (B, L))  # noqa: E731
    return Noised(jnp.where(is_noised, replacement, tokens), is_noised, wide(p), wide(loss_weight(t, config)), t)


def _levels(t: Any) -> Float[Array, "*B"]:
    """Noise levels as an array; inside `jit` there is no value to look at."""
    t = arguments.as_array("t", t, "noise levels [B] or [B, L]")
    if not isinstance(t, jax.core.Tracer):
        levels = np.asarray(t, np.float64)
        wrong = levels[~((levels >= 0) & (levels <= 1))]  # not a number, too
        if wrong.size:
            raise InputError(f"t must lie in [0, 1], not {wrong.flat[0]:g}: 0 is clean, 1 all noise")
    return jnp.asarray(t, jnp.float32)


def random_lengths(keys: PRNGKeyArray, length: int, config: NoiseConfig) -> Int[Array, " B"]:
    """How much of each pretraining row is kept: all, or with `random_length_prob` a uniform length in [1, L]."""

    def one(key: PRNGKeyArray) -> Int[Array, ""]:
        is_cut = jax.random.bernoulli(jax.random.fold_in(key, 3), config.random_length_prob)
        cut = jax.random.randint(jax.random.fold_in(key, 4), (), 1, length + 1)
        return jnp.where(is_cut, cut, length)

    return jax.vmap(one)(keys)


def pretrain_loss(
    ce: Float[Array, "B L"],
    is_noised: Bool[Array, "B L"],
    p: Float[Array, "B L"],
    *,
    weight: Float[Array, "B L"] | None = None,
    is_real: Bool[Array, "B L"] | None = None,
) -> Float[Array, ""]:
    """Σ is_noised · ce / p over the number of real tokens (LLaDA, equation 3, and its guidelines).

    Args:
        ce: −log p_θ(x0_i | xt), float32.
        weight: replaces 1/p.
        is_real: False for padding, which is not counted; None: every token is real.
    """
    is_noised = jnp.asarray(arguments.truth("is_noised", is_noised))
    ce, p = jnp.asarray(ce), jnp.asarray(p)
    weight = 1.0 / p if weight is None else jnp.asarray(weight)
    is_real = None if is_real is None else jnp.asarray(arguments.truth("is_real", is_real))
    count = ce.size if is_real is None else is_real.sum()
    return jnp.where(is_noised, ce * weight, 0.0).sum() / count


def sft_loss(
    ce: Float[Array, "B L"],
    is_noised: Bool[Array, "B L"],
    p: Float[Array, "B L"],
    answer_length: Int[Array, " B"],
    *,
    weight: Float[Array, "B L"] | None = None,
) -> Float[Array, ""]:
    """Mean over rows of Σ is_noised · ce / p / answer_length (LLaDA, equation 5, and its guidelines)."""
    is_noised = jnp.asarray(arguments.truth("is_noised", is_noised))
    ce, p, answer_length = jnp.asarray(ce), jnp.asarray(p), jnp.asarray(answer_length)
    weight = 1.0 / p if weight is None else jnp.asarray(weight)
    per_row = jnp.where(is_noised, ce * weight, 0.0).sum(axis=1) / answer_length
    return per_row.mean()


def shift_right(logits: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
    """The logits of the token at each position, from those of a network that predicts it at the position before
    (`config.shift`; Dream, arXiv 2508.15487); hidden states [B, L, D] alike. The first position has none before it, and
    keeps its own.

    Documents of a packed row begin with such a token too: like the first of a row it is not to be noised.

    Raises:
        InputError: no [B, L, V].
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 3:
        raise InputError(f"logits must be of shape [B, L, V], not {list(logits.shape)}")
    return jnp.concatenate([logits[:, :1], logits[:, :-1]], axis=1)


def _schedule(t: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    match name:
        case "uniform":
            return t
        case "cosine":
            return jnp.sin(jnp.pi * t / 2) ** 2  # = (1 − cos πt) / 2, without its cancellation
        case "md4_cosine":
            return jnp.sin(jnp.pi * t / 2)
        case "power":
            return t**2
        case _:
            return jax.nn.sigmoid(12 * (t - 0.5))


def _noise_row(
    key: PRNGKeyArray, p: Float[Array, "*L"], can: Bool[Array, " L"], config: NoiseConfig
) -> Bool[Array, " L"]:
    """Positions of one row to noise: each with probability p, or, where p is of the whole row, one span."""
    scatter, span, kind, one = jax.random.split(key, 4)
    chosen = jax.random.bernoulli(scatter, p, can.shape) & can
    if config.mask_contiguous_region_prob > 0:
        # Counted over the positions that may be noised, so a prompt or padding never shortens the span.
        count = can.sum()
        size = jnp.round(p * count).astype(jnp.int32)
        start = jnp.floor(jax.random.uniform(span) * (count - size + 1)).astype(jnp.int32)
        rank = jnp.cumsum(can) - 1
        region = can & (rank >= start) & (rank < start + size)
        chosen = jnp.where(jax.random.bernoulli(kind, config.mask_contiguous_region_prob), region, chosen)
    if config.at_least_one:
        pick = jnp.argmax(jnp.where(can, jax.random.uniform(one, can.shape), -1.0))
        alone = (jnp.arange(can.shape[0]) == pick) & can
        chosen = jnp.where(chosen.any(), chosen, alone)
    return chosen
