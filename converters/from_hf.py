"""Import a PyTorch checkpoint (Hugging Face safetensors) of any family that docs/models.md lists.

    python -m converters.from_hf --src Qwen/Qwen3-0.6B --dst models/qwen3-0.6b

An autoregressive model stays one until it is trained, or `--visibility` says what it is to become. The result is a
model folder: params/ (orbax), config.json, the tokenizer and generation config. It is written beside its place and
moved there when it is whole.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qwen3llada_jax import cli
from qwen3llada_jax.checkpoint import hf_import, stored_params
from qwen3llada_jax.checkpoint import model_folder as checkpoint
from qwen3llada_jax.cli import Place, flag
from qwen3llada_jax.errors import InputError, listed, shown
from qwen3llada_jax.families.trained_with import NAMES, trained_with
from qwen3llada_jax.io.atomic_files import expanded, new_folder
from qwen3llada_jax.io.buckets import is_under
from qwen3llada_jax.io.hub import model_folder
from qwen3llada_jax.model.config import (
    BLOCK_ORIGINS,
    VISIBILITIES,
    ModelConfig,
    named_config_json,
    read_config_json,
    unknown_keys,
)
from qwen3llada_jax.text import added_token, mask_token, sampling_defaults, tokens
from qwen3llada_jax.text.mask_token import MaskToken

from . import model_card


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    src: Place = flag("folder of a checkpoint, or its id on the hub")
    dst: Path = flag("model folder to write")
    dtype: str | None = flag("of the parameters (default: as stored)", None, choices=("float32", "bfloat16", "float16"))
    mask_token_id: str = flag(
        "mask token: an id, or auto: what config.json names, else the tokenizer's own mask token, else the first "
        "embedding row without a token, else a reserved special token (default: %(default)s)",
        "auto",
        metavar="N|auto",
    )
    visibility: str | None = flag(
        "who sees whom: what the model was trained with, where its files do not say, or is to be adapted to",
        None, choices=VISIBILITIES,
    )  # fmt: skip
    block_length: int | None = flag("tokens of a block (default: as its files say)", None)
    shift: bool | None = flag("it predicts a token at the position before it (default: as its files say)", None)
    block_origin: str | None = flag("where its blocks are counted from", None, choices=BLOCK_ORIGINS)
    add_mask_token: bool = flag(
        "give the embedding one more row, the mean of all, and the tokenizer the token <|mask|> for it", False
    )
    overwrite: bool = flag("replace a model folder that stands at --dst", False)


def main() -> None:
    flags = cli.parse(Flags)
    said = {name: getattr(flags, name) for name in NAMES}
    convert(
        flags.src,
        flags.dst,
        dtype=flags.dtype,
        mask_token_id=flags.mask_token_id,
        add_mask_token=flags.add_mask_token,
        overwrite=flags.overwrite,
        said=said,
    )


def convert(
    src: str,
    dst: Path,
    *,
    dtype: str | None,
    mask_token_id: str,
    add_mask_token: bool = False,
    overwrite: bool = False,
    said: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """Write the model folder `dst` and return its config.

    Args:
        said: what the model was trained with, as `ModelConfig.from_hf` takes it.
        add_mask_token: as the flag says.

    Raises:
        InputError: anything wrong with the source, the mask token or the destination.
    """
    folder = model_folder(src)
    source = read_config_json(folder)
    stored = checkpoint.read_config(folder, said)
    if add_mask_token:
        config, mask = _with_added_token(folder, stored, mask_token_id)
    else:
        config, mask = _with_mask_token(folder, stored, mask_token_id)
    ignored = unknown_keys(source)
    if ignored:
        _notice(f"config.json has keys that a {config.family.name} does not use, left out: {listed(ignored)}")
    if strange := sampling_defaults.unread(folder):
        asked = listed(f"{name} {shown(value)}" for name, value in strange.items())
        _notice(f"generation_config.json asks for what the sampler has not: {asked}; texts are written without")
    if is_under(folder, dst):
        raise InputError(f"{dst}: would overwrite its own source {folder}; choose another --dst")
    with new_folder(dst, overwrite=overwrite) as target:
        params = hf_import.import_params(folder, stored, dtype)
        if add_mask_token:
            params = _with_a_row_more(params)
        stored_params.save_params(target / "params", params)
        known = model_card.provenance(folder, None if expanded(src).is_dir() else src)
        extra = _what_export_restores(folder, stored, dtype, known)
        checkpoint.write_config(target, config, extra)
        copied = checkpoint.copy_tokenizer(folder, target)
        if add_mask_token:
            added_token.add_mask_token(target, mask.id)
            tokens.load_tokenizer(target)  # whether it is there under that id
    leaves = jax.tree.leaves(params)
    count, size = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
    dtypes = ", ".join(sorted({str(x.dtype) for x in leaves}))
    print(f"{dst}: {count:,} parameters, {size / 1e6:,.0f} MB, {dtypes}; {len(copied)} tokenizer files")
    print(f"family: {_what_it_is(folder, config, said or {})}")
    if config.family.may_untie and (head := _head(folder, config)):
        print(f"head: {head}")
    print(f"mask token: {mask}")
    return config


def _what_it_is(folder: Path, config: ModelConfig, said: Mapping[str, Any]) -> str:
    """The family of a model, what it was trained with, and who says so."""
    facts = trained_with(config.family, config.family.read(named_config_json(folder)), said)
    words = {
        "visibility": f"visibility {config.visibility}",
        "block_length": f"blocks of {config.block_length}" if config.block_length else "",
        "block_origin": f"counted from the {_ORIGINS[config.block_origin]}" if config.visibility != "full" else "",
        "shift": "shift" if config.shift else "no shift",
    }
    if config.is_autoregressive:
        words = dict.fromkeys(words, "") | {
            "visibility": "autoregressive: it writes a token at a time, from those before it"
        }
    by: dict[str, list[str]] = {}
    for name, word in words.items():
        by.setdefault(facts[name].by, []).extend([word] if word else [])
    said_by = [f"{', '.join(those)} ({who})" for who, those in by.items() if those]
    return "; ".join([config.family.name, *said_by])


_ORIGINS = {"prompt": "prompt's end", "start": "start", "aligned": "prompt's end, its own too"}


def _head(folder: Path, config: ModelConfig) -> str:
    """What became of a head that its config.json calls tied, where such heads may be others."""
    if hf_import.has_tied_head(folder, config):
        return "stored, and equal to the embedding: one array"
    if not config.tie_word_embeddings and config.family.read(read_config_json(folder))["tie_word_embeddings"]:
        return "not the embedding, though config.json calls it tied: kept apart"
    return ""


def _with_mask_token(folder: Path, config: ModelConfig, asked: str) -> tuple[ModelConfig, MaskToken]:
    tokenizer = tokens.load_tokenizer(folder) if tokens.has_tokenizer(folder) else None
    mask = mask_token.choose(asked, folder, config, tokenizer, "--mask-token-id")
    assert mask is not None  # what is asked for is an id or auto
    named, where = mask_token.named_by(folder, config)
    if named not in (None, mask.id):
        _notice(f"{where} names mask token {named}, with which the model may have been trained; it becomes {mask.id}")
    if mask.warning:
        _notice(mask.warning)
    if tokenizer is None:
        _notice(f"{folder} has no tokenizer, so it is not known whether token {mask.id} occurs in real text")
        return dataclasses.replace(config, mask_token_id=mask.id), mask
    # The mask token may be the tokenizer's last, with rows of nobody before it.
    live = min(tokens.live_vocab_size(tokenizer), config.live_vocab_size or config.vocab_size)
    return dataclasses.replace(config, mask_token_id=mask.id, live_vocab_size=live), mask


def _with_added_token(folder: Path, config: ModelConfig, asked: str) -> tuple[ModelConfig, MaskToken]:
    """The config with one more row, and its mask token.

    Raises:
        InputError: no tokenizer, or the model has a mask token or a row for one.
    """
    if asked != "auto":
        raise InputError(f"--add-mask-token and --mask-token-id {asked} both say the mask token; give one of them")
    if not tokens.has_tokenizer(folder):
        raise InputError(f"{folder}: no tokenizer in it, to which --add-mask-token could add one; copy its files there")
    tokenizer = tokens.load_tokenizer(folder)
    there = mask_token.choose(None, folder, config, tokenizer, "--mask-token-id")
    if there is not None:
        raise InputError(f"{folder} has a mask token, {there}; leave out --add-mask-token")
    live, rows = tokens.live_vocab_size(tokenizer), config.vocab_size
    if live < rows:
        raise InputError(f"row {live} of the embedding ({rows} rows) is free for a mask; leave out --add-mask-token")
    more = dataclasses.replace(config, vocab_size=rows + 1, live_vocab_size=rows + 1, mask_token_id=rows)
    return more, MaskToken(rows, "added: the mean of all rows", added_token.MASK, True)


def _with_a_row_more(params: dict[str, Any]) -> dict[str, Any]:
    """The mean of all rows behind the last one, of the embedding and of a head of its own."""
    tables = {name: params[name] for name in ("embed_tokens", "lm_head") if name in params}
    more = {
        name: jnp.concatenate([table, jnp.mean(table, 0, jnp.float32, keepdims=True).astype(table.dtype)])
        for name, table in tables.items()
    }
    return params | more


def _what_export_restores(
    folder: Path, config: ModelConfig, dtype: str | None, known: Mapping[str, str]
) -> dict[str, Any]:
    """What our tree cannot say of the source: where it is from, and what the export needs to give back its bytes."""
    export: dict[str, Any] = dict(known)
    if hf_import.has_tied_head(folder, config):
        export["tied_head_written"] = True
    if dtype is None:
        mixed = [stack for stack in hf_import.plan(folder, config) if len({t.dtype for t in stack.parts.values()}) > 1]
        dtypes = {name: t.dtype.name for stack in mixed for name, t in stack.parts.items() if t.dtype != stack.dtype}
        if dtypes:
            export["dtypes"] = dtypes
    return {"hf_export": export} if export else {}


def _notice(text: str) -> None:
    print(f"notice: {text}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
