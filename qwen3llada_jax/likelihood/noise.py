"""Which tokens a draw noises, so that the weighted cross-entropies of the noised tokens are an unbiased bound.

A block of n tokens that the model writes in any order has the bound (LLaDA, arXiv 2502.09992, equations 3 and 6)

    −log p(x) ≤ E_{l ~ U{1 … n}} [ n/l · Σ_{noised} ce ]  =  ∫ dt/t · E_{noised with probability t} [ Σ_{noised} ce ]

with exactly l tokens noised on the left, each for itself on the right. Two ways to draw from it, both unbiased:

stratified   l = 1 + ⌊n · (k + u)/K⌋, u ~ U[0, 1), for the strata k = 0 … K − 1 of levels, and two draws of each, which
             know nothing of one another: their differences say how far the mean is off.
antithetic   a noise level t ~ U(0, 1) and weight 1/t, in pairs: the other draw has level 1 − t and noises the tokens
             that the first leaves, so that a pair asks for each token once. Its variance is infinite, if barely: of few
             noised tokens the weight is large.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

METHODS = ("stratified", "antithetic")


def noised_tokens(
    share: Float[Array, "..."], size: Int[Array, "..."], stratum: Int[Array, "..."], strata: int
) -> Int[Array, "..."]:
    """How many tokens of a block of `size` a draw of a stratum noises: 1 … size, all alike over the strata.

    Args:
        share: in [0, 1): where in the stratum.
    """
    count = 1 + jnp.floor(size * ((stratum + share) / strata)).astype(jnp.int32)
    return jnp.minimum(count, size)  # float32 may round up to the end


def draw(
    key: PRNGKeyArray,
    sample: Int[Array, ""],
    start: Int[Array, " L"],
    size: Int[Array, " L"],
    method: str,
    samples: int,
) -> tuple[Bool[Array, " L"], Float[Array, " L"], Float[Array, " L"]]:
    """(noised tokens, weight of their cross-entropy, noise level) of a row's draw; a function of key and sample.

    Args:
        key: of the row.
        sample: in 0 … samples − 1.
        start: of each token, how many tokens are asked for before its block: a block's name. Beyond all: not asked.
        size: how many tokens of its block are asked for; 0: it is not.
        samples: an even number.
    """
    own = jax.random.fold_in(key, sample if method == "stratified" else sample // 2)
    of_block, of_place = (_bits(jax.random.fold_in(own, n), x) for n, x in ((0, start), (1, jnp.arange(start.size))))
    if method == "stratified":
        share = (of_block >> 8) / jnp.float32(1 << 24)
        count = noised_tokens(share, size, sample // 2, samples // 2)
        order = jnp.lexsort((of_place, start))
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
        is_noised = rank - start < count
        level = count / jnp.maximum(size, 1)
    else:
        t = ((of_block >> 9) + 0.5) / jnp.float32(1 << 23)
        first = (of_place >> 8) / jnp.float32(1 << 24) < t
        is_second = sample % 2 == 1
        is_noised, level = first ^ is_second, jnp.where(is_second, 1 - t, t)
    is_noised &= size > 0
    return is_noised, jnp.where(is_noised, 1 / jnp.maximum(level, 1e-9), 0.0), level


def _bits(key: PRNGKeyArray, numbers: Int[Array, " L"]) -> Array:
    """32 random bits for each number, whatever others there are."""
    return jax.vmap(lambda n: jax.random.bits(jax.random.fold_in(key, n)))(numbers)
