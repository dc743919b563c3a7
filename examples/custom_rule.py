"""A confidence rule of one's own, beside LLaDA's: python examples/custom_rule.py MODEL "A prompt" """

from pathlib import Path

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.text.tokens import load_tokenizer


def least_surprise(log_p, token, place, key):
    """How far the token is above the expected log-probability: likely, for a distribution as wide as this."""
    return log_p[token] + rules.entropy_of(log_p)


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompt")
    flags = parser.parse()
    model, tokenizer = q.load(flags.model), load_tokenizer(flags.model)
    for rule in ("low_confidence", least_surprise):
        settings = q.SamplerConfig(gen_length=32, block_length=8, remasking=rule)
        result = q.generate(model, [tokenizer(flags.prompt).input_ids], settings)
        print(rule if isinstance(rule, str) else rule.__name__, "→", tokenizer.decode(result.answers()[0]))


if __name__ == "__main__":
    cli.run(main)
