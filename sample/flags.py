"""The flags that the sampling programs share: a model, its mesh, and every setting of the sampler."""

import argparse
import dataclasses
from collections.abc import Container, Mapping
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any

from qwen3llada_jax import cli
from qwen3llada_jax.cli import Place, flag, ids, whole
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import VISIBILITIES
from qwen3llada_jax.sampling.config import CACHES, EOS_RULES, REVISE_BY, SamplerConfig
from qwen3llada_jax.sampling.rules import CONFIDENCE_RULES


def seed(text: str) -> int:
    """A seed; of a larger one JAX's random numbers would take 32 bits, or fail."""
    try:
        number = whole(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 … {(1 << 32) - 1}, not {text[:60]}")
    return number


Seed = Annotated[int, seed]
DTYPES = ("float32", "bfloat16", "float16")
# setting → (type or choices, help); the defaults are SamplerConfig's own.
SETTINGS: dict[str, tuple[Any, str]] = {
    "gen_length": (whole, "tokens to write (default: 128)"),
    "block_length": (whole, "tokens of a block (default: the model's, or 32)"),
    "steps": (whole, "forward passes over all blocks (default: one for each token; under an adaptive rule, no limit)"),
    "temperature": (float, "0: the likeliest token; above: a draw from softmax(logits / temperature) (default: 0)"),
    "top_k": (whole, "draw from the k likeliest tokens; needs a temperature"),
    "top_p": (float, "draw from the fewest tokens that have this probability together; needs a temperature"),
    "cfg_scale": (float, "classifier-free guidance; 0: off (default: 0)"),
    "repetition_penalty": (float, "above 1: ids that stand in the text become less likely (default: 1)"),
    "remasking": (tuple(CONFIDENCE_RULES), "who is written first (default: low_confidence)"),
    "threshold": (float, "adaptive: write all that are surer than this (fewer passes, other tokens than one by one)"),
    "factor": (float, "adaptive: write n at once while (n + 1)(1 - lowest probability) is below this"),
    "entropy_bound": (float, "adaptive: write n at once while their entropies, the largest apart, sum to at most this"),
    "revise": (whole, "tokens of each block that may be masked again after they were written (default: 0)"),
    "revise_by": (REVISE_BY, "which: the least certain when written, or random ones (default: confidence)"),
    "eos": (EOS_RULES, "EOS: as any token, never, or last in a block (default: free)"),
    "min_length": (whole, "no EOS among the first so many tokens (default: 0)"),
    "stop_at_eos": (bool, "a text ends at an EOS with nothing masked before it (default: on)"),
    "eos_token_ids": (ids, "ids that end a text, as 7,12 (default: the model's, the tokenizer's, <|im_end|>)"),
    "forbid": (ids, "ids that are never written, as 7,12"),
    "visibility": (VISIBILITIES, "who sees whom (default: what the model was trained with)"),
    "cache": (CACHES, "keys and values kept between passes: exact in float32 under block_bias and block_causal; under "
              "full both approximate, and the program says so (default: prefix under the former two, else none)"),
    "parallel_blocks": (bool, "all blocks in the same passes; exact in float32; needs block_bias (default: off)"),
    "mask_token_id": (whole, "(default: the model's)"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Model."""

    model: Place = flag("model folder, training run, or Hugging Face folder")
    dtype: str | None = flag("of weights and computation (default: as stored)", None, choices=DTYPES)
    seed: Seed = flag("of everything random (default: %(default)s)", 0, metavar="N")


@dataclass(frozen=True, kw_only=True)
class MeshFlags(ModelFlags):
    """Mesh: several devices; without any of these flags, the first one."""

    mesh_data: int | None = flag("size of the mesh axis data (default: what is left)", None, names=["--data"])
    mesh_fsdp: int | None = flag("size of the mesh axis fsdp (default: 1)", None, names=["--fsdp"])
    mesh_tensor: int | None = flag("size of the mesh axis tensor (default: 1)", None, names=["--tensor"])


THINKING = "let a chat's answers begin with their reasoning (default: as the model was taught)"
_TYPES: dict[Any, Any] = {whole: int, float: float, bool: bool, ids: tuple[int, ...]}


def _setting(name: str, kind: Any, text: str) -> tuple[str, Any, Any]:
    """The field of a setting of the sampler."""
    names = ["--cfg-scale", "--cfg"] if name == "cfg_scale" else []
    choices = kind if isinstance(kind, tuple) else ()
    return name, (str if choices else _TYPES[kind]) | None, flag(text, None, names=names, choices=choices)


# One flag for every setting of the sampler.
SamplerFlags: Any = make_dataclass(
    "SamplerFlags",
    [
        *(_setting(name, kind, text) for name, (kind, text) in SETTINGS.items()),
        ("block_attention", bool, flag("the same as --visibility block_bias", False)),
    ],
    namespace={"__doc__": "Sampler."},
    frozen=True,
    kw_only=True,
)


def check_counts(flags: Any, *names: str) -> None:
    """Refuse counts of nothing.

    Raises:
        InputError: naming the flag.
    """
    for name in names:
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(flags, name)}")


def settings_of(flags: Any) -> SamplerConfig:
    """The sampler's settings, from flags.

    Raises:
        InputError: impossible ones.
    """
    if flags.block_attention and flags.visibility not in (None, "block_bias"):
        raise InputError(f"--block-attention means --visibility block_bias, not {flags.visibility}; give one of them")
    given = {name: getattr(flags, name) for name in SETTINGS if getattr(flags, name) is not None}
    if flags.block_attention:
        given["visibility"] = "block_bias"
    settings = SamplerConfig(**given)
    _check_revise_by(given, settings)
    return settings


def changed(settings: SamplerConfig, changes: Mapping[str, str]) -> SamplerConfig:
    """Settings, some of them given anew as text; `default` takes one back, and `none` where that is no value of it.

    Raises:
        InputError: no such setting, or an impossible value.
    """
    new: dict[str, Any] = {}
    for name, text in changes.items():
        field = name.strip().replace("-", "_")
        if field not in SETTINGS:
            raise InputError(f"unknown setting {name.strip()!r}" + cli.nearest(field, [*SETTINGS]))
        kind, value = SETTINGS[field][0], text.strip()
        is_taken_back = value == "default" or (value == "none" and not (isinstance(kind, tuple) and "none" in kind))
        new[field] = getattr(SamplerConfig(), field) if is_taken_back else _value(field, value)
    settings = dataclasses.replace(settings, **new)
    _check_revise_by({name for name, value in new.items() if value != getattr(SamplerConfig(), name)}, settings)
    return settings


def _check_revise_by(given: Container[str], settings: SamplerConfig) -> None:
    if "revise_by" in given and not settings.revise:
        raise InputError("revise_by chooses what is masked again; it needs revise above 0")


def _value(name: str, text: str) -> Any:
    kind = SETTINGS[name][0]
    if isinstance(kind, tuple):
        return text  # SamplerConfig knows the choices
    what = {whole: "a whole number", float: "a number", bool: "on or off", ids: "ids, as 7,12"}[kind]
    try:
        return {"on": True, "true": True, "off": False, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{name} must be {what}, not {text!r}") from error
