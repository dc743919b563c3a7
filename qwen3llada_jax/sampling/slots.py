"""What a rule of the sampler is, a user's own too: a class that decides one thing.

A rule is a class with `@rule`: a frozen dataclass that is a pytree. Its numbers are leaves: changing one compiles
nothing, and an array [B] gives each row its own. Its choices (texts, booleans, fields with metadata `static`) are
structure. What a rule decides is said by the one method it has, which looks at one position, or one block, of one row:

order(log_p, token, place, key): who is written first. A number, higher is sooner, from log_p [V] of what may be
    written there (at temperature 1), the proposed token, and its place in the answer.
commit(…): how many masked positions of a block are written, or which of them, [S] booleans; one at least, the first.
    It takes those of `SEEN` that it names.
draw(logits, key): the token, from the final logits [V]. One that may not be written (its logit is −∞) or is none of V
    never is: the likeliest is taken instead. It may name `step` and `steps` too, the block's passes so far and in all.
remask(confidence, key): what is masked again, `revise` of a block at most. A number, lower is sooner. If it names
    `now`, the probability that this pass gives to the token that stands there, only what is below 0 is: fewer than the
    pass before wrote, and none in a pass that writes one, so that masks become fewer.
stop(is_end, is_masked): where the row ends. A place in the answer, whose token fills what is masked behind it; T, the
    length of both, any other number that is no place, or a place that is still masked: nowhere.
finish(…): whether all masked positions of a block are written at once. It takes those of `SEEN` that it names.
edit(probability, now): whether a written token is replaced, where another one is proposed, from the probabilities of
    both. A full block goes on until a pass replaces nothing, for `edit_passes` at most.

A rule of commit or finish may remember each position from one pass of a block to the next: `blank(V)` is what it knows
before the first, arrays of any shape, `remember(log_p, token, before)` what it knows after one. It sees it as `memory`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Optional, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.sampling.setting import Setting, field, setting_of

SLOTS = {
    "order": "who is written first",
    "commit": "how many tokens a pass writes",
    "draw": "which token is proposed",
    "remask": "what is masked again",
    "stop": "where a row ends",
    "finish": "when a block is written whole",
    "edit": "what is replaced",
}
SEEN = {
    "probability": "[S] of the proposed tokens, best first (masked ones stand before all others)",
    "entropy": "[S] of the distributions there, in nats",
    "is_masked": "[S]",
    "place": "[S] of each in its block",
    "even_share": "of the block's masks over its steps; a rule that looks at it has a budget of steps",
    "step": "the block's passes so far",
    "steps": "the block's passes in all; a rule that looks at it has a budget of steps",
    "to_write": "the block's masks when it was begun",
    "memory": "what the rule remembers, [S, …] of each array; only of a rule that remembers",
}
PASSES = ("step", "steps")  # what a draw may look at
TIE = 1e-5  # confidences nearer to each other are equal: what float32 rounds away differs from batch to batch
_ANY_WHOLE = Setting("whole", least=-(2**31))
_WHOLE = (int, int | None, Optional[int], "int", "int | None", "None | int", "Optional[int]")  # noqa: UP045
Rule = Any
ConfidenceRule = Callable[
    [Float[Array, " V"], Int[Array, ""], Int[Array, ""], PRNGKeyArray],
    Float[Array, ""],
]
C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(field, dataclasses.field))
def rule(cls: C) -> C:
    """Make a class a rule: a frozen dataclass that is a pytree, its numbers leaves."""
    is_compared = {"__eq__", "__hash__"}.isdisjoint(vars(cls))
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    choices = [f.name for f in dataclasses.fields(made) if is_choice(f)]
    numbers = [f.name for f in dataclasses.fields(made) if f.name not in choices]

    # The class is part of the structure by itself: of two classes that `jax.tree_util.register_dataclass` knows, jax
    # 0.10.2 calls trees equal that differ in the class alone, and a program of the one could be run for the other.
    def flatten(rule: Rule) -> tuple[list[Any], Any]:
        return [getattr(rule, name) for name in numbers], (made, *(getattr(rule, name) for name in choices))

    def unflatten(structure: Any, values: Any) -> Rule:
        found = object.__new__(made)  # without checks: what passes through here may be anything
        for name, value in zip((*choices, *numbers), (*structure[1:], *values), strict=True):
            object.__setattr__(found, name, value)
        return found

    jax.tree_util.register_pytree_node(made, flatten, unflatten)
    made.__rule__ = made  # of its own: a class that inherits from a rule is none before it has @rule too
    if is_compared:
        made.__eq__, made.__hash__ = _is_equal, _hash
    return made


def _is_equal(rule: Rule, other: Any) -> Any:
    return _values(rule) == _values(other) if type(rule) is type(other) else NotImplemented


def _hash(rule: Rule) -> int:
    return hash((type(rule), *_values(rule)))


def _values(rule: Rule) -> list[Any]:
    """The values of a rule's fields, arrays as what can be compared and hashed."""
    values = [getattr(rule, f.name) for f in dataclasses.fields(rule)]
    return [(x.shape, tuple(np.asarray(x).ravel().tolist())) if _is_array(x) else x for x in values]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)


