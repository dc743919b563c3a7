"""What a trained model is worth: its likelihood of held-out text, and what the original makes of its own texts."""

from typing import Any

import numpy as np

import qwen3llada_jax as q
from sample.comparing.quality import distinct_share

GIVEN, WRITTEN = 64, 64  # tokens of a prompt, and of what follows it: whole blocks of every recipe
TEMPERATURE = 0.7
ALL_AT_ONCE = 16  # tokens of a block that a model without blocks of its own writes in
SIZES = (1, 2, 4, 8)


def measure(
    model: q.Qwen3LLaDA, judge: q.Qwen3LLaDA, windows: np.ndarray, prompts: np.ndarray, samples: int
) -> dict[str, Any]:
    """Everything of one model.

    Args:
        judge: an autoregressive model, whose likelihood of the texts is exact.
        windows: [n, L] held-out text.
        prompts: [m, GIVEN] held-out text to go on from.
        samples: draws of noise for each window.
    """
    config = model.config
    result: dict[str, Any] = {}
    if config.causal_context or (config.block_length == 1 and config.shift):
        # Such a model reads clean text as an autoregressive one, so every length of blocks is a question it knows.
        result["by_block_length"] = {
            str(S): likelihood(model, windows, samples, visibility="block_causal", block_length=S, causal_context=True)
            for S in sorted({*SIZES, config.block_length})
        }
        result["nelbo"] = result["by_block_length"][str(config.block_length)]  # its own length is one of them
    else:
        result["nelbo"] = likelihood(model, windows, samples)
    S = config.block_length if config.visibility == "block_causal" else ALL_AT_ONCE
    result["texts"] = {
        str(at_once): written(model, judge, prompts, S, at_once) for at_once in (1, 2, 4) if at_once <= (S or 1)
    }
    return result


def likelihood(model: q.Qwen3LLaDA, windows: np.ndarray, samples: int, **how: Any) -> dict[str, float]:
    """Nats per token of all but each window's first token, which is given, and the error of the draws."""
    found = q.nelbo(model, windows, prompt_length=1, samples=samples, key=0, **how).total.per_token
    return {"mean": float(found.mean[0]), "standard_error": float(found.standard_error[0])}


def written(model: q.Qwen3LLaDA, judge: q.Qwen3LLaDA, prompts: np.ndarray, S: int, at_once: int) -> dict[str, Any]:
    """Texts of so many tokens a pass, and what the judge and their own variety say of them."""
    settings = q.SamplerConfig(gen_length=WRITTEN, block_length=S, steps=WRITTEN // at_once, temperature=TEMPERATURE,
                               min_length=WRITTEN)  # fmt: skip
    found = q.generate(model, prompts, settings, key=0)
    answers = np.asarray([ids[:WRITTEN] for ids in found.answers()], np.int32)
    return {"tokens_per_pass": WRITTEN / float(np.mean(found.nfe)), **judged(judge, prompts, answers),
            "answers": answers[:3].tolist()}  # fmt: skip


def judged(judge: q.Qwen3LLaDA, prompts: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Nats per token by an autoregressive model, given the prompts, and the share of distinct 4-grams: a text that
    repeats itself is likely, too."""
    found = q.nelbo(judge, np.concatenate([prompts, answers], axis=1), prompt_length=prompts.shape[1]).per_token.mean
    return {"nats": float(found.mean()), "standard_error": float(found.std(ddof=1) / len(found) ** 0.5),
            "distinct_4grams": float(np.mean([distinct_share(row) for row in answers.tolist()]))}  # fmt: skip
