"""The settings of a model's own: its texts are written by them where nobody says otherwise."""

from collections.abc import Mapping
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import slots
from qwen3llada_jax.sampling.config import OF_A_DRAW, SETTINGS, SamplerConfig


def settings_for(model: Qwen3LLaDA | ModelConfig, **given: Any) -> SamplerConfig:
    """Settings as given, the others the model's own (`ModelConfig.sampling`), the rest the sampler's.

    A rule that is given, by whichever of its names, leaves nothing of the model's in its place; only what is drawn from
    (`top_k`, `top_p`) stays under another temperature above 0. Under `speculate` none says who is written, or how many.

    Args:
        given: fields of `SamplerConfig`.

    Raises:
        InputError: impossible settings.
    """
    config = model if isinstance(model, ModelConfig) else model.config
    return SamplerConfig(**(in_force(config, given) | given))


def in_force(config: ModelConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Which of the model's own settings count beside those that are given.

    Raises:
        InputError: one of its own that is none, or has an impossible value.
    """
    for name, value in config.sampling:
        if name not in SETTINGS:
            raise InputError(f"the model's own settings name {name!r}, which the sampler has not; leave it out")
        try:
            SETTINGS[name].taken(name, value)
        except InputError as error:
            raise InputError(f"the model's own settings (generation_config.json): {error}") from error
    return beside(dict(config.sampling), given)


def beside(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Which of one's own settings count beside those that are given, as `settings_for` says."""
    rules = {name for name in given if name in slots.SLOTS and given[name] is not None}
    taken = rules | {SETTINGS[name].slot for name in given if name in SETTINGS} - {None, "draw"}
    if given.get("speculate"):
        taken |= {"order", "commit", "remask"}
    is_greedy = given.get("temperature") == 0
    return {
        name: value
        for name, value in own.items()
        if name not in given and SETTINGS[name].slot not in taken and not (is_greedy and name in OF_A_DRAW)
    }


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings for a line: `temperature 0.6, top_k 20`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())
