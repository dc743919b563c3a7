"""Objectives mixed by weight: of `block_diffusion@0.7, masked@0.3` each update draws one."""

import math

from qwen3llada_jax.errors import InputError, shown

from .schema import OBJECTIVES, TrainingConfig

Mix = tuple[tuple[str, float], ...]
_KEY = "training.mix"
_WEIGHTS_SUM_TO_1_WITHIN = 1e-6


def mix_of(t: TrainingConfig) -> Mix:
    """((objective, the share of the updates that it is expected to have), …): of one objective alone, 1.

    Raises:
        InputError: as `read_mix`.
    """
    return ((t.objective, 1),) if t.mix is None else read_mix(t.mix)


def trains(t: TrainingConfig, objective: str) -> bool:
    """Whether some updates train this objective."""
    return objective in dict(mix_of(t))


def read_mix(text: str) -> Mix:
    """((objective, its weight), …), in the order in which they are written.

    Raises:
        InputError: what is no such list, or names none or one twice, or whose weights are no shares of a whole.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, at, weight = (piece.strip() for piece in part.partition("@"))
        if not at:
            raise InputError(
                f"{_KEY} must be objectives, each with its weight, as in block_diffusion@0.7, masked@0.3; "
                f"not {shown(text)}"
            )
        if name not in OBJECTIVES:
            raise InputError(f"{_KEY}: {shown(name)} is unknown; choose of {', '.join(OBJECTIVES)}")
        if name in found:
            raise InputError(f"{_KEY} names {name} twice; name each objective once, in {shown(text)}")
        found[name] = _weight(weight, text)
    if len(found) == 1:
        raise InputError(f"{_KEY} mixes two objectives or more: leave it out to train {next(iter(found))} alone")
    if abs(sum(found.values()) - 1) > _WEIGHTS_SUM_TO_1_WITHIN:
        raise InputError(f"{_KEY}: the weights must sum to 1, not to {sum(found.values()):g}; in {shown(text)}")
    return tuple(found.items())


def _weight(text: str, whole: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f"{_KEY}: a weight must be a number above 0, not {shown(text)}, in {shown(whole)}")
    return weight
