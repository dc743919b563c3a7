"""What the programs share: one grammar of flags, read off frozen dataclasses; errors in one line (exit code 2).

A program declares its flags as the fields of a dataclass; `parse` makes an argparse parser of it, and an instance of it
of the command line. shtab makes a shell's completions of the same parser (`--print-completion`).

Of the libraries that read dataclasses by themselves, tyro 1.0 takes `None` as a value of every optional flag, knows no
`--no-` of `bool | None`, takes the last of two values and tells errors in boxes, which only a private hook opens. Of
cyclopts 5 the lines of errors, the pages of help and the numbers (1_6 is 16) would all be written anew. Both, and
jsonargparse, add a tenth to a fifth of a second to every start.
"""

import argparse
import dataclasses
import difflib
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import shtab

from qwen3llada_jax.commands import as_typed
from qwen3llada_jax.errors import InputError, brief
from qwen3llada_jax.io.atomic_files import expanded
from qwen3llada_jax.process.ending import check_output, run

__all__ = [
    "Parser", "Place", "check_output", "completions", "flag", "full_name", "ids", "nearest", "parse", "run", "whole",
]  # fmt: skip

T = TypeVar("T")


class Place(str):
    """A folder, or a model on the hub; a file, or the name of one that comes with the project."""


def whole(text: str) -> int:
    """Read a whole number, in digits: Python would read 1_6, which is a name, as 16.

    Raises:
        ValueError: anything else.
    """
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", text):
        raise ValueError(f"invalid whole number {text[:60]!r}")
    return int(text)


def ids(text: str) -> tuple[int, ...]:
    """Read ids from `7,12`.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        return tuple(whole(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be ids, as 7,12, not {text!r}") from error


def _place(text: str) -> Place:
    """Read what may be a path; of no text it would be the folder that one is in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a file or a folder, not ''")
    return Place(text)


def flag(
    text: str,
    default: Any = dataclasses.MISSING,
    *,
    names: Sequence[str] = (),
    metavar: str | None = None,
    choices: Sequence[str] = (),
    positional: bool = False,
    keys: Mapping[str, str] | None = None,
) -> Any:
    """Declare a flag: a dataclass's field, whose type says how it is typed.

    `bool` is a switch, `bool | None` one with a `--no-` beside it, `list` a flag that may be repeated,
    `Annotated[T, f]` what the function f reads; `dict[str, str]` holds the options of `keys` that were given.

    Args:
        text: its help.
        default: without one it must be given.
        names: as what it is typed; like the field, with `-` for `_`, if left out.
        metavar: what stands for its value in the help.
        choices: the texts that it may be.
        positional: it is typed without a name; a `list` takes one or more.
        keys: names and helps of options with a text each, typed whole or, where no other ends so, by the last part.
    """
    how = {"names": names, "metavar": metavar, "choices": choices, "positional": positional, "keys": keys}
    if keys is not None:
        return dataclasses.field(default_factory=dict, metadata=how)
    return dataclasses.field(default=default, metadata={"help": text, **how})


def parse(flags: type[T], arguments: Sequence[str] | None = None) -> T:
    """Read an instance of the dataclass `flags` from `arguments` (default: the command line).

    Raises:
        InputError: an option that is unknown (with the nearest known one), is given twice or without its value; a value
            that is none; a flag that must be given and is not.
    """
    return Parser(flags).read(sys.argv[1:] if arguments is None else arguments)


def completions(program: str, commands: Mapping[str, type], shell: str) -> str:
    """Write a shell's completions (bash or zsh) of a program whose commands have these flags."""
    parser = argparse.ArgumentParser(program)
    adds = parser.add_subparsers(parser_class=Parser)
    for name, flags in commands.items():
        adds.add_parser(name, flags=flags, help=(sys.modules[flags.__module__].__doc__ or "").split("\n")[0])
    return shtab.complete(parser, shell)


