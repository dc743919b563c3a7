"""Values of the configuration by the type that their key declares, from a flag's words or from YAML.

A flag's text is never read as YAML: a path `2024_01` or `runs/a #2`, a prompt `ROMEO:` and a split `on` are what they
look like. In a file YAML's rules hold, but a key of text keeps a number as it is written there.
"""

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

import yaml

from qwen3llada_jax.cli import nearest
from qwen3llada_jax.errors import InputError, shown

FREE_TEXTS = ("evaluation.prompts",)  # lists of texts that may hold brackets and commas of their own
_NOTHING = ("null", "none", "~")
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Written:
    """A number, truth value or date of YAML, and how it was written."""

    value: Any
    text: str

    def __str__(self) -> str:
        return self.text


class Loader(yaml.SafeLoader):
    """YAML in which a key stands once (PyYAML silently takes the last) and scalars keep how they were written."""

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

    def keep_text(self, node: Any) -> Any:
        """A scalar with its text; a date is its text alone: no key is a date."""
        kind = node.tag.rsplit(":", 1)[1]
        if kind == "timestamp":
            return Written(node.value, node.value)
        return Written(getattr(yaml.SafeLoader, f"construct_yaml_{kind}")(self, node), node.value)


for _kind in ("int", "float", "bool", "timestamp"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", Loader.keep_text)


def from_text(name: str, text: str, kind: Any) -> Any:
    """A flag's text as the type its key is declared with.

    Raises:
        InputError: it is none of that type.
    """
    kinds = kinds_of(kind)
    if type(None) in kinds and text.strip().lower() in _NOTHING:
        return None
    kinds.sort(key=lambda one: one is str)  # an id or a name: a whole number is an id
    for one in kinds:
        if typing.get_origin(one) is tuple:
            return _list_from_text(name, text, one, kind)
        if one is bool and text.strip().lower() in _TRUTH:
            return _TRUTH[text.strip().lower()]
        if one in (int, float) and (number := (_whole if one is int else _finite)(text)) is not None:
            return number
        if one is str:
            return _checked_text(name, text)
    raise _not_of(name, text, kind)


def coerce(name: str, value: Any, kind: Any) -> Any:
    """A value of a YAML file as the type its key is declared with; YAML reads 1e-4 as text and 1 for a float as int.

    Raises:
        InputError: it is none of that type.
    """
    kinds, written = kinds_of(kind), None
    if isinstance(value, Written):
        value, written = value.value, value.text
    if value is None and type(None) in kinds:
        return None
    for one in kinds:
        if typing.get_origin(one) is tuple:
            inner = typing.get_args(one)
            if inner[0] is str and (isinstance(value, str) or (written is not None and not isinstance(value, bool))):
                return (_checked_text(name, written or value),)
            if isinstance(value, list) and (len(inner) == len(value) or inner[-1] is Ellipsis):
                return tuple(coerce(f"{name}[{i}]", v, inner[0]) for i, v in enumerate(value))
        elif dataclasses.is_dataclass(one) and isinstance(value, dict):
            return _record(name, value, one)
        elif one in (int, float) and written is not None and not isinstance(value, bool):
            # By what is written: to YAML 010 is eight, 1:30 is ninety and 1_6 sixteen. 0x10 and 0b11 are what they are.
            is_based = re.match(r"[+-]?0[xb]", written, re.IGNORECASE) is not None
            number = one(value) if is_based else (_whole if one is int else _finite)(written)
            if number is not None:
                return number
        elif one is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = _finite(value)
            if number is not None:
                return number
        elif one is int and isinstance(value, str) and re.fullmatch("0[0-9]+", value):  # 089 is no octal, so a text
            return int(value)
        elif one is str and written is not None and int not in kinds and not isinstance(value, bool):
            return _checked_text(name, written)
        elif one is str and isinstance(value, str):
            return _checked_text(name, value)
        elif one is not type(None) and type(value) is one:
            return value
    raise _not_of(name, value, kind, written)


def kinds_of(kind: Any) -> list[Any]:
    """The types that a declaration allows."""
    return list(typing.get_args(kind)) if isinstance(kind, types.UnionType) else [kind]


def plain(value: Any) -> Any:
    """What YAML made of a value, for messages."""
    if isinstance(value, Written):
        return value.value
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value


def _list_from_text(name: str, text: str, one: Any, kind: Any) -> Any:
    inner = typing.get_args(one)
    bare = text.strip()
    if dataclasses.is_dataclass(inner[0]):
        try:
            tree = yaml.load(text, Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise _not_of(name, text, kind) from error
        return coerce(name, tree, kind)
    if inner[0] is str and _is_one_text(name, bare):
        return (_checked_text(name, text),)
    if inner[0] is str and bare[:1] == "[":
        try:
            items = yaml.load(bare, yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError) as error:
            raise InputError(f'{name} begins like a list but is none: {shown(text)}; write ["…", "…"]') from error
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise _not_of(name, text, kind)
        return tuple(_checked_text(f"{name}[{i}]", item) for i, item in enumerate(items))
    within = bare[1:-1] if bare[:1] == "[" and bare[-1:] == "]" else bare
    parts = [part.strip() for part in within.split(",")] if within.strip() else []
    if inner[-1] is not Ellipsis and len(parts) != len(inner):
        raise _not_of(name, text, kind)
    return tuple(from_text(f"{name}[{i}]", part, inner[0]) for i, part in enumerate(parts))


def _is_one_text(name: str, bare: str) -> bool:
    """Whether what is typed for a list of texts is one of them, as `ROMEO:` and `['tis the season]` are."""
    if bare == "[]":
        return False
    quote = re.match(r"\[\s*(['\"])", bare)
    if quote is not None:
        return name in FREE_TEXTS and quote[1] == "'" and bare.count("'") == 1
    return name in FREE_TEXTS or (bare[:1] == "[") != (bare[-1:] == "]") or "[" in bare[1:]


def _record(name: str, value: dict[Any, Any], cls: Any) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for unknown in [str(k) for k in value if str(k) not in fields]:
        raise InputError(f"{name}: unknown key {unknown!r}" + nearest(unknown, [*fields]))
    return cls(**{str(k): coerce(f"{name}.{k}", v, fields[str(k)].type) for k, v in value.items()})


_THOUSANDS = re.compile(r"\s*[+-]?[0-9]{1,3}(_[0-9]{3})+(?![0-9_])")


def _whole(text: str) -> int | None:
    """A whole number as it is written: digits, with `_` between thousands; 010 is ten."""
    is_one = re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) is not None
    is_one = is_one or (_THOUSANDS.match(text) is not None and text.replace("_", "").strip().lstrip("+-").isdecimal())
    return int(text) if is_one and len(text) < 4000 else None


def _finite(value: Any) -> float | None:
    if isinstance(value, str) and "_" in value and _THOUSANDS.match(value) is None:  # Python takes 1_0 for ten
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _checked_text(name: str, text: str) -> str:
    if not text.strip() or "\0" in text:
        raise InputError(f"{name} must not be {shown(text)}; leave it out, or give it a value")
    return text


def _not_of(name: str, value: Any, kind: Any, written: str | None = None) -> InputError:
    kinds = kinds_of(kind)
    takes_text = any(
        one is str or (typing.get_origin(one) is tuple and typing.get_args(one)[0] is str) for one in kinds
    )
    hint = ""
    if takes_text and isinstance(value, bool):
        hint = f'; in YAML {written} is a truth value: write "{written}" for the word'
    elif takes_text and isinstance(value, dict) and len(value) == 1:
        hint = "; in YAML a colon makes it a key with a value: put the text into quotes"
    found = shown(plain(value)) if written is None else shown(written) if not isinstance(value, bool) else str(value)
    return InputError(f"{name} must be {' or '.join(map(_in_words, kinds))}, not {found}{hint}")


_WORDS = {
    str: ("text", "texts"), int: ("a whole number", "whole numbers"), float: ("a number", "numbers"),
    bool: ("true or false", "truth values"), type(None): ("nothing", "nothings"),
}  # fmt: skip


def _in_words(kind: Any, many: bool = False) -> str:
    """A type, for somebody who writes YAML."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        size = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"a list of {size}{_in_words(inner[0], many=True)}"
    if dataclasses.is_dataclass(kind):
        return "{" + ", ".join(f"{f.name}: …" for f in dataclasses.fields(kind)) + "}"
    return _WORDS[kind][many]
