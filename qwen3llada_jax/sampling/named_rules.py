"""The rules that a `SamplerConfig` asks for, by its short names or as such."""

from collections.abc import Sequence
from typing import Any

from qwen3llada_jax.sampling import rules, slots
from qwen3llada_jax.sampling.slots import Rule

Config = Any
_NEVER = 2.0  # no probability is above


def of(config: Config, likes: Sequence[Config], *, is_an_engine: bool) -> dict[str, Rule | None]:
    """{slot: the rule in force, or None}.

    Args:
        likes: the config itself, and in an engine that of the engine: what is on in one of them is there, without
            effect where it is off.
    """
    named = config.remasking
    order = rules.CONFIDENCE_RULES[named]() if isinstance(named, str) else slots.OwnOrder(named)
    stops = any(c.stop_at_eos and (c.eos_token_ids or is_an_engine) for c in likes)
    return {
        "order": config.order or order,
        "commit": commit_of(config),
        "draw": config.draw or _draw(config, likes),
        "remask": config.remask or _remask(config, likes),
        "stop": config.stop or (rules.AtEos() if stops else None),
        "finish": config.finish or _finish(config, likes),
        "edit": config.edit or _edit(config, likes),
    }


def commit_of(config: Config) -> Rule:
    """How many tokens a pass writes."""
    if config.commit is not None:
        return config.commit
    name = next((name for name in rules.COMMIT_RULES if getattr(config, name) is not None), None)
    return rules.COMMIT_RULES[name](getattr(config, name)) if name else rules.EvenShare()


def _draw(config: Config, likes: Sequence[Config]) -> Rule:
    if not any(c.temperature for c in likes):
        return rules.Greedy()
    of = config if config.temperature else likes[-1]
    if not any(c.anneal_to is not None for c in likes):
        return rules.Sample(config.temperature, of.top_k, of.top_p)
    to = config.temperature if config.anneal_to is None else config.anneal_to
    return rules.Annealed(config.temperature, to, of.top_k, of.top_p)


def _remask(config: Config, likes: Sequence[Config]) -> Rule | None:
    if config.narrow_out or (any(c.narrow_out for c in likes) and not config.revise):
        return rules.NarrowOut(config.narrow_out or 0.0, config.revise or rules.NO_LIMIT)
    if not any(c.revise for c in likes):
        return None
    kind = next((c.revise_by for c in likes if c.revise), config.revise_by)
    return rules.REMASK_RULES[kind](config.revise)


def _finish(config: Config, likes: Sequence[Config]) -> Rule | None:
    if not any(c.finish_below for c in likes):
        return None
    return rules.StableAndConfident(config.finish_below or 0.0)


def _edit(config: Config, likes: Sequence[Config]) -> Rule | None:
    if not any(c.edit_above for c in likes):
        return None
    return rules.Surer(config.edit_above) if config.edit_above else rules.Surer(_NEVER, 0)
