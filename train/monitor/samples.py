"""What the model writes while it is being trained."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import BadRowError
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.api import generate
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.limits import check_positions
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.text_ends import with_text_ends
from qwen3llada_jax.text.tokens import stop_ids

from ..config.schema import Config
from .run_log import Watch


def check(config: Config, architecture: ModelConfig, tokenizer: Any) -> None:
    """Refuse what would fail at the first evaluation.

    Raises:
        InputError: settings that do not fit the model, or a tokenizer without a usable template.
    """
    try:
        sampler(config).for_model(architecture)
    except InputError as error:
        raise InputError(f"evaluation: {error} (gen_length is max_new_tokens here, steps sampling_steps)") from error
    lengths = [len(ids) for ids in _prompts(config, tokenizer)]
    check_positions(architecture, lengths, config.evaluation.max_new_tokens, "evaluation.prompts:")


def write_samples(model: Qwen3LLaDA, tokenizer: Any, config: Config, step: int, watch: Watch, mesh: Mesh) -> None:
    """Answer `evaluation.prompts`, to samples.jsonl and the terminal; all processes take part."""
    e = config.evaluation
    ending = with_text_ends(model.config, Path(config.project.output_dir))  # the run folder is a model folder
    settings = dataclasses.replace(sampler(config), eos_token_ids=stop_ids(ending, tokenizer))
    prompts = _prompts(config, tokenizer)
    prompts += prompts[-1:] * (-len(prompts) % (mesh.shape["data"] * mesh.shape["fsdp"]))  # rows fill the mesh
    result = generate(model, prompts, settings, key=jax.random.key(config.project.seed))
    for prompt, answer in zip(e.prompts, result.answers(), strict=False):
        text = tokenizer.decode(answer)
        watch.sample({"step": step, "prompt": prompt, "answer": text})


def _prompts(config: Config, tokenizer: Any) -> list[list[int]]:
    texts = list(config.evaluation.prompts)
    if config.training.mode == "sft":  # ask as the model is being taught
        writer = ChatWriter(tokenizer, config.dataset.template, bool(config.dataset.enable_thinking))
        try:
            texts = [writer.prompt([{"role": "user", "content": text}]) for text in texts]
        except BadRowError as error:
            raise InputError(f"evaluation.prompts: {error.in_full}; mend chat_template.jinja or them") from error
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


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
