"""A training configuration from one YAML file, overridden by flags; and back to YAML."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qwen3llada_jax.cli import Place, flag, full_name, nearest
from qwen3llada_jax.commands import bundled_configs
from qwen3llada_jax.diffusion import NoiseConfig
from qwen3llada_jax.errors import InputError, brief, shown
from qwen3llada_jax.io.atomic_files import expanded
from qwen3llada_jax.io.objects import on_disk

from . import unused_keys
from .schema import Config
from .validate import check
from .values import Loader, coerce, from_text, plain

# A leading `~` of these is the home folder; a name on the hub never begins so.
PLACES = (
    "project.output_dir", "project.log_dir", "model.base_model_path", "model.qwen3llada_model_path",
    "training.resume_from", "dataset.name", "dataset.mixture", "evaluation.eval_name",
)  # fmt: skip


def _known(cls: Any = Config, prefix: str = "") -> dict[str, dataclasses.Field]:
    known: dict[str, dataclasses.Field] = {}
    for f in dataclasses.fields(cls):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            known |= _known(f.type, f"{prefix}{f.name}.")
        else:
            known[prefix + f.name] = f
    return known


def _help(name: str, field: dataclasses.Field) -> str:
    text = field.metadata.get("help") or _noise_help(field.name)
    is_told = field.default in (None, (), dataclasses.MISSING) or "(default" in text
    return text if is_told else f"{text} (default: {field.default})"


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


@dataclass(frozen=True, kw_only=True)
class ConfigFlags:
    """Configuration: any key of it is a flag, in full or, where only one ends so, by its last part."""

    config: Place | None = flag("YAML file of keys; flags stand above it", None, metavar="FILE")
    keys: dict[str, str] = flag("", keys={name: _help(name, f) for name, f in _known().items()})

    def read(self, *more: tuple[str, str]) -> Config:
        """Read the configuration that is asked for, as `read_config` does, with some `(key, value)` more."""
        return read_config(self.config, [*self.keys.items(), *more])


def read_config(path: Path | str | None, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The configuration of a YAML file with `(key, value)` overrides on top, checked.

    A key is written in full (`training.lr`) or, where only one key ends so, by its last part (`lr`).

    The name of a bundled configuration (`sft`) stands for its file, unless there is a file so named; `./sft`, as a
    text, is a file only.

    Raises:
        InputError: no such file, not YAML, an unknown key (with the nearest known one), one that stands there
            twice, an impossible value or one without effect.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values |= _read_yaml(_file_of(str(path)))
    known = _known()
    for name, text in overrides:
        whole = full_name(name, known)
        values[whole] = from_text(whole, text, known[whole].type)
    config = _build(Config, values | {name: _at_home(name, values[name]) for name in PLACES if name in values}, "")
    check(config)
    unused_keys.refuse(config)
    return config


def _file_of(text: str) -> Path:
    """The file, or the bundled one of that name."""
    path, bundled = expanded(text), bundled_configs()
    if path.is_file() or path.suffix or os.path.basename(text) != text:
        return path
    if path.name not in bundled:
        raise InputError(f"--config {path}: no such file, and none of the bundled ones ({', '.join(bundled)})")
    return bundled[path.name]


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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(on_disk(path).read_text(encoding="utf-8"), Loader)
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
