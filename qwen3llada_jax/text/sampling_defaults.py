"""How a model's publishers sample from it: what its generation_config.json and its family say.

transformers' keys stand for the sampler's settings of the same names. They count for models that are sampled by them:
an autoregressive one, until it is adapted, and families whose own code reads them; there, what the file says wins over
what the family's models have in common.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3llada_jax.io.atomic_files import home
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.text.text_ends import read_object

_FILE = "generation_config.json"
_TOP_K = 50  # of transformers, where a text is drawn and the file does not say


def with_sampling(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config of a folder, with the settings by which its texts are to be written, unless it names them already.

    Raises:
        InputError: a file that is no JSON object.
    """
    family, is_autoregressive = config.family.sampling, config.is_autoregressive
    if config.sampling or (family is None and not is_autoregressive):
        return config
    said = read_object(home(folder) / _FILE)
    found = dict(family or {})
    if said.get("repetition_penalty") not in (None, 1):
        found["repetition_penalty"] = said["repetition_penalty"]
    found |= _as_transformers_draws(said) if is_autoregressive else _drawn(said)
    return dataclasses.replace(config, sampling=tuple(sorted(found.items())))


# What of a generation_config.json has no say in which tokens are written, or is read elsewhere.
_READ_OR_INERT = frozenset(
    "temperature top_k top_p repetition_penalty do_sample bos_token_id eos_token_id pad_token_id mask_token_id "  # noqa: SIM905
    "decoder_start_token_id transformers_version use_cache cache_implementation cache_config return_dict_in_generate "
    "output_scores output_logits output_attentions output_hidden_states max_length max_new_tokens "
    "return_legacy_cache prefill_chunk_size compile_config disable_compile".split()
)
# Values under which a key changes nothing, beside null, false and 0.
_NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "typical_p": 1, "length_penalty": 1,
    "encoder_repetition_penalty": 1, "guidance_scale": 1,
}  # fmt: skip


def unread(folder: Path) -> dict[str, Any]:
    """What a folder's generation_config.json asks for and no setting of the sampler stands for.

    Raises:
        InputError: a file that is no JSON object.
    """
    said = read_object(home(folder) / _FILE)
    found = {k: v for k, v in said.items() if k not in _READ_OR_INERT and not k.startswith("_")}
    return {k: v for k, v in found.items() if v and _NEUTRAL.get(k) != v}


def _as_transformers_draws(said: Mapping[str, Any]) -> dict[str, Any]:
    """What its `generate` does: nothing is drawn unless `do_sample` is true."""
    return _drawn({"temperature": 1.0, "top_k": _TOP_K} | dict(said)) if said.get("do_sample") is True else {}


def _drawn(said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of drawing a token; those that change nothing are left out."""
    if said.get("do_sample") is False or not said.get("temperature"):
        return {}
    off = {"temperature": (None,), "top_k": (None, 0), "top_p": (None, 1)}
    return {name: said[name] for name, nothing in off.items() if said.get(name) not in nothing}
