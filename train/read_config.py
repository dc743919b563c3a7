"""A training configuration from one YAML file, overridden by flags; and back to YAML and to a help page."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from qwen3llada_jax.command_line import nearest
from qwen3llada_jax.diffusion import NoiseConfig
from qwen3llada_jax.errors import InputError
from train.config import Config, check


def read_config(path: Path | None, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The configuration of a YAML file with `(key, value)` overrides on top, checked.

    A key is written in full (`training.lr`) or, where only one key ends so, by its last part (`lr`).

    Raises:
        InputError: no such file, not YAML, an unknown key (with the nearest known one) or an impossible value.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values |= _read_yaml(path)
    for name, text in overrides:
        values[_full_name(name)] = _parse(text)
    config = _build(Config, values, "")
    check(config)
    return config


def as_yaml(config: Config) -> str:
    """The resolved configuration as a YAML text that `read_config` reads back."""

    def plain(value: Any) -> Any:
        return (
            {k: plain(v) for k, v in value.items()}
            if isinstance(value, dict)
            else list(value)
            if isinstance(value, tuple)
            else value
        )

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)


def help_text() -> str:
    """Every key with its default and meaning, for `--help`."""
    lines = []
    for name, f in _known().items():
        default = f.default if f.default is not dataclasses.MISSING else None
        lines.append(f"  --{name} (default: {default})\n        {f.metadata.get('help') or _noise_help(f.name)}")
    return "\n".join(lines)


def _noise_help(name: str) -> str:
    """NoiseConfig documents its fields in its docstring: `name: text`."""
    lines = (NoiseConfig.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
    text = [lines[start].split(":", 1)[1].strip()]
    for line in lines[start + 1 :]:
        if not line.startswith(" " * 12):
            break
        text.append(line.strip())
    return " ".join(text)


def _known(cls: Any = Config, prefix: str = "") -> dict[str, dataclasses.Field]:
    known: dict[str, dataclasses.Field] = {}
    for f in dataclasses.fields(cls):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            known |= _known(f.type, f"{prefix}{f.name}.")
        else:
            known[prefix + f.name] = f
    return known


def _full_name(name: str) -> str:
    known = list(_known())
    if name in known:
        return name
    ends = [k for k in known if k.split(".")[-1] == name]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise InputError(f"key {name!r} is ambiguous: {' or '.join(ends)}")
    raise InputError(f"unknown key {name!r}" + nearest(name, known + [k.split(".")[-1] for k in known]))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML ({error})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must hold sections ({', '.join(f.name for f in dataclasses.fields(Config))})")
    flat_tree = dict(_flatten(tree))
    for name in flat_tree:
        if name not in _known():
            sections = {k.rsplit(".", 1)[0] for k in _known()} | {k.split(".")[0] for k in _known()}
            if name in sections and flat_tree[name] in (None, {}):
                continue  # an empty section
            if name in sections:
                raise InputError(f"{path}: {name} must be a section with keys, not {flat_tree[name]!r}")
            raise InputError(f"{path}: unknown key {name!r}" + nearest(name, list(_known())))
    return {k: v for k, v in flat_tree.items() if k in _known()}


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
        return text


def _build(cls: Any, values: dict[str, Any], prefix: str) -> Any:
    arguments = {}
    for f in dataclasses.fields(cls):
        name = prefix + f.name
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            arguments[f.name] = _build(f.type, values, f"{name}.")
        elif name in values:
            arguments[f.name] = _coerce(name, values[name], f.type)
    return cls(**arguments)


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type a key is declared with; YAML reads 1e-4 as text and 1 for a float as int."""
    kinds = list(typing.get_args(kind)) if isinstance(kind, types.UnionType) else [kind]
    if value is None and type(None) in kinds:
        return None
    for one in kinds:
        if typing.get_origin(one) is tuple:
            inner = typing.get_args(one)
            if isinstance(value, str) and inner[0] is str:
                return (value,)
            if isinstance(value, list) and (len(inner) == len(value) or inner[-1] is Ellipsis):
                return tuple(_coerce(f"{name}[{i}]", v, inner[0]) for i, v in enumerate(value))
        elif dataclasses.is_dataclass(one) and isinstance(value, dict):
            known = [f.name for f in dataclasses.fields(one)]
            for unknown in [str(k) for k in value if k not in known]:
                raise InputError(f"{name}: unknown key {unknown!r}" + nearest(unknown, known))
            return _build(one, {f"{name}.{k}": v for k, v in value.items()}, f"{name}.")
        elif one is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                return number
        elif one is str and isinstance(value, (int, float)) and int not in kinds and not isinstance(value, bool):
            return str(value)
        elif one is not type(None) and type(value) is one:
            return value
    wanted = " or ".join("nothing" if k is type(None) else getattr(k, "__name__", str(k)) for k in kinds)
    raise InputError(f"{name} must be {wanted}, not {value!r}")
