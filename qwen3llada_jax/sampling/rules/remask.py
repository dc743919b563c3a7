"""What is masked again after it was written."""

from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import TIE, rule

_REVISE = Setting(
    "whole", "tokens of each block that may be masked again after they were written (default: 0)", least=0
)
NO_LIMIT = 2**31 - 1


@rule
class LeastCertain:
    """What was least certain when written (ReMDM, arXiv 2503.00307)."""

    tie: ClassVar[float] = TIE
    revise: int = field(_REVISE)

    def remask(self, confidence: Float[Array, ""], key: PRNGKeyArray) -> Array:
        return confidence


@rule
class AtRandom:
    """Any."""

    revise: int = field(_REVISE)

    def remask(self, confidence: Float[Array, ""], key: PRNGKeyArray) -> Array:
        return jax.random.uniform(key)


@rule
class NarrowOut:
    """What this pass finds less likely than this, the least likely first.

    The check of WINO (arXiv 2507.18578), threshold 0.9, of drafts by `WideIn`: fewer than the pass before wrote, and
    none in a pass that writes one token. WINO looks at each token with its own place masked (a second copy of the block
    behind the text, of masks that do not see their token); ours takes what the model says at the token itself, as
    LLaDA 2.1's edits do, at no further cost: it is a check only for models that were trained on wrong tokens
    (`noise_type: random_replace`) or correct themselves anyway.

    Attributes:
        narrow_out: probability.
        revise: of a block at most.
    """

    narrow_out: float = field(
        Setting(
            "number",
            "mask written tokens again that a later pass finds less likely than this (WINO: 0.9)",
            range="above 0 and at most 1",
        )
    )
    revise: int = field(_REVISE, default=NO_LIMIT)

    def remask(self, confidence: Float[Array, ""], key: PRNGKeyArray, now: Float[Array, ""]) -> Array:
        return now - self.narrow_out


REMASK_RULES: dict[str, Any] = {"confidence": LeastCertain, "random": AtRandom}
