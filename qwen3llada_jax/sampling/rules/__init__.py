"""The sampler's rules (slots.py says what a rule is): who is written first, how many at once, what is drawn, …

| order          | is                      | source                                                      |
|----------------|-------------------------|-------------------------------------------------------------|
| LowConfidence  | p(token)                | LLaDA, arXiv 2502.09992, algorithm 5                        |
| Random         | U(0, 1)                 | LLaDA, algorithm 4                                          |
| RandomTopk     | p(token) + 1e-6 N(0, 1) | breaks near-ties                                            |
| Margin         | p(best) − p(second)     | "Train for the worst, plan for the best", arXiv 2502.06768  |
| Entropy        | −H(p)                   | Dream, arXiv 2508.15487                                     |
| LeftToRight    | −place                  | the autoregressive order, as a baseline                     |

| commit          | writes                                              | source                                       |
|-----------------|-----------------------------------------------------|----------------------------------------------|
| EvenShare       | the block's masks shared out over its steps         | LLaDA                                        |
| Threshold θ     | while p(token) > min(θ, p of the first − 1e-5)      | Fast-dLLM, arXiv 2505.22618                  |
| Factor f        | the largest n with (n + 1)(1 − lowest p of n) < f   | Fast-dLLM                                    |
| EntropyBound γ  | the largest n with ΣH − max H ≤ γ                   | EB-Sampler, arXiv 2505.24857                 |
| Dynamic θ       | max(even share, how many have p(token) > θ)         | SDAR, arXiv 2510.06303                       |
| Timesteps ε     | ⌊masks (1 − s / t)⌋, t → s one of `steps` even steps| Dream, arXiv 2508.15487                      |
|                 | from 1 to ε; what would write nothing is passed over|                                              |
| LocalLeap       | p(token) ≥ 0.9, and ≥ 0.75 within 4 places of these | LocalLeap, arXiv 2510.07081                  |
| KLASS, LESS     | what is sure and has not changed for some passes    | arXiv 2511.05664, arXiv 2606.16908           |
| WideIn          | p(token) > 0.6, at most 0.7 of the masks            | WINO, arXiv 2507.18578                       |

| beside them        | does                                                | source                                 |
|--------------------|-----------------------------------------------------|----------------------------------------|
| NarrowOut          | masks again what is less likely now than 0.9        | WINO                                   |
| StableAndConfident | writes a stable block of low entropy whole          | DiffusionGemma                         |
| Surer              | replaces a token where another one is surer than 0.9| LLaDA 2.1, arXiv 2602.08676            |
| Annealed           | draws at a temperature that falls                   | DiffusionGemma                         |
"""

from typing import Any

from qwen3llada_jax.sampling.rules.commit import (
    Dynamic,
    EntropyBound,
    EvenShare,
    Factor,
    LocalLeap,
    Threshold,
    Timesteps,
    WideIn,
)
from qwen3llada_jax.sampling.rules.draw import Annealed, Greedy, Sample
from qwen3llada_jax.sampling.rules.edit import Surer
from qwen3llada_jax.sampling.rules.finish import StableAndConfident
from qwen3llada_jax.sampling.rules.likeliest import likeliest
from qwen3llada_jax.sampling.rules.order import (
    CONFIDENCE_RULES,
    Entropy,
    LeftToRight,
    LowConfidence,
    Margin,
    Random,
    RandomTopk,
    entropy_of,
)
from qwen3llada_jax.sampling.rules.remask import NO_LIMIT, REMASK_RULES, AtRandom, LeastCertain, NarrowOut
from qwen3llada_jax.sampling.rules.stable import KLASS, LESS
from qwen3llada_jax.sampling.rules.stop import AtEos

__all__ = [
    "COMMIT_RULES",
    "CONFIDENCE_RULES",
    "KLASS",
    "LESS",
    "NO_LIMIT",
    "REMASK_RULES",
    "Annealed",
    "AtEos",
    "AtRandom",
    "Dynamic",
    "Entropy",
    "EntropyBound",
    "EvenShare",
    "Factor",
    "Greedy",
    "LeastCertain",
    "LeftToRight",
    "LocalLeap",
    "LowConfidence",
    "Margin",
    "NarrowOut",
    "Random",
    "RandomTopk",
    "Sample",
    "StableAndConfident",
    "Surer",
    "Threshold",
    "Timesteps",
    "WideIn",
    "entropy_of",
    "likeliest",
]

# By the field that is the rule's short name: its first.
COMMIT_RULES: dict[str, Any] = {
    next(iter(kind.__dataclass_fields__)): kind
    for kind in (Threshold, Factor, EntropyBound, Dynamic, Timesteps, LocalLeap, KLASS, LESS, WideIn)
}