class Parser(argparse.ArgumentParser):
    """argparse over a dataclass, with the house's manners: one-line errors, `--gen_length` as good as `--gen-length`.

    What a base class declares is a group of the help, named by its docstring (`Title: description`).
    """

    def __init__(self, flags: Any, **settings: Any):
        settings.setdefault("prog", os.path.basename(sys.argv[0]))  # since 3.14 argparse says `python3 -m …`
        super().__init__(
            description=sys.modules[flags.__module__].__doc__,
            epilog=_ENVIRONMENT,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )
        self.made, self.keys = flags, list[str]()
        if self.add_help:
            self.add_argument("--print-completion", action=_PrintCompletion, choices=("bash", "zsh"), help=_COMPLETION)
        groups: dict[Any, Any] = {flags: self}
        for field in sorted(dataclasses.fields(flags), key=lambda field: _owner(flags, field) is not flags):
            owner = _owner(flags, field)
            if owner not in groups:
                title, _, text = (owner.__doc__ or "").rstrip(".").partition(":")
                groups[owner] = self.add_argument_group(title.lower(), text.strip() or None)
            if (keys := field.metadata["keys"]) is None:
                _add(groups[owner], field)
                continue
            self.usage = "%(prog)s [--key value …]"
            self.keys += keys
            for name, text in keys.items():
                section = name.rpartition(".")[0]
                if section not in groups:
                    groups[section] = self.add_argument_group(section)
                groups[section].add_argument(f"--{name}", dest=name, metavar="X", help=text.replace("%", "%%"))

    def read(self, typed: Sequence[str]) -> Any:
        """Read an instance of the dataclass."""
        found = vars(self.parse_args(self._spelled(typed)))
        values = {}
        for name, keys in ((field.name, field.metadata["keys"]) for field in dataclasses.fields(self.made)):
            given = {key: found[key] for key in keys or () if found[key] is not None}
            values[name] = _at_home(found[name]) if keys is None else given
        return self.made(**values)

    def _spelled(self, typed: Sequence[str]) -> list[str]:
        """What is typed, with options as they are declared and `=` before a value.

        Refused here, before argparse complains of what is missing because of it, or takes it.
        """
        spelled: list[str] = []
        given: dict[str, str] = {}
        takes_words = any(not action.option_strings for action in self._actions)
        words = list(reversed(typed))
        while words:
            word = words.pop()
            name, equals, value = word.partition("=")
            if not name.startswith("--") or name == "--":
                if word != "-h" and (not takes_words or name == "--" != word):
                    raise InputError(f"unexpected {word!r}: options are --key value (see --help)")
                spelled.append(word)
                if word == "--":  # what is behind it are words, whatever they look like
                    return spelled + words[::-1]
                continue
            option = self._declared(name)
            action = self._option_string_actions[option]
            if action.nargs == 0:
                if equals:
                    raise InputError(f"{word}: {name} takes no value")
                spelled.append(option)
                continue
            if not equals:
                after = words[-1] if words else "--"
                if after.startswith("--"):
                    self._refuse_as_value(after, name)
                value = words.pop()
            if action.dest in given and isinstance(action, argparse._StoreAction):
                both = f"{brief(given[action.dest])} and {brief(value)}"
                raise InputError(f"{action.option_strings[0]} is given twice ({both}); leave one of the two out")
            given[action.dest] = value
            spelled.append(f"{option}={value}")
        return spelled

    def _refuse_as_value(self, word: str, name: str) -> NoReturn:
        """Refuse a word that begins with `--` behind an option that takes a value."""
        option = word.split("=")[0]
        needs = InputError(f"{name} needs a value (one that begins with -- is written {name}=--…)")
        if option == "--":
            raise needs
        try:
            self._declared(option)
        except InputError as error:
            if self.keys and "; did you mean " not in str(error):  # no slip of an option: meant as the value
                raise needs from error
            raise InputError(f"{error} (as the value of {name}: {name}={shlex.quote(word)})") from error
        raise needs

    def _declared(self, typed: str) -> str:
        """The option that is meant."""
        every = (option for option in self._option_string_actions if option.startswith("--"))
        options = {option.replace("_", "-"): option for option in every}
        if option := options.get(typed.replace("_", "-")):
            return option
        if not self.keys:
            raise InputError(f"unknown option {typed!r}{nearest(typed, [*options])}")
        return f"--{full_name(typed[2:].replace('-', '_'), self.keys, [o[2:] for o in options.values()])}"

    def format_help(self) -> str:
        """As argparse makes it, with the programs named as they were started."""
        return as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Refuse in one line."""
        raise InputError(f"{message if len(message) < 300 else message[:300] + '…'} (see --help)")


class _PrintCompletion(argparse.Action):
    """Print a shell's script, and stop."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        parser.prog = Path(parser.prog).stem.split()[-1]  # as which a program of several words can be an alias
        print(shtab.complete(parser, values))
        parser.exit()


