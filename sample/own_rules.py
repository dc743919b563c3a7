"""A rule of a user's own from a Python file: `my.py:Halves`, or with its numbers `my.py:Halves:share=0.3`."""

import dataclasses
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from qwen3llada_jax import cli
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import expanded
from qwen3llada_jax.sampling import rules, slots
from qwen3llada_jax.sampling.config import SETTINGS, SamplerConfig
from qwen3llada_jax.sampling.parameters import Parameters
from qwen3llada_jax.sampling.passes import choice, memory, proposals, step
from qwen3llada_jax.sampling.state import Canvas

_BLOCK, _VOCAB = 32, 1 << 17  # shapes to try a rule on: as large as those it meets


def is_own(text: str) -> bool:
    """Whether a text names a rule in a file."""
    return ".py:" in text


def with_rules(settings: SamplerConfig, texts: Sequence[str]) -> SamplerConfig:
    """Settings, with rules from files in the place of those that they had.

    Raises:
        InputError: as in `rules_of`, or they contradict the settings.
    """
    found = rules_of(texts)
    try:
        return dataclasses.replace(settings, **found)
    except InputError as error:
        raise InputError(f"{' '.join(texts)}: {error}") from error


def rules_of(texts: Sequence[str]) -> dict[str, Any]:
    """Rules by what they decide.

    Raises:
        InputError: naming the one that is none, cannot be read, or says what another one says.
    """
    found: dict[str, Any] = {}
    for text in texts:
        slot, rule = rule_of(text)
        if slot in found:
            raise InputError(f"{text}: another one says {slots.SLOTS[slot]} too; give one of them")
        found[slot] = rule
    return found


def without(settings: SamplerConfig, names: Sequence[str]) -> SamplerConfig:
    """Settings without what they say of these rules: a rule as such, and its short names."""
    said = {name: getattr(SamplerConfig, name) for name, setting in SETTINGS.items() if setting.slot in names}
    return dataclasses.replace(settings, **(said | dict.fromkeys(names)))


def rule_of(text: str) -> tuple[str, Any]:
    """(what it decides, the rule) of `FILE:NAME` or `FILE:NAME:NUMBER=VALUE`.

    Raises:
        InputError: no such file or name, no rule, a number that it has not, or an error of Python's in the file.
    """
    file, _, rest = text.partition(".py:")
    name, *numbers = rest.split(":")
    if not is_own(text) or not name:
        raise InputError(f"{text!r}: takes FILE:NAME, as my.py:Halves, or my.py:Halves:share=0.3")
    place = f"{file}.py"
    module = _module(expanded(file + ".py"))
    found = getattr(module, name, None)
    if found is None:
        own = [n for n, x in vars(module).items() if getattr(x, "__module__", None) == module.__name__]
        raise InputError(f"{place}: has no {name!r}" + cli.nearest(name, own))
    slot = slots.slot_of(found)
    if slot is None and slots.is_order(found):
        slot = "order"
    if slot is None and isinstance(found, type):
        raise InputError(f"{place}: {name} is no rule: {slots.why_no_rule(found)}")
    if slot is None:
        raise InputError(
            f"{place}: {name} is no rule; that is a class with @q.rule and one method of {', '.join(slots.SLOTS)}, or "
            "a function of (log_p, token, place, key)"
        )
    values: dict[str, Any] = {}
    for given in numbers:
        number, value = _number(f"{place}: {name}", found, given)
        if number in values:
            raise InputError(f"{place}: {name}: {number} is given twice; give it once")
        values[number] = value
    try:
        rule: Any = found if not isinstance(found, type) else found(**values)
        rule = dataclasses.replace(rule, **values) if values else rule
        rule = slots.checked(slot, rule)
        _try(slot, rule)
    except Exception as error:
        raise InputError(f"{place}: {name}: {_in_a_line(error)}") from error
    return slot, rule


def fingerprint(texts: Sequence[str]) -> list[str]:
    """Of rules and what their files hold: an answer goes on with the same rules only."""
    files = [expanded(text.partition(".py:")[0] + ".py") for text in texts]
    return [f"{text} {hashlib.sha256(file.read_bytes()).hexdigest()}" for text, file in zip(texts, files, strict=True)]


@functools.cache
def _module(path: Path) -> ModuleType:
    """A file, run once: its classes are the same whoever asks."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    name = f"own_rules_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, folder := str(path.absolute().parent))  # as `python FILE` does
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{path}: cannot be run: {_in_a_line(error)}") from error
    finally:
        if folder in sys.path:  # the file may have changed it
            sys.path.remove(folder)
    return module


def _number(of: str, rule: Any, text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in text.partition("="))
    known = {f.name: f for f in dataclasses.fields(rule)} if dataclasses.is_dataclass(rule) else {}
    if not equals:
        raise InputError(f"{of}: {text!r} must be NUMBER=VALUE")
    if name not in known:
        has = f"; it has {', '.join(known)}" if known else ""
        raise InputError(f"{of} has no number {name!r}{has}")
    kind = known[name].type
    if kind in (str, "str"):
        return name, value
    if kind in (bool, "bool") and value in ("on", "off"):
        return name, value == "on"
    try:
        return name, cli.whole(value) if slots.is_whole(known[name]) else float(value)
    except ValueError as error:
        what = (
            "a whole number" if slots.is_whole(known[name]) else "on or off" if kind in (bool, "bool") else "a number"
        )
        raise InputError(f"{of}: {name} must be {what}, not {value!r}") from error


def _try(slot: str, rule: Any) -> None:
    """Run a rule's method on shapes alone, so that what is wrong in it is said before a model is read."""
    rule = slots.numbers_of(rule)
    a, b = jnp.zeros((1, 1, _BLOCK)), jnp.zeros((1, 1), jnp.int32)
    flat, row = a[0], b[0]
    others = Parameters(rules.LowConfidence(), rules.EvenShare(), rules.Greedy(), *[None] * 5)
    before = memory.blank(others._replace(**{slot: rule}), 1, _BLOCK, _VOCAB)

    def run(rule: Any) -> Any:
        key = jax.random.key(0)
        of = others._replace(**{slot: rule})
        match slot:
            case "order" | "draw":
                return proposals.propose_one(jnp.zeros(_VOCAB), row[0], key, of, passes=(row[0], row[0] + 1))
            case "commit" | "finish":
                seen = None
                if before is not None:
                    one = jax.tree.map(lambda x: jnp.asarray(x)[0, 0], before)
                    seen = proposals.propose_one(jnp.zeros(_VOCAB), row[0], key, of, before=one).memory
                    seen = jax.tree.map(lambda new, x: jnp.broadcast_to(new, x.shape)[None], seen, before)
                order, proposal = a.astype(jnp.int32), proposals.Proposal(a.astype(jnp.int32), a, a, a, None, seen)
                return choice.to_unmask(proposal, a == 0, None, order, b, row, row + 1, of.commit, None, of.finish)
            case "remask":
                return step.certainty(rule, key[None], flat.astype(jnp.int32), flat, flat)
            case "edit":
                return step.replaced(rule, proposals.Proposal(flat.astype(jnp.int32), flat, flat, flat, flat))
            case _:
                tokens = flat.astype(jnp.int32)
                canvas = Canvas(tokens, flat == 0, tokens, flat, tokens, *[row] * 4)
                return step.stopped(canvas, jnp.zeros((1, _VOCAB), bool), rule)

    jax.eval_shape(run, rule)


def _in_a_line(error: BaseException) -> str:
    if isinstance(error, InputError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