def is_whole(field: "dataclasses.Field[Any]") -> bool:
    """Whether a field of a rule is declared a whole number."""
    return field.type in _WHOLE


def is_choice(field: "dataclasses.Field[Any]") -> bool:
    """Whether a field of a rule is a choice, which a program is compiled for, and no number."""
    return field.metadata.get("static", False) or field.type in (str, bool, "str", "bool")


def slot_of(rule: Rule) -> str | None:
    """What a rule (or its class) decides; None: it is none."""
    kind = rule if isinstance(rule, type) else type(rule)
    slots = [slot for slot in SLOTS if callable(getattr(kind, slot, None))]
    is_rule = vars(kind).get("__rule__") is kind and len(slots) == 1 and slots[0] not in kind.__dataclass_fields__
    return slots[0] if is_rule else None


def why_no_rule(rule: Any) -> str:
    """What keeps something that is no rule from being one."""
    kind = rule if isinstance(rule, type) else type(rule)
    slots = [slot for slot in SLOTS if callable(getattr(kind, slot, None))]
    if len(slots) > 1:
        return f"it has the methods {' and '.join(slots)}, and a rule decides one thing; make two of it"
    if not slots:
        return f"it needs @rule and one method of {', '.join(SLOTS)}"
    if vars(kind).get("__rule__") is not kind:
        return f"it has the method {slots[0]}, and needs @q.rule above its class"
    return f"its field {slots[0]} has its method's name; rename the field"


def is_order(function: Any) -> bool:
    """Whether something can be called as an order: with (log_p, token, place, key)."""
    try:
        inspect.signature(function).bind(*range(4))
    except (TypeError, ValueError):
        return False
    return callable(function) and not isinstance(function, type)


def checked(slot: str, rule: Rule) -> Rule:
    """A rule for this slot, its numbers as Python's own or [B] arrays.

    Raises:
        InputError: no rule, one that decides something else, or looks at what there is not, or a number out of range.
    """
    if slot == "order" and callable(rule) and not isinstance(rule, type) and slot_of(rule) is None:
        if not is_order(rule):
            raise InputError(f"order must be a function of (log_p, token, place, key), not {shown(rule)}")
        return checked("order", OwnOrder(rule))
    name = getattr(rule, "__name__", type(rule).__name__)
    if isinstance(rule, type) and slot_of(rule):
        raise InputError(f"{slot} must be a rule: make one of the class, {name}(…)")
    if slot_of(rule) != slot:
        found = slot_of(rule)
        but = f"decides {SLOTS[found]}; give it as {found}" if found else f"is none: {why_no_rule(rule)}"
        raise InputError(f"{slot} must be a rule of {SLOTS[slot]}; {name} {but}")
    if slot in ("commit", "finish"):
        there = [n for n in SEEN if n != "memory" or remembers(rule)]
        unseen = [n for n in looks_at(rule, slot) if n not in there]
        if unseen:
            raise InputError(f"{name}.{slot} takes {unseen[0]!r}; there is {', '.join(there)}")
        if any(p.kind is p.POSITIONAL_ONLY for p in _arguments(rule, slot).values()):
            raise InputError(f"{name}.{slot} is given its arguments by name; take away the `/` behind them")
    if "tie" in (f.name for f in dataclasses.fields(rule)):
        raise InputError(f"{name} has a field `tie`, which names no number of a rule; rename it, or make it a ClassVar")
    if slot == "remask" and "revise" not in rule.__dataclass_fields__:
        raise InputError(f"{name} must have a number `revise`: how many tokens of a block it may mask again")
    if slot == "edit" and "edit_passes" not in rule.__dataclass_fields__:
        raise InputError(f"{name} must have a number `edit_passes`: how many passes a full block may go on for")
    numbers: dict[str, Any] = {}
    for f in dataclasses.fields(rule):
        value = getattr(rule, f.name)
        if is_choice(f):
            _check_choice(f, value)
        needs = setting_of(f) or (None if is_choice(f) else _needed(slot, f))
        if needs and not isinstance(value, jax.core.Tracer):
            if isinstance(value, np.ndarray | jax.Array) and value.ndim == 1:
                numbers[f.name] = np.array([needs.taken(f.name, x, f.default) for x in np.asarray(value)])
            elif value is not None or not _may_be_none(slot, f):
                numbers[f.name] = needs.taken(f.name, value, dataclasses.MISSING)
    return dataclasses.replace(rule, **numbers)


