"""Where a run starts from: a folder with weights, its tokenizer, and the model it is to become."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada_jax.checkpoint.model_folder import read_config
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import home, put_back
from qwen3llada_jax.io.hub import model_folder
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.text import mask_token, tokens
from qwen3llada_jax.text.mask_token import MaskToken

from ..config.schema import BLOCK_LENGTH, BLOCK_VISIBILITY, BlockAttentionConfig, Config
from ..monitor.run_log import warn


@dataclass(frozen=True)
class BaseModel:
    """A folder to start from, its tokenizer, and the architecture with this run's mask token and blocks.

    Attributes:
        mask_token: its id, and who says so: for the line at the start.
        blocks: who sees whom.
        visibility: the same in words, and who says so.
    """

    folder: Path
    tokenizer: Any
    config: ModelConfig
    mask_token: MaskToken
    blocks: BlockAttentionConfig
    visibility: str


def find_base_model(config: Config, goes_on: Path | None = None) -> BaseModel:
    """Open the model folder that the configuration names (`qwen3llada_model_path` before `base_model_path`).

    Args:
        goes_on: the run whose checkpoint is gone on from, if any. Where the model that it began with has been moved or
            removed, its own folder stands in: it holds the same config and tokenizer.

    Raises:
        InputError: no model or tokenizer there, or no usable mask token.
    """
    source = _source(config, goes_on)
    try:
        if goes_on is not None and not Path(source).is_dir():  # nor is the hub asked for what is here
            raise InputError(f"{source}: no such folder")
        folder, architecture, tokenizer = _open(model_folder(source))
    except InputError as error:
        if goes_on is None:
            raise
        folder, architecture, tokenizer = _open(home(goes_on))
        warn(f"{error}; config and tokenizer are taken from {folder}")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: its tokenizer names no EOS token, which ends every text")
    mask = _mask_token(config, folder, architecture, tokenizer)
    blocks, visibility = blocks_of(config, architecture)
    own = architecture.block_length
    architecture = dataclasses.replace(
        architecture,
        mask_token_id=mask.id,
        live_vocab_size=tokens.live_vocab_size(tokenizer),
        visibility=(blocks.visibility or "full") if blocks.enabled else "full",
        block_length=blocks.block_length if blocks.enabled else own,
        prompt_sees_answer=bool(blocks.enabled and blocks.prompt_sees_answer),
        shift=False,
        block_origin="prompt",
        enable_thinking=_thinks(config, architecture),
    )
    check_length(config.training.max_length, architecture)
    return BaseModel(folder, tokenizer, architecture, mask, blocks, visibility)


def settled(config: Config, blocks: BlockAttentionConfig, enable_thinking: bool = False) -> Config:
    """The configuration with what `find_base_model` found where it left the choice to the model."""
    training = dataclasses.replace(config.training, block_attention=blocks)
    dataset = config.dataset
    if config.learns_answers:
        dataset = dataclasses.replace(dataset, enable_thinking=enable_thinking)
    return dataclasses.replace(config, training=training, dataset=dataset)


def _thinks(config: Config, architecture: ModelConfig) -> bool:
    """Whether answers begin with their reasoning."""
    asked = config.dataset.enable_thinking
    if not config.learns_answers or asked is None:
        return architecture.enable_thinking and config.dataset.template != "plain"
    return asked


def blocks_of(config: Config, architecture: ModelConfig) -> tuple[BlockAttentionConfig, str]:
    """(who sees whom in this run, the same in words): what is not set is what the model was trained with.

    Args:
        architecture: of the model that the run starts from.

    Raises:
        InputError: a block length, or a rule of the prompt, that would change nothing.
    """
    asked, model = config.training.block_attention, architecture
    was_blocks = model.visibility != "full" and not model.is_autoregressive
    enabled = was_blocks if asked.enabled is None else asked.enabled
    own = _in_words(model.visibility, model.block_length)
    if not enabled:
        if asked.enabled is None and asked.block_length is not None:
            raise InputError(
                "training.block_attention.block_length has no effect on a model of visibility full; leave it out, or "
                "set enabled: true"
            )
        said = "the model's own" if not was_blocks else f"block_attention.enabled is false; the model's own was {own}"
        plain = BlockAttentionConfig(False, asked.block_length or BLOCK_LENGTH, BLOCK_VISIBILITY, False)
        return plain, f"full ({said})"
    visibility = asked.visibility or (model.visibility if was_blocks else BLOCK_VISIBILITY)
    length = asked.block_length or (model.block_length if was_blocks else None) or BLOCK_LENGTH
    sees = asked.prompt_sees_answer
    if sees is None:
        sees = visibility == model.visibility == "block_bias" and model.prompt_sees_answer
    if sees and visibility != "block_bias":
        raise InputError(
            f"training.block_attention.prompt_sees_answer has no effect with visibility {visibility}; leave it out, or "
            "set visibility: block_bias"
        )
    is_own = (visibility, length, sees) == (model.visibility, model.block_length, model.prompt_sees_answer)
    said = "the model's own" if is_own else f"training.block_attention; the model's own was {own}"
    text = _in_words(visibility, length) + (", prompts see answers" if sees else "")
    return BlockAttentionConfig(True, length, visibility, bool(sees)), f"{text} ({said})"


def _in_words(visibility: str, block_length: int | None) -> str:
    return visibility if visibility == "full" else f"{visibility} in blocks of {block_length}"


def check_length(length: int, architecture: ModelConfig) -> None:
    """Refuse rows that are longer than the model's positions."""
    if length > architecture.max_position_embeddings and architecture.rope_scaling is None:
        raise InputError(
            f"training.max_length {length} is beyond the {architecture.max_position_embeddings} positions the "
            "model was made for; lower it, or give config.json a rope_scaling"
        )


def _open(folder: Path) -> tuple[Path, ModelConfig, Any]:
    return folder, read_config(folder), tokens.load_tokenizer(folder)


def _source(config: Config, goes_on: Path | None) -> str:
    """`qwen3llada_model_path` once that folder exists, `base_model_path` until then.

    A run that goes on does not fall back: it may have begun with the one that is gone.
    """
    converted, base = config.model.qwen3llada_model_path, config.model.base_model_path
    if converted:
        put_back(Path(converted))
        if Path(converted).exists() or goes_on is not None or not base:
            return converted
    assert base is not None
    return base


def _mask_token(config: Config, folder: Path, architecture: ModelConfig, tokenizer: Any) -> MaskToken:
    flag = "model.mask_token_id"
    chosen = mask_token.choose(config.model.mask_token_id, folder, architecture, tokenizer, flag)
    if chosen is None:
        raise InputError(
            "no mask token: the model folder names none (it is a plain Qwen3 checkpoint); set model.mask_token_id to "
            "an id, or to auto for the first embedding row that no token uses"
        )
    named, where = mask_token.named_by(folder, architecture)
    if named not in (None, chosen.id) and not config.model.change_mask_token:
        raise InputError(
            f"{flag} {chosen.id} is not the mask token {named} that {folder}'s {where} names and that its model knows; "
            f"leave {flag} out, or set model.change_mask_token: true"
        )
    if config.model.change_mask_token and config.model.mask_token_id in (None, "auto"):
        raise InputError(
            f"model.change_mask_token has no effect without {flag}, the id to change to; give it, or neither"
        )
    return chosen
