"""A confidence rule of one's own, beside LLaDA's: python examples/custom_rule.py MODEL "A prompt" """

import sys

import qwen3llada_jax as q
from qwen3llada_jax import rules
from qwen3llada_jax.tokens import load_tokenizer


def least_surprise(log_p, token, place, key):
    """How far the token is above the expected log-probability: likely, for a distribution as wide as this."""
    return log_p[token] + rules.entropy_of(log_p)


if __name__ == "__main__":
    folder, prompt = sys.argv[1:]
    model, tokenizer = q.load(folder), load_tokenizer(folder)
    for rule in ("low_confidence", least_surprise):
        settings = q.SamplerConfig(gen_length=32, block_length=8, remasking=rule)
        result = q.generate(model, [tokenizer(prompt).input_ids], settings)
        print(rule if isinstance(rule, str) else rule.__name__, "→", tokenizer.decode(result.answers()[0]))
