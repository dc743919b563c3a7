"""What is trained on: here a configuration's objective is chosen (train/objectives/ has what there is)."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from qwen3llada_jax.diffusion import NoiseConfig
from qwen3llada_jax.model import masks
from qwen3llada_jax.model.masks import Mask

from .config.block_schedule import read_schedule
from .config.mix import mix_of
from .config.schema import BLOCK_LENGTH, BLOCK_ORIGIN, BLOCK_VISIBILITY, Config
from .monitor.model_flops import Reading, Readings
from .objectives.blocks import block_diffusion
from .objectives.example import DeviceBatch, Example, Objective
from .objectives.masked import masked
from .objectives.mixture import Mixture
from .objectives.noising import Corruption


def trained_objective(config: Config, mask_token_id: int, live: int, *, updates: int) -> Objective | Mixture:
    """What the updates train: a configuration's objective, or the mixture of several.

    Args:
        updates: of the whole run.
    """
    if config.training.mix is None:
        return objective_of(config, mask_token_id, live, updates=updates)
    names, shares = zip(*mix_of(config.training), strict=True)
    objectives = (objective_of(_alone(config, name), mask_token_id, live, updates=updates) for name in names)
    return Mixture(names, shares, tuple(objectives))


def readings_of(config: Config) -> Readings:
    """What updates read of each row, for their cost, each with its share of them (config settled)."""
    return tuple((share, reading_of(_alone(config, name))) for name, share in mix_of(config.training))


def _alone(config: Config, objective: str) -> Config:
    """The configuration that trains one objective of a mixture by itself; places of a block are block diffusion's."""
    t = config.training
    place_bias = t.place_bias if objective == "block_diffusion" else 0.0
    return dataclasses.replace(
        config, training=dataclasses.replace(t, objective=objective, mix=None, place_bias=place_bias)
    )


def objective_of(
    config: Config, mask_token_id: int, live: int, *, updates: int | None = None, for_evaluation: bool = False
) -> Objective:
    """The objective that `training.objective` names, whatever it is mixed with.

    For evaluation the noise is the same every time, no option that biases the loss applies, and blocks are of the
    length that they end with.

    Args:
        updates: of the whole run, which schedules are shares of; needed where there is one.
    """
    t, noise, blocks = config.training, config.training.noise, config.training.block_attention
    is_ragged = not config.dataset.pack_to_max_length or noise.random_length_prob > 0
    if for_evaluation:
        noise = NoiseConfig(eps=noise.eps, schedule=noise.schedule, weight="elbo", noise_type=noise.noise_type,
                            random_length_prob=0.0, at_least_one=False)  # fmt: skip
    rule, prompt_is_blocks = Mask("full"), False
    if blocks.enabled:
        kind = blocks.visibility or BLOCK_VISIBILITY
        rule = Mask(kind, blocks.block_length or BLOCK_LENGTH, bool(blocks.prompt_sees_answer) and kind == "block_bias")
        # What is aligned when it writes (dllm, by padding on the left) is trained counting from 0.
        prompt_is_blocks = (blocks.origin or BLOCK_ORIGIN) != BLOCK_ORIGIN
    by_mode = "rows" if config.learns_answers else "tokens"
    how = Corruption(noise, mask_token_id, live, rule, is_ragged, for_evaluation, bool(t.shift), prompt_is_blocks,
                     config.learns_answers, by_mode, causal_context=bool(blocks.causal_context))  # fmt: skip
    if not for_evaluation:
        how = how._replace(normalization=t.normalization or by_mode, complementary=t.complementary,
                           place_bias=t.place_bias, clean_loss=t.clean_loss)  # fmt: skip
    function = block_diffusion if t.objective == "block_diffusion" else masked
    if for_evaluation:
        return functools.partial(function, how=how)
    objective: Objective = functools.partial(function, how=how)
    if blocks.schedule is not None:
        assert updates is not None
        objective = functools.partial(_scheduled, function=function, how=how, stages=read_schedule(blocks.schedule),
                                      updates=updates)  # fmt: skip
    if t.causal_annealing:
        assert updates is not None
        objective = functools.partial(_annealed, objective=objective, updates=t.causal_annealing * updates)
    return objective


def reading_of(config: Config) -> Reading:
    """What an update of `training.objective` reads of each row, for its cost (config settled)."""
    t, times = config.training, 2 if config.training.complementary else 1
    if t.objective == "masked":
        return Reading(times)
    blocks = t.block_attention
    return Reading(times, blocks.block_length or BLOCK_LENGTH, bool(blocks.causal_context))


def _scheduled(
    batch: DeviceBatch, key: PRNGKeyArray, step: Int[Array, ""], *, function: Callable[..., Example],
    how: Corruption, stages: tuple[tuple[int, float], ...], updates: int,
) -> Example:  # fmt: skip
    """Blocks as long as it is their turn: the length is data, one program for all of them."""
    ends = jnp.array([until * updates for _, until in stages[:-1]])
    length = jnp.array([length for length, _ in stages], jnp.int32)[(step >= ends).sum()]
    rule = dataclasses.replace(how.rule, block_length=length)
    longest = max(length for length, _ in stages)
    return function(batch, key, step, how._replace(rule=rule, longest_block=longest))


def _annealed(
    batch: DeviceBatch, key: PRNGKeyArray, step: Int[Array, ""], *, objective: Objective, updates: float
) -> Example:
    """What stands behind a token comes into its sight little by little: each pair with a probability that grows from 0
    to 1 (DiffuLLaMA, arXiv 2410.17891, section 3.3)."""
    example = objective(batch, key, step)
    rule, L = example.mask, example.inputs.shape[1]
    assert isinstance(rule, Mask)
    share = jnp.minimum(step / updates, 1.0)
    # 11 is row 11's key too, where there is such a row. What both draw alike is one number, here of the pair (0, 0),
    # which is seen in any case.
    is_open = jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(key, step), 11), share, (1, L, L))
    place = jnp.arange(L)
    allowed: Bool[Array, "R L L"] = masks.dense(rule, L) & (is_open | (place[:, None] >= place))
    return example._replace(mask=allowed, positions=rule.positions)
