"""What a checkpoint was trained with (who sees whom, the length and origin of blocks, shift), and who says so.

The first that says it wins: who asks, the checkpoint's config.json, its name, its family.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.families.records import AUTOREGRESSIVE, FULL, Family

NAMES = ("visibility", "block_length", "shift", "block_origin")
# Asked for where only the architecture counts: files that leave open what their model sees are read all the same.
NO_MATTER = {"visibility": "full"}


class Said(NamedTuple):
    """A value, and who says it, in words."""

    value: Any
    by: str


def trained_with(family: Family, values: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Said]:
    """Each of `NAMES`, of a checkpoint.

    Where another visibility is asked for than the checkpoint's own, its blocks mean nothing, and begin anew. Shift
    stays, what a diffusion model's head predicts; an autoregressive model is adapted without, unless it is asked for.

    Args:
        values: config.json under our names, as `family.read` gives it; `_name_or_path` holds the model's names, the
            surest first.
        asked: what is said beside the files; None says nothing.

    Raises:
        InputError: nothing says what the model sees.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    told = _by({name: values[name] for name in NAMES if values.get(name) is not None}, "config.json")
    own = _by(FULL, "config.json") if "visibility" in told else _by_family(family, values, asked)
    found = own | told
    if asked.get("visibility", found["visibility"].value) != found["visibility"].value:
        was_autoregressive = all(found[name].value == value for name, value in AUTOREGRESSIVE.items())
        shift = {} if was_autoregressive else {"shift": found["shift"]}
        found = _by(FULL, "the default") | shift
    return found | _by(asked, "asked for")


def _by(facts: Mapping[str, Any], by: str) -> dict[str, Said]:
    return {name: Said(value, by) for name, value in facts.items()}


def _by_family(family: Family, values: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Said]:
    """As the models of a family are trained."""
    names = str(values.get("_name_or_path", "")).split()
    if family.kinds.get("") is AUTOREGRESSIVE:
        return _of_causal(family, values, asked)
    found = _by(*_kind(family, names, asked))
    if family.block_length_in_name:
        lengths = [int(n) for name in names for n in re.findall(r"-b(\d{1,4})(?![0-9A-Za-z])", name)]
        if lengths:
            found["block_length"] = Said(lengths[0], "its name")
    return found


def _of_causal(family: Family, values: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Said]:
    if values.get("is_causal") is False:
        return _by(FULL, "config.json (is_causal: false)")
    mask = values.get("mask_token_id") if values.get("mask_token_id") is not None else values.get("mask_token")
    if mask is None:
        return _by(AUTOREGRESSIVE, f"a {family.name} is autoregressive")
    if "visibility" not in asked:
        raise InputError(
            f"config: a {family.name} that names a mask token ({mask}) was made a diffusion model, and nothing says "
            "what it sees; import it with --visibility full, or --visibility block_causal and its --block-length and "
            "--block-origin, and with --shift if it predicts a token at the position before it"
        )
    return _by(FULL, "the default")


def _kind(family: Family, names: list[str], asked: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """(what a kind of a family was trained with, who says that it is this one)."""
    if len(family.kinds) == 1:
        return next(iter(family.kinds.values())), f"as every {family.name}"
    for name in names:
        found = [kind for kind in family.kinds if kind in name.lower()]
        if len(found) == 1:
            return family.kinds[found[0]], f"{found[0]} by its name"
    for kind, own in family.kinds.items():
        if own["visibility"] == asked.get("visibility"):
            return own, f"as every {kind}"
    ways = [f"--visibility {own['visibility']} for {kind}" for kind, own in family.kinds.items()]
    raise InputError(
        f"config: an {family.name} model is {' or '.join(family.kinds)}, and its name says neither; import it with "
        f"{listed(ways, ' or ')}"
    )
