"""Rules of one's own, beside LLaDA's: python examples/custom_rule.py MODEL "A prompt"

The programs take them from this file too: --rule examples/custom_rule.py:Halves:share=0.3
"""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.text.tokens import load_tokenizer


def least_surprise(log_p, token, place, key):
    """How far the token is above the expected log-probability: likely, for a distribution as wide as this."""
    return log_p[token] + rules.entropy_of(log_p)


@q.rule
class Halves:
    """How many at once: a share of what is still masked in the block."""

    share: float = 0.5

    def commit(self, is_masked):
        return jnp.ceil(self.share * is_masked.sum())


@dataclass(frozen=True)
class Flags:
    model: Path = flag("model folder", positional=True)
    prompt: str = flag("text to go on from", positional=True)


def main() -> None:
    flags = cli.parse(Flags)
    model, tokenizer = q.load(flags.model), load_tokenizer(flags.model)
    for own in ({}, {"order": least_surprise}, {"commit": Halves(0.5)}):
        settings = q.SamplerConfig(gen_length=32, block_length=8, **own)
        result = q.generate(model, [tokenizer(flags.prompt).input_ids], settings)
        name = next((getattr(rule, "__name__", repr(rule)) for rule in own.values()), "low_confidence")
        print(name, "→", tokenizer.decode(result.answers()[0]))


if __name__ == "__main__":
    cli.run(main)
