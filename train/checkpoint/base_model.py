"""Where a run starts from: a folder with weights, its tokenizer, and the model it is to become."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada_jax.checkpoint.model_folder import read_config
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets
from qwen3llada_jax.io.atomic_files import home, put_back
from qwen3llada_jax.io.hub import model_folder
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.text import mask_token, tokens
from qwen3llada_jax.text.mask_token import MaskToken

from ..config.block_schedule import read_schedule
from ..config.mix import trains
from ..config.schema import BLOCK_LENGTH, BLOCK_ORIGIN, BLOCK_VISIBILITY, BlockAttentionConfig, Config
from ..monitor.run_log import warn


@dataclass(frozen=True)
class BaseModel:
    """A folder to start from, its tokenizer, and the architecture with this run's mask token and blocks.

    Attributes:
        mask_token: its id, and who says so: for the line at the start.
        blocks: who sees whom.
        visibility, shift: who sees whom and the config's shift in words, and who says so.
    """

    folder: Path
    tokenizer: Any
    config: ModelConfig
    mask_token: MaskToken
    blocks: BlockAttentionConfig
    visibility: str
    shift: str


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
        if goes_on is not None and not buckets.place(source).is_dir():  # nor is the hub asked for what is here
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
    shift, said_of_shift = shift_of(config, architecture)
    own = None if architecture.is_autoregressive else architecture.block_length
    architecture = dataclasses.replace(
        architecture,
        mask_token_id=mask.id,
        live_vocab_size=tokens.live_vocab_size(tokenizer),
        visibility=(blocks.visibility or "full") if blocks.enabled else "full",
        block_length=blocks.block_length if blocks.enabled else own,
        prompt_sees_answer=bool(blocks.enabled and blocks.prompt_sees_answer),
        shift=shift,
        block_origin=blocks.origin or BLOCK_ORIGIN,
        causal_context=bool(blocks.causal_context),
        enable_thinking=_thinks(config, architecture),
    )
    check_length(config.training.max_length, architecture)
    return BaseModel(folder, tokenizer, architecture, mask, blocks, visibility, said_of_shift)


def settled(
    config: Config, blocks: BlockAttentionConfig, enable_thinking: bool = False, *, shift: bool = False
) -> Config:
    """The configuration with what `find_base_model` found where it left the choice to the model."""
    training = dataclasses.replace(config.training, block_attention=blocks, shift=shift)
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


def shift_of(config: Config, architecture: ModelConfig) -> tuple[bool, str]:
    """(whether tokens are predicted at the position before them, the same in words): if not set, as the model does.

    An autoregressive model does so, from its left alone; what becomes of it does not unless it is asked to.
    """
    asked, model = config.training.shift, architecture
    if asked is None:
        shift = model.shift and not model.is_autoregressive
        said = _AUTOREGRESSIVE if model.is_autoregressive else "the model's own"
    else:
        shift = asked
        is_own = asked == model.shift and not model.is_autoregressive
        said = "the model's own" if is_own else f"training.shift; {_before(model, _on(model.shift))}"
    return shift, f"{_on(shift)} ({said})"


def blocks_of(config: Config, architecture: ModelConfig) -> tuple[BlockAttentionConfig, str]:
    """(who sees whom in this run, the same in words): what is not set is what the model was trained with.

    What an autoregressive model sees is given up: not asked otherwise, everyone sees everyone.

    Args:
        architecture: of the model that the run starts from.

    Raises:
        InputError: a block length, an origin, or a rule of the prompt, that would change nothing.
    """
    asked, model = config.training.block_attention, architecture
    was_blocks = model.visibility != "full" and not model.is_autoregressive
    in_blocks = trains(config.training, "block_diffusion")
    enabled = (was_blocks or in_blocks) if asked.enabled is None else asked.enabled
    own = _before(model, _in_words(model.visibility, model.block_length, model.block_origin))
    if not enabled:
        for name in ("block_length", "origin", "schedule"):
            if asked.enabled is None and getattr(asked, name) is not None:
                raise InputError(
                    f"training.block_attention.{name} has no effect on a model of visibility full; leave it out, or "
                    "set enabled: true"
                )
        said = "the model's own" if model.visibility == "full" else own
        said = f"block_attention.enabled is false; {own}" if was_blocks else said
        plain = BlockAttentionConfig(False, asked.block_length or BLOCK_LENGTH, BLOCK_VISIBILITY, False, BLOCK_ORIGIN,
                                     False)  # fmt: skip
        return plain, f"full ({said})"
    kept = model.visibility if was_blocks else BLOCK_VISIBILITY
    visibility = asked.visibility or ("block_causal" if in_blocks else kept)
    last = read_schedule(asked.schedule)[-1][0] if asked.schedule is not None else None
    length = last or asked.block_length or (model.block_length if was_blocks else None) or BLOCK_LENGTH
    sees = asked.prompt_sees_answer
    if sees is None:
        sees = visibility == model.visibility == "block_bias" and model.prompt_sees_answer
    keeps_origin = was_blocks and visibility == model.visibility
    origin = asked.origin or (model.block_origin if keeps_origin else BLOCK_ORIGIN)
    causal = keeps_origin and in_blocks and model.causal_context
    causal = causal if asked.causal_context is None else asked.causal_context
    if model.causal_context and keeps_origin and not in_blocks:
        raise InputError(
            "the model reads what stands before a block from left to right (causal_context), which only "
            "training.objective block_diffusion trains; set it"
        )
    if causal and config.training.mix is not None:
        raise InputError(
            "the model reads what stands before a block from left to right (causal_context), which not all of "
            "training.mix trains: set block_attention.causal_context: false, or leave the mix out"
        )
    only = {"prompt_sees_answer": (sees, "block_bias"), "origin": (origin != BLOCK_ORIGIN, "block_causal")}
    for name, (acts, needed) in only.items():
        if acts and visibility != needed:
            raise InputError(
                f"training.block_attention.{name} has no effect with visibility {visibility}; leave it out, or "
                f"set visibility: {needed}"
            )
    is_own = (visibility, length, sees, origin, causal) == (
        model.visibility, model.block_length, model.prompt_sees_answer, model.block_origin, model.causal_context,
    )  # fmt: skip
    said = "the model's own" if is_own and was_blocks else f"training.block_attention; {own}"
    text = _in_words(visibility, length, origin) + (", prompts see answers" if sees else "")
    text += ", context from left to right" if causal else ""
    settled = BlockAttentionConfig(True, length, visibility, bool(sees), origin, causal, asked.schedule)
    return settled, f"{text} ({said})"


_AUTOREGRESSIVE = "the model was autoregressive"
_COUNTED = {"prompt": "", "start": " from position 0", "aligned": " from the prompt's end, backward too"}


def _before(model: ModelConfig, own: str) -> str:
    return _AUTOREGRESSIVE if model.is_autoregressive else f"the model's own was {own}"


def _in_words(visibility: str, block_length: int | None, origin: str) -> str:
    return visibility if visibility == "full" else f"{visibility} in blocks of {block_length}{_COUNTED[origin]}"


def _on(shift: bool) -> str:
    return "on" if shift else "off"


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
        is_there = buckets.is_there(converted) if buckets.is_bucket(converted) else Path(converted).exists()
        if is_there or goes_on is not None or not base:
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
