"""Which token stands for "not known yet", and who says so.

The order: what is asked for, what the model's config names, what the tokenizer itself calls its mask token, the first
embedding row that no token uses, a special token that is kept for uses of one's own. LLaDA's own 126336 is the mask
token of LLaDA's tokenizer, or of who asks for it: in Qwen3's vocabulary it is a piece of real Arabic text.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from qwen3llada_jax.errors import InputError, listed, shown
from qwen3llada_jax.io.atomic_files import home
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.text import tokens
from qwen3llada_jax.text.text_ends import with_text_ends

# Special tokens that no text becomes and no model was trained with. Llama's tokenizer has 250 of the first kind.
# SmolLM2's has none such, but 11 of its 17 special tokens are for markup of code that it never met: their embeddings
# are alike to a cosine of 1.00, of <repo_name>, <reponame> and <filename> they are not. The last is one of the 11.
_RESERVED = re.compile(r"reserved|unused|^<gh_stars>$")


class MaskToken(NamedTuple):
    """A mask token and where it comes from.

    Attributes:
        id: in the embedding table.
        origin: who says so, in words.
        text: of the token, None for a row that no token owns.
        is_known: a tokenizer calls it a mask or reserves it, so text never holds it by accident.
    """

    id: int
    origin: str
    text: str | None = None
    is_known: bool = False

    def __str__(self) -> str:
        """For the line at a program's start."""
        what = "a row that no token uses" if self.text is None else repr(self.text)
        return f"{self.id} ({what}; {self.origin})"

    @property
    def warning(self) -> str | None:
        """What to say of a token that real text may hold."""
        if self.text is None or self.is_known:
            return None
        return (
            f"mask token {self.id} is {self.text!r} in this tokenizer, a token of real text; the noise is tracked "
            "apart, so such text stays readable, but the model cannot tell it from a mask: consider auto"
        )


def choose(
    asked: str | int | None, folder: Path, config: ModelConfig, tokenizer: Any | None, flag: str
) -> MaskToken | None:
    """The mask token of a model that is imported or trained.

    Args:
        asked: an id, or `auto`: whatever the model or its tokenizer names, else the first free row; None: the same
            without the free row.
        folder: where the model lies.
        flag: what the choice is called, for messages.

    Returns:
        None when nothing names one and `asked` is None.

    Raises:
        InputError: neither an id nor auto, an id outside the table, an EOS, several tokens that might be it, or no
            row that is free or reserved.
    """
    named, where = named_by(folder, config)
    if asked not in (None, "auto"):
        chosen, origin = _as_id(asked, flag), f"asked for by {flag}"
    elif named is not None:
        chosen, origin = named, f"named by the model's {where}"
    elif tokenizer is not None and (own := own_mask_token(tokenizer, flag)) is not None:
        chosen, origin = own, "the tokenizer's own"
    elif asked == "auto":
        if tokenizer is None:
            raise InputError(
                f"{folder}: no tokenizer in it, so no free row is known; name the mask token with {flag} N"
            )
        chosen, origin = unused(tokenizer, config.vocab_size, flag)
    else:
        return None
    if not 0 <= chosen < config.vocab_size:
        raise InputError(
            f"mask_token_id {chosen} is outside the embedding table (0 … {config.vocab_size - 1}); choose an id inside "
            f"it, or `auto` for its first row that no token uses"
        )
    ending = with_text_ends(config, folder)
    ends = ending.eos_token_ids if tokenizer is None else tokens.stop_ids(ending, tokenizer)
    if chosen in ends:
        raise InputError(
            f"{flag} {chosen} is an EOS, which ends texts and pads answers; choose another id, or auto for what the "
            "tokenizer calls its mask token, or the first embedding row that no token uses"
        )
    if tokenizer is None:
        return MaskToken(chosen, origin)
    is_known = chosen in {*_mask_tokens(tokenizer).values(), *_reserved_tokens(tokenizer)}
    return MaskToken(chosen, origin, tokens.token_text(tokenizer, chosen), is_known)


def named_by(folder: Path, config: ModelConfig) -> tuple[int | None, str]:
    """(the mask token that a model folder names, the file that does so)."""
    if config.mask_token_id is not None:
        return config.mask_token_id, "config.json"
    path = home(folder) / "generation_config.json"  # where Dream's models say it
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON; download it again, or remove it") from error
    found = settings.get("mask_token_id") if isinstance(settings, dict) else None
    return (None if found is None else _as_id(found, f"{path}: mask_token_id")), "generation_config.json"


def own_mask_token(tokenizer: Any, flag: str) -> int | None:
    """The id of what a tokenizer calls its mask token, or of an added token of such a name.

    Raises:
        InputError: several added tokens look like it.
    """
    found = _mask_tokens(tokenizer)
    if len(found) > 1:
        several = listed(f"{text} ({i})" for text, i in found.items())
        raise InputError(
            f"the tokenizer has several tokens that may be its mask token, {several}; name one by its id, {flag} N"
        )
    return next(iter(found.values()), None)


def unused(tokenizer: Any, vocab_size: int, flag: str) -> tuple[int, str]:
    """(a row of the embedding that texts never use, in words which): the first without a token, else a reserved one.

    Raises:
        InputError: every row belongs to a token, and none is reserved.
    """
    used = set(tokenizer.get_vocab().values())
    free = next((i for i in range(vocab_size) if i not in used), None)
    if free is not None:
        return free, "the first that is free"
    reserved = _reserved_tokens(tokenizer)
    if not reserved:
        raise InputError(
            f"every one of the {vocab_size} embedding rows belongs to a token and none is reserved, so none can be the "
            f"mask token; name one that your texts never use with {flag} N, or import the model with --add-mask-token"
        )
    return reserved[0], "a special token that texts do not use; no row is free"


def _mask_tokens(tokenizer: Any) -> dict[str, int]:
    if tokenizer.mask_token_id is not None:
        return {tokenizer.mask_token: tokenizer.mask_token_id}
    added = tokenizer.get_added_vocab()
    return {text: i for text, i in added.items() if re.sub(r"[^a-z]", "", text.lower()) in ("mask", "mdmmask")}


def _reserved_tokens(tokenizer: Any) -> list[int]:
    """Ids of special tokens that are kept for uses of one's own, in order."""
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    added = tokenizer.added_tokens_decoder.items()
    return sorted(i for i, t in added if t.special and i not in taken and _RESERVED.search(t.content))


def _as_id(value: Any, flag: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
        return int(value)
    raise InputError(f"{flag} {shown(value)} is neither a number nor 'auto'")
