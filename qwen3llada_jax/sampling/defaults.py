"""The settings of a model's own: its texts are written by them where nobody says otherwise."""

from collections.abc import Mapping
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling import slots
from qwen3llada_jax.sampling.config import SETTINGS, SamplerConfig


def settings_for(model: Qwen3LLaDA | ModelConfig, **given: Any) -> SamplerConfig:
    """Settings as given, the others the model's own (`ModelConfig.sampling`), the rest the sampler's.

    A rule that is given, by whichever of its names, leaves nothing of the model's in its place; only what is drawn from
    (`top_k`, `top_p`) stays under another temperature above 0.

    Args:
        given: fields of `SamplerConfig`.

    Raises:
        InputError: impossible settings.
    """
    config = model if isinstance(model, ModelConfig) else model.config
    try:
        return SamplerConfig(**(in_force(config, given) | given))
    except InputError as error:
        said = in_force(config, given)
        if not said:
            raise
        raise InputError(f"{error} (the model's own settings are {in_words(said)})") from error


def in_force(config: ModelConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Which of the model's own settings count beside those that are given."""
    rules = {name for name in given if name in slots.SLOTS and given[name] is not None}
    taken = rules | {SETTINGS[name].slot for name in given if name in SETTINGS} - {None, "draw"}
    is_greedy = given.get("temperature") == 0
    return {
        name: value
        for name, value in config.sampling
        if name not in given and _slot(name) not in taken and not (is_greedy and name in ("top_k", "top_p"))
    }


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings for a line: `temperature 0.6, top_k 20`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _slot(name: str) -> str | None:
    return SETTINGS[name].slot if name in SETTINGS else None
