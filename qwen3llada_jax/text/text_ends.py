"""What a model folder's tokenizer files say about sampling: ids that end a text, and how many ids are tokens.

Read from the files themselves, so that `load` and the programs agree and opening a model needs no tokenizer library.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError, brief
from qwen3llada_jax.io.atomic_files import home
from qwen3llada_jax.model.config import ModelConfig

END_OF_TURN = "<|im_end|>"


def with_text_ends(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config of a folder, with every id that ends a text and, where it is silent, the number of live ids.

    A text ends at the model's EOS, those of generation_config.json, the tokenizer's, and the end of a chat turn, on
    which a fine-tuned model stops; ids that the embedding has not are left out.

    Raises:
        InputError: a file that is not JSON, or not a tokenizer's.
    """
    folder = home(folder)
    try:
        ids = _ids_of_tokens(folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder}: its tokenizer files cannot be read ({brief(error, 100)}); copy them again"
        ) from error
    named = [ids.get(_content(read_object(folder / name).get("eos_token"))) for name in _NAMING_EOS]
    of_generation = read_object(folder / "generation_config.json").get("eos_token_id")
    more = of_generation if isinstance(of_generation, list) else [of_generation]
    ends: list[Any] = [*config.eos_token_ids, *more, *named, ids.get(END_OF_TURN)]
    known = tuple(dict.fromkeys(i for i in ends if isinstance(i, int) and 0 <= i < config.vocab_size))
    live = config.live_vocab_size
    if live is None and ids:
        live = min(max(ids.values()) + 1, config.vocab_size)
    eos = known if len(known) > 1 or isinstance(config.eos_token_id, tuple) else next(iter(known), None)
    return dataclasses.replace(config, eos_token_id=eos, live_vocab_size=live)


_NAMING_EOS = ("tokenizer_config.json", "special_tokens_map.json")


def _ids_of_tokens(folder: Path) -> dict[str | None, int]:
    """Token → id, of tokenizer.json, or of the older files."""
    tokenizer, settings = read_object(folder / "tokenizer.json"), read_object(folder / "tokenizer_config.json")
    vocab = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocab, list):  # unigram models: [[token, log probability], …]
        vocab = {token: number for number, (token, _) in enumerate(vocab)}
    ids: dict[str | None, int] = dict(vocab or read_object(folder / "vocab.json")) | read_object(
        folder / "added_tokens.json"
    )
    ids |= {_content(t): int(number) for number, t in (settings.get("added_tokens_decoder") or {}).items()}
    return ids | {t["content"]: t["id"] for t in tokenizer.get("added_tokens") or ()}


def _content(token: Any) -> str | None:
    """The text of a token that a settings file names: a text, or an object with it."""
    return token.get("content") if isinstance(token, dict) else token


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        InputError: it is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({brief(error, 100)}); copy it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: is no JSON object; copy it again")
    return found
