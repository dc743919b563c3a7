"""One more token in a tokenizer's files: the mask token of a vocabulary that has no place for one."""

import json
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError, brief
from qwen3llada_jax.io.atomic_files import write_text

MASK = "<|mask|>"


def add_mask_token(folder: Path, token_id: int) -> None:
    """Write `<|mask|>`, of this id, into the tokenizer files of a folder, as its mask token.

    Raises:
        InputError: no tokenizer.json, or a file that is no JSON object.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{folder}: no tokenizer.json in it, to which a mask token could be added; copy it there")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    tokenizer = _read(file)
    tokenizer["added_tokens"] = [
        *(tokenizer.get("added_tokens") or ()),
        {"id": token_id, "content": MASK, **flags},
    ]
    _write(file, tokenizer)
    file = folder / "tokenizer_config.json"
    settings = _read(file) if file.is_file() else {}
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {str(token_id): {"content": MASK, **flags}}
    _write(file, settings | {"mask_token": MASK})
    for name, more in (("added_tokens.json", {MASK: token_id}), ("special_tokens_map.json", {"mask_token": MASK})):
        if (folder / name).is_file():
            _write(folder / name, _read(folder / name) | more)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({brief(error, 100)}); copy it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: is no JSON object; copy it again")
    return found


def _write(file: Path, values: dict[str, Any]) -> None:
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
