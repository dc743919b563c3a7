"""A confidence rule of one's own, beside LLaDA's: python examples/custom_rule.py MODEL "A prompt" """

from dataclasses import dataclass
from pathlib import Path

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.text.tokens import load_tokenizer


def least_surprise(log_p, token, place, key):
    """How far the token is above the expected log-probability: likely, for a distribution as wide as this."""
    return log_p[token] + rules.entropy_of(log_p)


@dataclass(frozen=True)
class Flags:
    model: Path = flag("model folder", positional=True)
    prompt: str = flag("text to go on from", positional=True)


def main() -> None:
    flags = cli.parse(Flags)
    model, tokenizer = q.load(flags.model), load_tokenizer(flags.model)
    for rule in ("low_confidence", least_surprise):
        settings = q.SamplerConfig(gen_length=32, block_length=8, remasking=rule)
        result = q.generate(model, [tokenizer(flags.prompt).input_ids], settings)
        print(rule if isinstance(rule, str) else rule.__name__, "→", tokenizer.decode(result.answers()[0]))


if __name__ == "__main__":
    cli.run(main)
