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
from train import without_effect
from train.check_config import check
from train.config import Config


def read_config(path: Path | None, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The configuration of a YAML file with `(key, value)` overrides on top, checked.

    A key is written in full (`training.lr`) or, where only one key ends so, by its last part (`lr`).

    Raises:
        InputError: no such file, not YAML, an unknown key (with the nearest known one), one that stands there
            twice, an impossible value or one without effect.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values |= _read_yaml(path)
    for name, text in overrides:
        values[full_name(name)] = _parse(text)
    config = _build(Config, values, "")
    check(config)
    without_effect.refuse(config)
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


def full_name(name: str) -> str:
    """`training.lr` of `lr`.

    Raises:
        InputError: no key ends so, or several do.
    """
    known = list(_known())
    if name in known:
        return name
    ends = [k for k in known if k.split(".")[-1] == name]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise InputError(f"key {name!r} is ambiguous: {' or '.join(ends)}")
    raise InputError(f"unknown key {name!r}" + nearest(name, known + [k.split(".")[-1] for k in known]))


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: PyYAML itself silently takes the last of several."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} stands there twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
        pairs = list(_flatten(tree)) if isinstance(tree, dict) else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: not valid YAML ({line}{error.problem})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid YAML (nested too deeply)") from error
    known, sections = _known(), ", ".join(f.name for f in dataclasses.fields(Config))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must hold sections ({sections}), as in `training: {{lr: 1.0e-4}}`")
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise InputError(f"{path}: {name} stands there twice; leave one of the two out")
        if name in known:
            values[name] = value
        elif any(k.startswith(f"{name}.") for k in known):
            if value not in (None, {}):  # not an empty section
                raise InputError(f"{path}: {name} must be a section with keys, not {value!r}")
        else:
            near = nearest(name, list(known))
            raise InputError(f"{path}: unknown key {name!r}" + (near or f"; the sections are {sections}"))
    return values


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
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
            except (ValueError, OverflowError):
                continue
            if math.isfinite(number):
                return number
        elif one is str and isinstance(value, (int, float)) and int not in kinds and not isinstance(value, bool):
            return str(value)
        elif one is str and isinstance(value, str):
            if not value.strip() or "\0" in value:
                raise InputError(f"{name} must not be {value!r}; leave it out, or give it a value")
            return value
        elif one is not type(None) and type(value) is one:
            return value
    raise InputError(f"{name} must be {' or '.join(map(_in_words, kinds))}, not {value!r}")


def _in_words(kind: Any) -> str:
    """A type, for somebody who writes YAML."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        size = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"a list of {size}{_in_words(inner[0])}"
    if dataclasses.is_dataclass(kind):
        return "{" + ", ".join(f"{f.name}: …" for f in dataclasses.fields(kind)) + "}"
    return "nothing" if kind is type(None) else getattr(kind, "__name__", str(kind))