def _needed(slot: str, f: "dataclasses.Field[Any]") -> Setting:
    """What a number that no `Setting` describes must be."""
    if slot == "remask" and f.name == "revise":
        return Setting("whole", least=0)
    return _ANY_WHOLE if is_whole(f) else Setting("number")


def _may_be_none(slot: str, f: "dataclasses.Field[Any]") -> bool:
    if slot == "remask" and f.name == "revise":
        return False
    return f.default is None or "None" in str(f.type) or "Optional" in str(f.type)


def _check_choice(f: "dataclasses.Field[Any]", value: Any) -> None:
    """Refuse a choice that no program can be compiled for.

    Raises:
        InputError: an array, or what has no hash.
    """
    if isinstance(value, np.ndarray | jax.Array) and np.ndim(value):
        raise InputError(f"{f.name} is one for all rows (a program is compiled for it); give one, not an array")
    try:
        hash(None if setting_of(f) else value)
    except TypeError:
        raise InputError(f"{f.name} must be hashable, as a tuple is; {shown(value)} is not") from None


def numbers_of(rule: Rule) -> Rule:
    """The rule with its numbers as a program takes them: float32, or int32 where they are declared whole."""
    kinds = {f.name: np.int32 if is_whole(f) else np.float32 for f in dataclasses.fields(rule)}
    values = numbers_in(rule)
    return dataclasses.replace(
        rule, **{name: jax.tree.map(lambda x, k=kinds[name]: _typed(x, k), value) for name, value in values.items()}
    )


def numbers_in(rule: Rule) -> dict[str, Any]:
    """The numbers of a rule by name, its choices apart."""
    return {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule) if not is_choice(f)}


def _typed(value: Any, kind: Any) -> Any:
    return value.astype(kind) if isinstance(value, jax.Array) else kind(value)


def looks_at(rule: Rule, slot: str = "commit") -> list[str]:
    """What a rule is shown: the names of its method's arguments."""
    return list(_arguments(rule, slot))


def _arguments(rule: Rule, slot: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(rule, slot)).parameters


def remembers(rule: Rule | None) -> bool:
    """Whether a rule remembers positions from one pass to the next."""
    return callable(getattr(rule, "blank", None)) and callable(getattr(rule, "remember", None))


def verifies(remask: Rule | None) -> bool:
    """Whether a remask rule looks at what this pass thinks of the tokens that stand there."""
    return remask is not None and "now" in looks_at(remask, "remask")


def decided(rule: Rule, slot: str, *seen: Any, **named: Any) -> Array:
    """The one number that a rule gives for what it is shown.

    Raises:
        InputError: it gives none, or several.
    """
    return _number(getattr(rule, slot)(*seen, **named), rule, slot)


def _number(found: Any, rule: Rule, slot: str) -> Array:
    try:
        number = jnp.asarray(found)
    except (TypeError, ValueError):
        raise InputError(f"{type(rule).__name__}.{slot} must give one number, not {shown(found)}") from None
    if number.shape:
        kind = f"an array of shape {list(number.shape)}"
        raise InputError(f"{type(rule).__name__}.{slot} must give one number, not {kind}")
    return number


def chosen(rule: Rule, slot: str, block_length: int, **seen: Any) -> Array:
    """What a rule of commit or finish says of a block: a number, or of commit [S] booleans in the order it is shown.

    Raises:
        InputError: it says neither.
    """
    found = getattr(rule, slot)(**seen)
    is_which = isinstance(found, jax.Array) and found.dtype == jnp.bool and found.shape == (block_length,)
    return found if is_which and slot == "commit" else _number(found, rule, slot)


def has_budget(commit: Rule) -> bool:
    """Whether a commit rule shares out a number of steps; all others are adaptive and have at most so many."""
    return not {"even_share", "steps"}.isdisjoint(looks_at(commit))


def tie_of(rule: Rule) -> float:
    """How near to each other a rule's numbers are equal."""
    return getattr(rule, "tie", 0.0)


def row_axes(rule: Any) -> Any:
    """For `jax.vmap` over rows: which numbers of a rule, or of a tree of them, differ from row to row."""
    return jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, rule)


@rule
class OwnOrder:
    """A plain function of (log_p, token, place, key)."""

    function: ConfidenceRule = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", "a function")

    def order(self, log_p: Array, token: Array, place: Array, key: Array) -> Array:
        return self.function(log_p, token, place, key)
