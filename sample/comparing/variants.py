"""What `sample.compare` compares: rules, each with its budgets of steps."""

import dataclasses

from qwen3llada_jax import cli
from qwen3llada_jax.cli import whole
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.sampling.config import SETTINGS, SamplerConfig
from qwen3llada_jax.sampling.rules import COMMIT_RULES, CONFIDENCE_RULES

from ..flags import changed
from ..own_rules import is_own


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to sample: a rule, and its budget of steps (None: adaptive, or one for each token)."""

    rule: str
    steps: int | None
    settings: SamplerConfig


def budgets_of(text: str | None) -> list[int | None]:
    """Read the budgets of steps.

    Raises:
        InputError: what is no number.
    """
    try:
        return [whole(n) for n in text.split(",")] if text else [None]
    except ValueError as error:
        raise InputError(f"--steps takes numbers joined by commas, not {text!r}") from error


def variants_of(
    base: SamplerConfig, rules: str, steps: list[int | None], default: SamplerConfig = SamplerConfig()
) -> list[Variant]:
    """Everything that is compared.

    Args:
        default: the model's settings, which hold again where a rule takes one back.

    Raises:
        InputError: a rule that does not exist, has steps of its own or stands there twice, or an impossible value.
    """
    known: dict[SamplerConfig, Variant] = {}
    for rule in [r.strip() for r in rules.split(",")]:
        change: dict[str, str] = {}
        own: list[str] = []
        for part in rule.split("+"):
            if is_own(part):
                own.append(part.strip())
                continue
            name, equals, value = part.partition("=")
            name = name.strip().replace("-", "_")
            if name == "steps":
                raise InputError(f"--rules: {part!r} is no rule; --steps says the steps of all, as --steps 16,8")
            if not equals and part not in CONFIDENCE_RULES:
                words = [*CONFIDENCE_RULES, *(f"{n}=" for n in SETTINGS)]
                raise InputError(f"--rules: unknown rule {part!r}" + cli.nearest(part, words))
            change |= {name: value} if equals else {"remasking": part}
        if any(name in change for name in COMMIT_RULES):  # instead of the one that the flags set
            change = dict.fromkeys(COMMIT_RULES, "none") | change
        try:
            settings = changed(base, change, own, default)
        except InputError as error:
            raise InputError(f"--rules: {error}") from error
        for budget in steps if settings.has_budget else [None]:
            variant = Variant(rule, budget, dataclasses.replace(settings, steps=budget))
            if variant.settings in known:
                same, of = known[variant.settings].rule, f" of {budget} steps" if budget else ""
                raise InputError(f"--rules: {same!r} and {rule!r}{of} are the same here; leave one of the two out")
            known[variant.settings] = variant
    return list(known.values())
