"""What the model writes while it is being trained."""

from typing import Any

import jax

from qwen3llada_jax.model import Qwen3LLaDA
from qwen3llada_jax.sampling import SamplerConfig, generate
from train.config import Config
from train.watch import Watch


def write_samples(model: Qwen3LLaDA, tokenizer: Any, config: Config, step: int, watch: Watch) -> None:
    """Answer `evaluation.prompts`, to samples.jsonl and the terminal."""
    e, settings = config.evaluation, sampler(config)
    texts = list(e.prompts)
    if config.training.mode == "sft":  # ask as the model is being taught
        chats = [[{"role": "user", "content": p}] for p in e.prompts]
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    result = generate(model, prompts, settings, key=jax.random.key(config.project.seed))
    for prompt, answer in zip(e.prompts, result.answers(), strict=True):
        text = tokenizer.decode(answer)
        watch.sample({"step": step, "prompt": prompt, "answer": text})


def sampler(config: Config) -> SamplerConfig:
    """The settings of these answers.

    Raises:
        InputError: an impossible setting.
    """
    e = config.evaluation
    return SamplerConfig(
        gen_length=e.max_new_tokens,
        block_length=e.block_length,
        steps=e.sampling_steps,
        temperature=e.temperature,
        remasking=e.remasking,
    )
