"""A model as one of another family: whether that family can say what it is, and its config.json there."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from qwen3llada_jax.commands import as_typed
from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.families.records import AUTOREGRESSIVE, FAMILIES, Family
from qwen3llada_jax.model.config import ModelConfig


def choice_of(family: Family) -> str:
    """What a family is called by who asks for it: `a2d` for the three of them, whose base follows from the model."""
    return re.sub(r"-(qwen[0-9]?|llama)$", "", family.model_type.lower().replace("_", "-"))


CHOICES: tuple[str, ...] = tuple(dict.fromkeys(map(choice_of, FAMILIES.values())))

# Facts that are no keys of the published files: written where the family leaves them open.
_OURS = ("visibility", "block_length", "shift", "block_origin", "prompt_sees_answer", "causal_context",
         "enable_thinking")  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Families whose published models all have a head of their own, and whose code knows no other.
_UNTIED = ("sdar", "Dream")
# Families whose code takes the hidden size over the heads.
_DERIVES_HEAD_DIM = ("Dream", "Fast_dLLM_Qwen")
# What stands in every published SDAR's config.json beside its sizes; its code lies on the hub.
_SDAR = {
    "attention_dropout": 0.0,
    "attn_implementation": "flex_attention",
    "auto_map": {
        "AutoConfig": "JetLM/SDAR-4B-Chat--configuration_sdar.SDARConfig",
        "AutoModel": "JetLM/SDAR-4B-Chat--modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "JetLM/SDAR-4B-Chat--modeling_sdar.SDARForCausalLM",
    },
    "debug": False,
    "ep_size": 1,
    "fuse_cross_entropy": True,
    "micro_forward": False,
    "skip_checkpoint": False,
    "use_cache": True,
    "use_deepep": False,
    "use_sliding_window": False,
}
_FROM = {"prompt": "its prompt's end", "start": "position 0", "aligned": "its prompt's end, backward too"}


def as_family(config: ModelConfig, choice: str | None) -> ModelConfig:
    """The same model as one of another family (None: of its own).

    Raises:
        InputError: that family cannot say what the model is, with the reason and the families that can.
    """
    if choice is None:
        wanted = [config.family]
    else:
        wanted = [family for family in FAMILIES.values() if choice_of(family) == choice]
    reasons = {family.name: _misfit(config, family) for family in wanted}
    for family in wanted:
        if reasons[family.name] is None:
            return _renamed(config, family)
    # Of several the one whose parts are the model's says more than the others.
    fitting = next((f for f in wanted if _of_other_parts(config, f) is None), wanted[0])
    others = dict.fromkeys(choice_of(f) for f in FAMILIES.values() if _misfit(config, f) is None)
    ways = f"; it can be written --as {listed(others, ' or ')}" if others else ""
    raise InputError(f"the model is not {_a(fitting)}: {reasons[fitting.name]}{ways}")


def config_json(config: ModelConfig, dtype: str, *, knows_live: bool) -> dict[str, Any]:
    """A model's `config.json` as its family publishes it, with keys of ours only for what no model of it implies.

    Args:
        knows_live: the tokenizer beside it says by itself which rows are tokens.
    """
    family, written = config.family, config.to_hf()
    if _is_open(family):
        if config.is_autoregressive:
            written.pop("is_causal", None)  # as it was: transformers writes with it too
        return written | {"dtype": dtype, "torch_dtype": dtype}
    kept = ("sampling",) * bool(_needs_sampling(config)) + ("live_vocab_size",) * (not knows_live)
    dropped = {*_OURS, "sampling", "live_vocab_size", "rope_parameters"} - set(kept)
    if family.model_type in _DERIVES_HEAD_DIM:
        dropped.add("head_dim")
    plain = {k: v for k, v in written.items() if k not in dropped and (v is not None or k not in _IDS)}
    if family.model_type == "sdar":
        plain |= _SDAR
    implied = ModelConfig.from_hf(plain)
    plain |= {k: written[k] for k in _OURS if getattr(implied, k) != getattr(config, k)}
    return plain | {"torch_dtype": dtype}


def _a(family: Family) -> str:
    """A family's name behind its article."""
    return f"{'an' if family.name.startswith(('SDAR', 'A2D')) else 'a'} {family.name}"


def _is_open(family: Family) -> bool:
    """Whether nothing of a family's own files says what its diffusion models see."""
    return len(family.kinds) > 1 or AUTOREGRESSIVE in family.kinds.values()


def _needs_sampling(config: ModelConfig) -> bool:
    """Whether generation_config.json cannot say how the model is sampled."""
    known = {"temperature", "top_k", "top_p", "repetition_penalty"}
    return config.family.sampling != {} or not {name for name, _ in config.sampling} <= known


def _renamed(config: ModelConfig, family: Family) -> ModelConfig:
    tied = config.tie_word_embeddings and family.model_type not in _UNTIED
    return dataclasses.replace(config, model_type=family.model_type, tie_word_embeddings=tied)


def _misfit(config: ModelConfig, family: Family) -> str | None:
    """Why a model is none of a family; None: it is one."""
    if reason := _of_other_parts(config, family) or _sees_otherwise(config, family):
        return reason
    if config.mask_token_id is None and not config.is_autoregressive and not _is_open(family):
        return f"it names no mask token (import it with {as_typed('converters.from_hf')})"
    renamed = _renamed(config, family)
    try:
        again = ModelConfig.from_hf(config_json(renamed, "float32", knows_live=False))
    except InputError as error:
        return str(error)
    apart = [f.name for f in dataclasses.fields(config) if getattr(again, f.name) != getattr(renamed, f.name)]
    differ = [name for name in apart if name not in ("live_vocab_size", "sampling")]
    if differ:
        values = listed(f"{name} {getattr(config, name)}" for name in differ)
        return f"its config.json has no place for {values}"
    return None


def _of_other_parts(config: ModelConfig, family: Family) -> str | None:
    """Norms and biases that a family has and the model has not, or the other way round."""
    if config.family.has_qk_norm != family.has_qk_norm:
        has, lacks = ("it has", "lacks") if config.family.has_qk_norm else ("it has no", "has")
        return f"{has} norms of queries and keys, which {_a(family)} {lacks}"
    ours = config.family.biases if config.attention_bias else ()
    theirs = family.biases if ours or family.has_own_biases else ()
    if ours != theirs:
        return f"it has biases of {', '.join(ours) or 'nothing'}, {_a(family)} of {', '.join(theirs) or 'nothing'}"
    return None


def _sees_otherwise(config: ModelConfig, family: Family) -> str | None:
    """What a model was trained with and no model of a family is."""
    if AUTOREGRESSIVE in family.kinds.values():
        return None  # of these config.json says it, in keys of ours
    kinds: dict[str, Mapping[str, Any]] = {kind["visibility"]: kind for kind in family.kinds.values()}
    kind = kinds.get(config.visibility)
    if kind is None:
        return f"it was trained with visibility {config.visibility}, {_a(family)} with {listed(kinds, ' or ')}"
    if config.shift and not kind["shift"]:
        return f"it predicts a token at the position before it (shift), {_a(family)} at its own"
    if kind["shift"] and not config.shift:
        return f"it predicts a token at its own position, {_a(family)} at the one before it (shift)"
    if config.causal_context:
        return f"it reads what stands before a block from left to right (causal_context), {_a(family)} in blocks"
    if config.block_origin != kind["block_origin"]:
        ours, theirs = _FROM[config.block_origin], _FROM[kind["block_origin"]]
        return f"its blocks are counted from {ours}, those of {_a(family)} from {theirs}"
    return None
