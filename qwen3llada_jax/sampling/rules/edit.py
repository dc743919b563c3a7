"""Which written tokens are replaced."""

from jaxtyping import Array, Float

from qwen3llada_jax.sampling.setting import Setting, field
from qwen3llada_jax.sampling.slots import rule


@rule
class Surer:
    """A token, where another one is now surer than this.

    LLaDA 2.1's token-to-token edits (arXiv 2602.08676): editing threshold 0.9, and a block that is full goes on until a
    pass replaces nothing, 16 passes at most. It is for models that were trained to correct tokens.

    Attributes:
        edit_above: probability of the other token.
        edit_passes: of a full block at most; 0: only while something is masked.
    """

    edit_above: float = field(
        Setting(
            "number",
            "replace a written token where another one is surer than this, and look once more at full blocks "
            "(LLaDA 2.1: 0.9)",
            range="above 0 and at most 1",
        )
    )
    edit_passes: int = field(Setting("whole", least=0), default=16)

    def edit(self, probability: Float[Array, ""], now: Float[Array, ""]) -> Array:
        return probability > self.edit_above
