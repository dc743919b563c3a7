"""One more token in a tokenizer's files: the mask token of a vocabulary that has no place for one."""

import json
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.text.text_ends import read_object

MASK = "<|mask|>"


def add_mask_token(folder: Path, token_id: int, content: str = MASK) -> None:
    """Write a token of this id into the tokenizer files of a folder, as its mask token.

    Raises:
        InputError: no tokenizer.json, or a file that is no JSON object.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{folder}: no tokenizer.json in it, to which a mask token could be added; copy it there")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    tokenizer = read_object(file)
    tokenizer["added_tokens"] = [
        *(tokenizer.get("added_tokens") or ()),
        {"id": token_id, "content": content, **flags},
    ]
    _write(file, tokenizer)
    file = folder / "tokenizer_config.json"
    settings = read_object(file)
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {str(token_id): {"content": content, **flags}}
    _write(file, settings)
    if (folder / "added_tokens.json").is_file():
        _write(folder / "added_tokens.json", read_object(folder / "added_tokens.json") | {content: token_id})
    name_mask_token(folder, content)


def name_mask_token(folder: Path, content: str) -> None:
    """Write which of its tokens is the mask token into the tokenizer files of a folder.

    Raises:
        InputError: a file that is no JSON object.
    """
    file = folder / "tokenizer_config.json"
    _write(file, read_object(file) | {"mask_token": content})
    if (folder / "special_tokens_map.json").is_file():
        _write(
            folder / "special_tokens_map.json",
            read_object(folder / "special_tokens_map.json") | {"mask_token": content},
        )


def _write(file: Path, values: dict[str, Any]) -> None:
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
