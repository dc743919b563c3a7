"""The flags that the sampling programs share: a model, its mesh, and every setting of the sampler."""

import argparse
import dataclasses
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from qwen3llada_jax import cli
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.sampling.config import SETTINGS, SamplerConfig
from qwen3llada_jax.sampling.slots import SLOTS

from . import own_rules


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


_TYPES: dict[Any, Any] = {"whole": whole, "number": float, "flag": bool, "ids": ids}


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
    letters = {"whole": "N", "number": "X", "ids": "IDS"}
    for name, setting in SETTINGS.items():
        flags = [f"--{name.replace('_', '-')}"] + (["--cfg"] if name == "cfg_scale" else [])
        if isinstance(setting.kind, tuple):
            options: dict[str, Any] = {"choices": setting.kind}
        elif setting.kind == "flag":
            options = {"action": argparse.BooleanOptionalAction}
        else:
            options = {"type": _TYPES[setting.kind], "metavar": letters[setting.kind]}
        group.add_argument(*flags, dest=name, help=setting.help, **options)
    group.add_argument(
        "--rule",
        action="append",
        metavar="FILE:NAME",
        help="a rule of your own from a Python file, its numbers behind it: my.py:Halves:share=0.3 (docs/sampling.md)",
    )
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
    settings = own_rules.with_rules(SamplerConfig(**given), flags.rule or ())
    _check_revise_by(given, settings)
    return settings


def changed(settings: SamplerConfig, changes: Mapping[str, str], rules: Sequence[str] = ()) -> SamplerConfig:
    """Settings, some of them given anew as text; `default` takes one back, and `none` where that is no value of it.

    Args:
        rules: of a user's own, as `--rule` takes them, in the place of what was said of them before.

    Raises:
        InputError: no such setting or rule, or an impossible value.
    """
    new: dict[str, Any] = {}
    for name, text in changes.items():
        field = name.strip().replace("-", "_")
        if field not in SETTINGS:
            raise InputError(f"unknown setting {name.strip()!r}" + cli.nearest(field, [*SETTINGS]))
        kind, value = SETTINGS[field].kind, text.strip()
        is_taken_back = value == "default" or (value == "none" and not (isinstance(kind, tuple) and "none" in kind))
        new[field] = getattr(SamplerConfig(), field) if is_taken_back else _value(field, value)
    given = {name for name, value in new.items() if value != getattr(SamplerConfig(), name)}
    new |= {slot: None for slot in SLOTS if any(SETTINGS[name].slot == slot for name in given)}
    settings = dataclasses.replace(settings, **new)
    _check_revise_by(given, settings)
    if rules:
        settings = own_rules.without(settings, [own_rules.rule_of(text)[0] for text in rules])
    return own_rules.with_rules(settings, rules)


def told(settings: SamplerConfig) -> dict[str, Any]:
    """Settings by name, as a line or a file says them; rules of a user's own only where there are any."""
    own = {slot: repr(rule) for slot in SLOTS if (rule := getattr(settings, slot)) is not None}
    short = {name: getattr(settings, name) for name in SETTINGS}
    return {name: getattr(value, "__name__", value) for name, value in short.items()} | own


def _check_revise_by(given: Container[str], settings: SamplerConfig) -> None:
    if "revise_by" in given and not settings.revise:
        raise InputError("revise_by chooses what is masked again; it needs revise above 0")


def _value(name: str, text: str) -> Any:
    kind = SETTINGS[name].kind
    if isinstance(kind, tuple):
        return text  # SamplerConfig knows the choices
    what = {"whole": "a whole number", "number": "a number", "flag": "on or off", "ids": "ids, as 7,12"}[kind]
    try:
        if kind == "flag":
            return {"on": True, "true": True, "off": False, "false": False}[text.lower()]
        return _TYPES[kind](text)
    except (ValueError, KeyError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{name} must be {what}, not {text!r}") from error