_ENVIRONMENT = """environment:
  QWEN3LLADA_HUGE_PAGES=0         no huge pages for what is computed on a CPU
  JAX_ENABLE_COMPILATION_CACHE=0  keep no compiled programs for the next start
  (docs/command_line.md, Starting)"""
_COMPLETION = "print completions for a shell, and stop"
# The type of a field → what reads it from its text, and what stands for it in the help.
_READERS: dict[Any, tuple[Callable[[str], Any], str | None]] = {
    int: (whole, "N"),
    Path: (lambda text: Path(_place(text)), None),
    Place: (_place, None),
    float: (float, "X"),
    tuple[int, ...]: (ids, "IDS"),
}


def _owner(flags: Any, field: dataclasses.Field) -> Any:
    """The class that declares a field first."""
    return next(base for base in reversed(flags.__mro__) if field.name in getattr(base, "__dataclass_fields__", ()))


def _add(group: Any, field: dataclasses.Field) -> None:
    """Add the argument that a field declares."""
    data, kind = field.metadata, field.type
    is_required = field.default is dataclasses.MISSING
    options: dict[str, Any] = {"help": data["help"], "default": None if is_required else field.default}
    is_optional = typing.get_origin(kind) in (types.UnionType, typing.Union)
    if is_optional:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
        options |= {"nargs": "+"} if data["positional"] else {"action": "append"}
    reader, letter = _READERS.get(kind, (kind, None))
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction if is_optional else "store_true"
    elif data["choices"]:
        options["choices"] = data["choices"]
    else:
        options |= {"type": getattr(kind, "__metadata__", [reader])[0], "metavar": data["metavar"] or letter}
    if data["positional"]:
        action = group.add_argument(field.name, **options)
    else:
        names = data["names"] or [f"--{field.name.replace('_', '-')}"]
        action = group.add_argument(*names, dest=field.name, required=is_required, **options)
    if kind in (Path, Place):
        action.complete = shtab.FILE


def full_name(name: str, keys: Iterable[str], others: Iterable[str] = ()) -> str:
    """Find `training.lr` of `lr`.

    Raises:
        InputError: no key ends so, or several do; the guess may be one of `others`.
    """
    keys = list(keys)
    if name in keys:
        return name
    ends = [key for key in keys if key.rpartition(".")[2] == name]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise InputError(f"key {name!r} is ambiguous: {' or '.join(ends)}")
    known = [*keys, *(key.rpartition(".")[2] for key in keys), *others]
    raise InputError(f"unknown key {name!r}{nearest(name, known)}")


def _at_home(value: Any) -> Any:
    """A path with its `~` resolved; anything else as it is."""
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    if isinstance(value, Path):
        return expanded(value)
    return str(expanded(value)) if isinstance(value, Place) and value.startswith("~") else value


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or nothing when no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
