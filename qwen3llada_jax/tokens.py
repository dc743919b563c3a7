"""What the model must know of a tokenizer: which ids are text, and which id may stand for "unknown yet"."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import home


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, or of the run that a checkpoint's folder belongs to.

    Raises:
        InputError: none there, or it cannot be read.
    """
    folder = home(folder)
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: no tokenizer in it; copy tokenizer.json and tokenizer_config.json there")
    with _without_torch_notice():
        from transformers import AutoTokenizer  # takes seconds to import

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: its tokenizer cannot be read ({error})") from error


@contextmanager
def _without_torch_notice() -> Iterator[None]:
    """Drop transformers' "PyTorch was not found", said once when it is imported: nothing here uses its models."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("PyTorch was not found")

    logger = logging.getLogger("transformers")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def live_vocab_size(tokenizer: Any) -> int:
    """One more than the largest id that a token owns."""
    return max(tokenizer.get_vocab().values()) + 1


def first_free_row(tokenizer: Any, vocab_size: int) -> int:
    """The first row of the embedding that no token uses: what `--mask-token-id auto` picks.

    Raises:
        InputError: every row belongs to a token.
    """
    used = set(tokenizer.get_vocab().values())
    free = next((i for i in range(vocab_size) if i not in used), None)
    if free is None:
        raise InputError(
            f"every one of the {vocab_size} embedding rows belongs to a token, so none can be the mask token; "
            "name one that your texts never use with --mask-token-id N"
        )
    return free


def token_text(tokenizer: Any, token_id: int) -> str | None:
    """The text of a live token, None for an id that no token owns."""
    token = tokenizer.convert_ids_to_tokens(token_id) if token_id < live_vocab_size(tokenizer) else None
    return None if token is None else tokenizer.convert_tokens_to_string([token])
