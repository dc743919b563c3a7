"""What self-speculation (passes/speculation.py) goes with: models that can verify, settings that go with it."""

import dataclasses
from typing import TYPE_CHECKING

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.sampling.setting import setting_of

if TYPE_CHECKING:
    from qwen3llada_jax.sampling.config import SamplerConfig

_ORDERED = "what is written is what is verified, from left to right"


def check_settings(config: "SamplerConfig") -> None:
    """Refuse what would write otherwise than an autoregressive model.

    Raises:
        InputError: naming the setting.
    """
    slots = ("order", "commit", "remask", "finish", "edit")
    of_rules = {
        f.name: getattr(config, f.name) != f.default
        for f in dataclasses.fields(config)
        if f.name in slots or ((setting := setting_of(f)) and setting.slot in slots)
    }
    given = {
        **of_rules,
        **{name: getattr(config, name) for name in ("steps", "sub_block_length", "parallel_blocks", "anneal_to")},
        "eos 'last'": config.eos == "last",
    }
    for name, value in given.items():
        if value:
            raise InputError(f"{name} has no place under speculate, where {_ORDERED}; leave one of the two out")
    if config.repetition_penalty != 1:
        raise InputError(
            "repetition_penalty under speculate: a draft cannot know what others of it repeat; set it to 1"
        )
    if not isinstance(config.draw, rules.Greedy | rules.Sample | None):
        raise InputError("draw under speculate: of a rule of one's own no probabilities are known; use temperature")
    if not isinstance(config.stop, rules.AtEos | None):
        raise InputError("stop under speculate: a text ends at its EOS alone; leave the rule out")


def check_model(model: ModelConfig, block_length: int, visibility: str) -> None:
    """Refuse a model that does not read a text as an autoregressive one does, and a draft of nothing.

    Raises:
        InputError: saying how to train or ask one.
    """
    is_causal = model.causal_context or model.is_autoregressive
    if visibility != "block_causal" or not is_causal:
        raise InputError(
            "speculate verifies a draft by reading it from left to right, which this model was not trained for"
            + ("" if visibility == "block_causal" else f" (visibility {visibility})")
            + "; train it with training.block_attention.causal_context, or leave speculate out"
        )
    if not model.shift:
        raise InputError(
            "speculate verifies a token at the position before it, and this model predicts each at its own; train it "
            "with training.shift, or leave speculate out"
        )
    if block_length < 2:
        raise InputError("speculate drafts a block at a time, and one of 1 token leaves nothing to draft; set "
                         "block_length, as 4")  # fmt: skip
