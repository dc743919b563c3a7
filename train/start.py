"""Where a run starts from: a folder with weights, its tokenizer, and the model it is to become."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada_jax import tokens
from qwen3llada_jax.checkpoint import read_model_config
from qwen3llada_jax.config import ModelConfig
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import home, put_back
from qwen3llada_jax.hub import model_folder
from train.config import Config
from train.watch import notice


@dataclass(frozen=True)
class Start:
    """A folder to start from, what its tokenizer is, and the architecture with this run's mask token and blocks."""

    folder: Path
    tokenizer: Any
    config: ModelConfig


def find_start(config: Config, goes_on: Path | None = None) -> Start:
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
        notice(f"{error}; config and tokenizer are taken from {folder}")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: its tokenizer names no EOS token, which ends every text")
    live = tokens.live_vocab_size(tokenizer)
    if live > architecture.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has ids up to {live - 1}, its embedding only {architecture.vocab_size} rows"
        )
    blocks, t = config.training.block_attention, config.training
    architecture = dataclasses.replace(
        architecture,
        mask_token_id=_mask_token(config, architecture, tokenizer),
        live_vocab_size=live,
        visibility=blocks.visibility if blocks.enabled else "full",
        block_length=blocks.block_length if blocks.enabled else architecture.block_length,
        prompt_sees_answer=blocks.enabled and blocks.visibility == "block_bias" and blocks.prompt_sees_answer,
    )
    if architecture.mask_token_id in (tokenizer.eos_token_id, *architecture.eos_token_ids):
        raise InputError(
            f"model.mask_token_id {architecture.mask_token_id} is an EOS, which ends texts and pads answers; choose "
            "another id, or auto for the first embedding row that no token uses"
        )
    check_length(t.max_length, architecture)
    return Start(folder, tokenizer, architecture)


def check_length(length: int, architecture: ModelConfig) -> None:
    """Refuse rows that are longer than the model's positions."""
    if length > architecture.max_position_embeddings and architecture.rope_scaling is None:
        raise InputError(
            f"training.max_length {length} is beyond the {architecture.max_position_embeddings} positions the "
            "model was made for; lower it, or give config.json a rope_scaling"
        )


def _open(folder: Path) -> tuple[Path, ModelConfig, Any]:
    return folder, read_model_config(folder), tokens.load_tokenizer(folder)


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


def _mask_token(config: Config, architecture: ModelConfig, tokenizer: Any) -> int:
    choice = config.model.mask_token_id
    if choice is None:
        choice = architecture.mask_token_id
    if choice is None:
        raise InputError(
            "no mask token: the model folder names none (it is a plain Qwen3 checkpoint); set model.mask_token_id to "
            "an id, or to auto for the first embedding row that no token uses"
        )
    if choice == "auto":
        return tokens.first_free_row(tokenizer, architecture.vocab_size)
    try:
        return int(choice)
    except ValueError as error:
        raise InputError(f"model.mask_token_id {choice!r} is neither a number nor 'auto'") from error
