"""A model trained in one's own loop as a model folder: what sample.generate, train.run and converters.to_hf take."""

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx

from qwen3llada_jax import arguments
from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.checkpoint.hf_names import flatten
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.io.atomic_files import expanded, new_folder
from qwen3llada_jax.model import model
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.text import tokens


def save(
    network: Qwen3LLaDA,
    folder: Path | str,
    *,
    tokenizer: Any | Path | str | None = None,
    mask_token_id: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model folder; `q.load` opens it, and so do the programs.

    Args:
        network: parameters are written in the dtype they have.
        tokenizer: one that is loaded, or a folder that holds one (with its generation config); None: the folder gets
            none, and programs that read or write text will ask for it.
        mask_token_id: with which the model was trained, where its config names none.
        overwrite: replace a model folder that stands there.

    Raises:
        InputError: no model, parameters that its config does not describe or that are not finite, another model's
            tokenizer, another mask token than the config's, or a place that cannot be written.
    """
    from qwen3llada_jax.checkpoint import stored_params  # see there

    if not isinstance(network, Qwen3LLaDA):
        raise InputError(f"q.save writes a Qwen3LLaDA, not {shown(type(network).__name__)}")
    config = network.config
    if mask_token_id is not None:
        mask_token_id = arguments.whole("mask_token_id", mask_token_id)
        if config.mask_token_id not in (None, mask_token_id):
            raise InputError(
                f"mask_token_id {mask_token_id} is not the {config.mask_token_id} that the model's config names; leave "
                "it out, or change model.config"
            )
        config = dataclasses.replace(config, mask_token_id=mask_token_id)
    source = expanded(tokenizer) if isinstance(tokenizer, Path | str) else None
    loaded: Any = tokenizer if source is None else tokens.load_tokenizer(source)
    if loaded is not None:
        tokens.check_vocabulary(loaded, config, source or "the tokenizer")
        if config.live_vocab_size is None:
            config = dataclasses.replace(config, live_vocab_size=tokens.live_vocab_size(loaded))
    params = nnx.to_pure_dict(nnx.split(network, nnx.Param, ...)[1])
    wanted, have = flatten(model.abstract(config)[1]), flatten(params)
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in have.items()}:
        raise InputError("the model's parameters are not those that its config describes; save the whole model")
    model_folder.check_finite(params, "the model")
    with new_folder(expanded(folder), overwrite=overwrite) as target:
        stored_params.save_params(target / "params", params)
        model_folder.write_config(target, config)
        if source is not None:
            model_folder.copy_tokenizer(source, target)
        elif loaded is not None:
            with stored_params.writing(target):
                loaded.save_pretrained(target)
        if loaded is not None:
            tokens.load_tokenizer(target)  # what was written is that tokenizer
