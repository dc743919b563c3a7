"""The flags that the sampling programs share: a model, its mesh, and every setting of the sampler."""

import argparse
import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any

from qwen3llada_jax import cli
from qwen3llada_jax.cli import Place, flag, ids, whole
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.sampling.config import OF_A_DRAW, SETTINGS, SamplerConfig
from qwen3llada_jax.sampling.setting import Setting
from qwen3llada_jax.sampling.slots import SLOTS
from qwen3llada_jax.writing.settings import in_force

from . import own_rules


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
# What a setting may be → the type of its flag, and what reads it where it is typed as NAME=VALUE.
_TYPES: dict[Any, Any] = {"whole": int, "number": float, "flag": bool, "ids": tuple[int, ...]}
_READERS: dict[Any, Any] = {"whole": whole, "number": float, "ids": ids}


def _flag_of(name: str, setting: Setting) -> tuple[str, Any, Any]:
    """The field of a setting of the sampler."""
    names = ["--cfg-scale", "--cfg"] if name == "cfg_scale" else []
    if isinstance(setting.kind, tuple):
        return name, str | None, flag(setting.help, None, choices=setting.kind)
    return name, _TYPES[setting.kind] | None, flag(setting.help, None, names=names)


_RULE = "a rule of your own from a Python file, its numbers behind it: my.py:Halves:share=0.3 (docs/sampling.md)"
# One flag for every setting of the sampler, and what is none.
SamplerFlags: Any = make_dataclass(
    "SamplerFlags",
    [
        *(_flag_of(name, setting) for name, setting in SETTINGS.items()),
        ("rule", list[str] | None, flag(_RULE, None, metavar="FILE:NAME")),
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


def settings_of(flags: Any, config: ModelConfig | None = None) -> SamplerConfig:
    """The sampler's settings: from flags, else the model's own, else the sampler's.

    Args:
        config: the model's; None: not known yet, and what is wrong without it is refused.

    Raises:
        InputError: impossible ones.
    """
    if flags.block_attention and flags.visibility not in (None, "block_bias"):
        raise InputError(f"--block-attention means --visibility block_bias, not {flags.visibility}; give one of them")
    given = _given(flags)
    if flags.block_attention:
        given["visibility"] = "block_bias"
    if config is not None:
        given = own_settings(flags, config) | given
    elif flags.temperature is None and any(getattr(flags, name) is not None for name in OF_A_DRAW):
        given["temperature"] = 1.0  # the model may have one
    settings = SamplerConfig(**given)
    try:
        settings = own_rules.with_rules(settings, flags.rule or ())
    except InputError as error:
        raise InputError(f"--rule {error}") from error
    _check_revise_by(given, settings)
    return settings


def own_settings(flags: Any, config: ModelConfig) -> dict[str, Any]:
    """Those of the model's own settings that no flag says otherwise."""
    rules = own_rules.rules_of(flags.rule) if flags.rule and config.sampling else {}
    return in_force(config, _given(flags) | rules)


def _given(flags: Any) -> dict[str, Any]:
    return {name: getattr(flags, name) for name in SETTINGS if getattr(flags, name) is not None}


def changed(
    settings: SamplerConfig,
    changes: Mapping[str, str],
    rules: Sequence[str] = (),
    default: SamplerConfig = SamplerConfig(),
) -> SamplerConfig:
    """Settings, some of them given anew as text; `default` takes one back, and `none` where that is no value of it.

    Args:
        rules: of a user's own, as `--rule` takes them, in the place of what was said of them before.
        default: the model's settings, which hold again where one is taken back.

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
        new[field] = getattr(default, field) if is_taken_back else _value(field, value)
    if new.get("temperature") == 0:  # what the model draws from has no meaning then
        own = {name: getattr(default, name) for name in OF_A_DRAW}
        new |= {name: None for name, value in own.items() if name not in new and getattr(settings, name) == value}
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
        return _READERS[kind](text)
    except (ValueError, KeyError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{name} must be {what}, not {text!r}") from error
