"""A training configuration from one YAML file, overridden by flags; and back to YAML and to a help page."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from qwen3llada_jax.cli import nearest
from qwen3llada_jax.diffusion import NoiseConfig
from qwen3llada_jax.errors import InputError, brief, shown
from qwen3llada_jax.io.atomic_files import expanded

from . import unused_keys
from .schema import Config
from .validate import check
from .values import Loader, coerce, from_text, plain

# A leading `~` of these is the home folder; a name on the hub never begins so.
PLACES = (
    "project.output_dir", "project.log_dir", "model.base_model_path", "model.qwen3llada_model_path",
    "training.resume_from", "dataset.name", "dataset.mixture", "evaluation.eval_name",
)  # fmt: skip


def read_config(path: Path | None, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The configuration of a YAML file with `(key, value)` overrides on top, checked.

    A key is written in full (`training.lr`) or, where only one key ends so, by its last part (`lr`).

    Raises:
        InputError: no such file, not YAML, an unknown key (with the nearest known one), one that stands there
            twice, an impossible value or one without effect.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values |= _read_yaml(expanded(path))
    known = _known()
    for name, text in overrides:
        whole = full_name(name)
        values[whole] = from_text(whole, text, known[whole].type)
    config = _build(Config, values | {name: _at_home(name, values[name]) for name in PLACES if name in values}, "")
    check(config)
    unused_keys.refuse(config)
    return config


def _at_home(name: str, value: Any) -> Any:
    if isinstance(value, tuple):  # dataset.mixture
        return tuple(dataclasses.replace(v, name=_at_home(f"{name}[{i}].name", v.name)) for i, v in enumerate(value))
    if value is None or not value.startswith("~"):
        return value
    try:
        return str(expanded(value))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def as_yaml(config: Config) -> str:
    """The resolved configuration as a YAML text that `read_config` reads back."""

    def as_lists(value: Any) -> Any:
        return (
            {k: as_lists(v) for k, v in value.items()}
            if isinstance(value, dict)
            else list(value)
            if isinstance(value, tuple)
            else value
        )

    return yaml.safe_dump(as_lists(dataclasses.asdict(config)), sort_keys=False)


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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
        pairs = list(_flatten(tree)) if isinstance(tree, dict) else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: not valid YAML ({line}{error.problem})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML ({brief(error)})") from error
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
            values[name] = coerce(name, value, known[name].type)
        elif any(k.startswith(f"{name}.") for k in known):
            if value not in (None, {}):  # not an empty section
                raise InputError(f"{path}: {name} must be a section with keys, not {shown(plain(value))}")
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


def _build(cls: Any, values: dict[str, Any], prefix: str) -> Any:
    arguments = {}
    for f in dataclasses.fields(cls):
        name = prefix + f.name
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            arguments[f.name] = _build(f.type, values, f"{name}.")
        elif name in values:
            arguments[f.name] = values[name]
    return cls(**arguments)
