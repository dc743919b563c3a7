"""What is masked again after it was written."""

from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import TIE, rule

_REVISE = Setting(
    "whole", "tokens of each block that may be masked again after they were written (default: 0)", least=0
)


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


REMASK_RULES: dict[str, Any] = {"confidence": LeastCertain, "random": AtRandom}
