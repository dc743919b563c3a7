"""What the model writes while it is being trained: the texts that `sample.generate` would write on its checkpoint."""

from typing import Any

from jax.sharding import Mesh

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.buckets import place
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.text_ends import with_text_ends
from qwen3llada_jax.writing import completions, requests
from qwen3llada_jax.writing.opening import Folder
from qwen3llada_jax.writing.requests import Request

from ..config.schema import Config
from .run_log import RunLog


def check(config: Config, architecture: ModelConfig, tokenizer: Any) -> None:
    """Refuse what would fail at the first evaluation.

    Raises:
        InputError: settings that do not fit the model, a tokenizer without a usable template, or prompts that positions
            or memory do not hold.
    """
    settings = sampler(config)
    try:
        settings.for_model(architecture)
    except InputError as error:
        raise InputError(f"evaluation: {error} (gen_length is max_new_tokens here, steps sampling_steps)") from error
    asked = _requests(config, architecture, tokenizer)
    rows = min(len(asked), completions.BATCH_SIZE)
    completions.check(asked, settings, architecture, rows, "evaluation.prompts:")


def write_samples(model: Qwen3LLaDA, tokenizer: Any, config: Config, step: int, log: RunLog, mesh: Mesh) -> None:
    """Answer `evaluation.prompts`, to samples.jsonl and the terminal; all processes take part."""
    run = place(config.project.output_dir)  # a model folder too
    folder = Folder(run, with_text_ends(model.config, run), tokenizer, mesh)
    asked = _requests(config, folder.config, tokenizer)
    rows = completions.rows_of_a_batch(len(asked), completions.BATCH_SIZE, folder.ways)
    settings = folder.ending(sampler(config))
    for batch in completions.write(model, folder, asked, settings, seed=config.project.seed, rows=rows):
        for completion in batch.completions:
            said = {"answer": None, "error": completion.error} if completion.error else {"answer": completion.text}
            log.sample({"step": step, "prompt": completion.request.given, **said})


def _requests(config: Config, architecture: ModelConfig, tokenizer: Any) -> list[Request]:
    """The prompts, asked as the model is being taught."""
    is_chat, template, thinks = config.learns_answers, config.dataset.template, architecture.enable_thinking
    if is_chat:
        ChatWriter(tokenizer, template, thinks)  # what is wrong with the template itself is no prompt's fault
    rows = [{"prompt": text} for text in config.evaluation.prompts]
    try:
        return requests.from_rows(rows, tokenizer, chat=is_chat, template=template, enable_thinking=thinks)
    except InputError as error:
        fix = "; fix chat_template.jinja or them" if is_chat else ""
        raise InputError(f"evaluation.prompts: {error}{fix}") from error


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
