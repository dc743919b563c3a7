"""Which rotary positions a model has: their base and scaling, as config.json says them in its several ways."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.families.records import Family

ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")

# What each kind of rope scaling cannot do without.
_ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of the rotary frequencies, with the parameters transformers knows for each kind."""

    kind: str
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            name, value = f"config: rope parameter {f.name}", getattr(self, f.name)
            if f.name == "truncate":
                arguments.flag(name, value)
            elif f.name == "original_max_position_embeddings" and value is not None:
                object.__setattr__(self, f.name, arguments.whole(name, value))
            elif f.name != "kind" and value is not None:
                object.__setattr__(self, f.name, arguments.number(name, value))
            if f.name in ("kind", "truncate") or value is None:
                continue
            may_be_0 = f.name in ("mscale", "mscale_all_dim")
            if not 0 <= value < float("inf") or (value == 0 and not may_be_0):
                raise InputError(f"{name} must be a number above 0, not {shown(value)}")


def read_rope(source: Mapping[str, Any], family: Family) -> tuple[float, RopeScaling | None]:
    """Base and scaling from `rope_parameters` (transformers ≥ 5) or `rope_theta` + `rope_scaling` (before).

    Raises:
        InputError: no base, a scaling that is not known or lacks a parameter, or places that contradict each other.
    """
    rope = _without_contradiction(source)
    theta = rope.pop("rope_theta", None)
    if theta is None:
        uses = f"{family.name} uses {family.rope_theta}"
        raise InputError(f"config: neither rope_theta nor rope_parameters.rope_theta is there; {uses}")
    theta = arguments.number("config: rope_theta", theta)
    kind = rope.pop("rope_type", "default")
    if kind not in ROPE_KINDS:
        raise InputError(f"config: rope kind {shown(kind)} is not supported; known kinds are {', '.join(ROPE_KINDS)}")
    if rope.pop("partial_rotary_factor", 1.0) != 1:
        raise InputError(
            "config: partial_rotary_factor is not 1; rotary embedding of a part of the head is not supported"
        )
    known = {f.name for f in dataclasses.fields(RopeScaling)} if kind != "default" else set()
    strangers = sorted(set(rope) - known)
    if strangers:
        hint = "; name the kind (rope_type) that it belongs to" if kind == "default" else ""
        raise InputError(f"config: rope kind {kind!r} has the unknown parameter {shown(strangers[0])}{hint}")
    if kind == "default":
        return theta, None
    missing = [name for name in _ROPE_NEEDS[kind] if name not in rope]
    if missing:
        raise InputError(f"config: rope kind {kind!r} needs {', '.join(missing)}")
    if kind in ("yarn", "llama3"):
        fallback = source.get("original_max_position_embeddings") or source["max_position_embeddings"]
        rope.setdefault("original_max_position_embeddings", fallback)
    return theta, RopeScaling(kind=kind, **rope)


def _without_contradiction(source: Mapping[str, Any]) -> dict[str, Any]:
    """What the three places that may speak of rope say together.

    A file of one transformers version edited by the advice for another says it twice; taking one of the two would drop
    a scaling without a word.
    """
    found: dict[str, Any] = {}
    for place in ("rope_theta", "rope_scaling", "rope_parameters"):
        said = source.get(place)
        if place == "rope_theta":
            said = None if said is None else {"rope_theta": said}
        if said is not None and not isinstance(said, dict):
            raise InputError(f"config: {place} must be an object with keys (or null), of the wrong kind: {shown(said)}")
        said = {k: v for k, v in (said or {}).items() if v is not None}
        if "type" in said:
            kind = said.pop("type")
            if said.setdefault("rope_type", kind) != kind:
                raise InputError(f"config: {place} says type {shown(kind)} and rope_type {shown(said['rope_type'])}")
        for name, value in said.items():
            if found.setdefault(name, value) != value:
                raise InputError(
                    f"config: rope_theta, rope_scaling and rope_parameters contradict each other about {shown(name)} "
                    f"({shown(found[name])} and {shown(value)}); leave one of them out"
                )
        if place == "rope_parameters" and said and "rope_type" not in said and "rope_type" not in found:
            found["rope_type"] = "default"
    return found
