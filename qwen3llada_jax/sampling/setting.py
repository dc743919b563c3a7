"""One setting: which values it takes, and what the command line says of it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError, shown

_MOST = 2**31 - 1  # whole numbers are 32 bits wide in a program,
_LEAST = 1e-6  # and logits divided by this, or its inverse, stay finite;
_LARGEST = 3.4e38  # and float32 holds no more
_TAKEN = {"whole": arguments.whole, "number": arguments.number, "flag": arguments.flag, "ids": arguments.ids}


@dataclass(frozen=True)
class Setting:
    """What a value must be.

    Attributes:
        kind: `whole`, `number`, `flag`, `ids`, or the words to choose from.
        help: a line for `--help`.
        least: of a whole number.
        range: of a number: `0 or more`, `above 0`, `above 0 and at most 1`; empty: any finite one.
        slot: the rule that it is about (rules/).
    """

    kind: str | tuple[str, ...]
    help: str = ""
    least: int | None = None
    range: str = ""
    slot: str | None = None

    def taken(self, name: str, value: Any, default: Any = None) -> Any:
        """The value as Python's own; None is taken where it is the default.

        Raises:
            InputError: another kind of value, or one out of range.
        """
        if isinstance(self.kind, tuple):
            if value is None and default is not None:
                raise InputError(f"{name} must be named, not None; leave it out for {default!r}")
            if value is not None and not (isinstance(value, str) and value in self.kind):
                raise InputError(f"{name} {shown(value)} is unknown; choose one of {', '.join(self.kind)}")
            return value
        if value is None and default is None:
            return None
        value = _TAKEN[self.kind](name, value)
        if self.least is not None and value < self.least:
            raise InputError(f"{name} must be at least {self.least}, not {value}")
        if self.least is not None and value > _MOST:
            raise InputError(f"{name} must be at most {_MOST}, not {value}")
        is_within = (
            self.kind != "number"
            or {
                "": abs(value) <= _LARGEST,
                "0 or more": value == 0 or _LEAST <= value <= 1 / _LEAST,
                "above 0": _LEAST <= value <= 1 / _LEAST,
                "above 0 and at most 1": 0 < value <= 1,
            }[self.range]
        )
        if not is_within:
            to = "" if self.range.endswith("1") else f" ({_LEAST:g} to {1 / _LEAST:g})"
            what = f"{self.range}{to}" if self.range else f"a finite number (at most {_LARGEST:g})"
            raise InputError(f"{name} must be {what}, not {value}")
        return value


def field(setting: Setting, default: Any = dataclasses.MISSING) -> Any:
    """A field of a dataclass that takes these values."""
    return dataclasses.field(default=default, metadata={"setting": setting})


def setting_of(field: "dataclasses.Field[Any]") -> Any:
    """The `Setting` that a field was declared with; None: without."""
    return field.metadata.get("setting")
