"""The flags that the sampling programs share: a model, its mesh, and every setting of the sampler."""

import argparse
import dataclasses
import re
from collections.abc import Container, Mapping
from typing import Any

from qwen3llada_jax import cli
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import VISIBILITIES
from qwen3llada_jax.sampling.config import CACHES, EOS_RULES, REVISE_BY, SamplerConfig
from qwen3llada_jax.sampling.rules import CONFIDENCE_RULES


def ids(text: str) -> tuple[int, ...]:
    """Ids from `7,12`."""
    try:
        return tuple(whole(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be ids, as 7,12, not {text!r}") from error


def whole(text: str) -> int:
    """A whole number, in digits: Python would read 1_6, which is a name, as 16.

    Raises:
        ValueError: anything else.
    """
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", text):
        raise ValueError(f"invalid whole number {text[:60]!r}")
    return int(text)


def seed(text: str) -> int:
    """A seed; of a larger one JAX's random numbers would take 32 bits, or fail."""
    try:
        number = whole(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 … {(1 << 32) - 1}, not {text[:60]}")
    return number


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


def add_model_flags(parser: cli.Parser, data: str = "--data") -> None:
    """--model, its dtype, the seed, and the sizes of a mesh; `data` is what the flag of its first axis is called."""
    parser.add_argument(
        "--model", required=True, type=cli.Place, help="model folder, training run, or Hugging Face folder"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of weights and computation (default: as stored)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of everything random (default: %(default)s)")
    mesh = parser.add_argument_group("mesh", "several devices; without any of these flags, the first one")
    for axis, size in {"data": "what is left", "fsdp": "1", "tensor": "1"}.items():
        flag, text = data if axis == "data" else f"--{axis}", f"size of the mesh axis {axis} (default: {size})"
        mesh.add_argument(flag, dest=f"mesh_{axis}", type=whole, metavar="N", help=text)


def add_thinking_flag(parser: Any) -> None:
    """Whether a chat's answers may begin with a reasoning."""
    parser.add_argument(
        "--enable-thinking",
        action=argparse.BooleanOptionalAction,
        help="let a chat's answers begin with their reasoning (default: as the model was taught)",
    )


def add_setting_flags(parser: cli.Parser) -> None:
    """One flag for every setting of the sampler."""
    group = parser.add_argument_group("sampler")
    letters = {whole: "N", float: "X", ids: "IDS"}
    for name, (kind, text) in SETTINGS.items():
        flags = [f"--{name.replace('_', '-')}"] + (["--cfg"] if name == "cfg_scale" else [])
        options: dict[str, Any] = {"type": kind, "metavar": letters.get(kind)}
        if isinstance(kind, tuple):
            options = {"choices": kind}
        elif kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        group.add_argument(*flags, dest=name, help=text, **options)
    group.add_argument("--block-attention", action="store_true", help="the same as --visibility block_bias")


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
