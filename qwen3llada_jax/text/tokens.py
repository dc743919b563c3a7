"""What the model must know of a tokenizer: which ids are text, and which end one.

transformers builds some tokenizers anew from parts of what a folder holds, and is then not the tokenizer that the files
describe: a tokenizer is held against its files before anything is written or trained with it.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError, brief, shown
from qwen3llada_jax.families.trained_with import NO_MATTER
from qwen3llada_jax.io.atomic_files import expanded, home
from qwen3llada_jax.model.config import ModelConfig, read_model_config
from qwen3llada_jax.process import pytorch
from qwen3llada_jax.text.text_ends import END_OF_TURN, read_object

# Everything that pre-tokenizers and normalizers treat each in its own way.
_SAMPLE = (
    "Hello, wörld! It's 12345 x 0.5e-3;\n\n  def f(x):\n\treturn x  # done\r\n"
    "don't DON'T  été e\u0301 ﬁ ½ 你好，世界 こんにちは 한국어 Привет עברית العربية हिन्दी 🙂👍🏽 <tag> {a: [1, 2]} "
    "\u00a0\u2003…"
)


# Tokenizers whose code lies beside a model, and transformers' own of the same files and rules.
_SAME_AS = {"DreamTokenizer": "qwen2"}


def load_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a model folder, or of the run that a checkpoint's folder belongs to.

    Raises:
        InputError: none there; it cannot be read; transformers makes another one of it than its files say; or it is
            not the tokenizer of the model whose config.json lies beside it.
    """
    folder = home(expanded(folder))
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    _check_files(folder)
    with pytorch.unseen(), _without_torch_notice():
        from transformers import AutoTokenizer, PreTrainedConfig, __version__  # takes seconds to import

    # Of a model whose code lies on the hub transformers would ask whether to run that, for its config.
    has_own_code = "auto_map" in read_object(folder / "config.json")
    plain: dict[str, Any] = {"config": PreTrainedConfig()} if has_own_code else {}
    own_class = read_object(folder / "tokenizer_config.json").get("tokenizer_class")
    if own_class in _SAME_AS:
        plain["tokenizer_type"] = _SAME_AS[own_class]
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, **plain)
        vocabulary = tokenizer.get_vocab()
        ids = tokenizer(_SAMPLE, add_special_tokens=False).input_ids
    except Exception as error:  # the Rust library raises bare exceptions
        raise InputError(
            f"{folder}: its tokenizer cannot be read ({brief(error)}); fix its files, or install a newer transformers "
            f"than {__version__} and its tokenizers if they were written by one"
        ) from error
    if (folder / "tokenizer.json").is_file():
        _check_against_tokenizer_json(folder, ids, vocabulary)
    else:
        _check_against_vocab_and_merges(folder, tokenizer, vocabulary)
    if (folder / "config.json").is_file():
        check_vocabulary(tokenizer, read_model_config(folder, NO_MATTER), folder)
    return tokenizer


def check_vocabulary(tokenizer: Any, config: ModelConfig, folder: Path | str) -> None:
    """Refuse a tokenizer that cannot be the model's.

    Raises:
        InputError: it has more ids than the embedding has rows, less than half as many, or lacks the model's EOS.
    """
    live, rows = live_vocab_size(tokenizer), config.vocab_size
    if live > rows:
        raise InputError(
            f"{folder}: the tokenizer has ids up to {live - 1} but the embedding only {rows} rows; "
            "they belong to different models"
        )
    if live < rows / 2:
        raise InputError(
            f"{folder}: the tokenizer has only {live:,} tokens for the {rows:,} rows of the embedding; "
            "they belong to different models, or files of the tokenizer are missing"
        )
    strange = [i for i in config.eos_token_ids if i >= live]
    if strange:
        raise InputError(
            f"{folder}: config.json says that token {strange[0]} ends a text, but the tokenizer's ids end at "
            f"{live - 1}; they belong to different models, or files of the tokenizer are missing"
        )


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


def stop_ids(config: ModelConfig, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a text: the model's EOS, the tokenizer's, and the end of a chat turn.

    Args:
        config: of `load`, or `text_ends.with_text_ends`: the plain one of a folder does not know what its
            generation_config.json names.
    """
    ends = (*config.eos_token_ids, tokenizer.eos_token_id, tokenizer.get_vocab().get(END_OF_TURN))
    return tuple(dict.fromkeys(i for i in ends if i is not None and i < config.vocab_size))


def up_to_stop(answer: list[int], stops: Sequence[int]) -> list[int]:
    """An answer before the first id that ends it."""
    return answer[: next((i for i, token in enumerate(answer) if token in stops), len(answer))]


def token_text(tokenizer: Any, token_id: int) -> str | None:
    """The text of a live token, None for an id that no token owns."""
    token = tokenizer.convert_ids_to_tokens(token_id) if token_id < live_vocab_size(tokenizer) else None
    return None if token is None else tokenizer.convert_tokens_to_string([token])


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds any file of a tokenizer."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
    return any((home(folder) / name).is_file() for name in names)


def _check_files(folder: Path) -> None:
    """Refuse folders of which transformers makes an (almost) empty tokenizer without a word."""
    if (folder / "tokenizer.json").is_file():
        return
    if not has_tokenizer(folder):
        raise InputError(f"{folder}: no tokenizer in it; copy tokenizer.json and tokenizer_config.json there")
    absent = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"{folder}: its tokenizer has neither tokenizer.json nor {' and '.join(absent)}, without which "
            "transformers makes one of a few tokens; copy the model's tokenizer.json there"
        )


def _check_against_tokenizer_json(folder: Path, ids: list[int], vocabulary: dict[str, int]) -> None:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    written = Tokenizer.from_file(str(file)).encode(_SAMPLE, add_special_tokens=False).ids
    if ids != written:
        raise InputError(
            f"{folder}: transformers makes another tokenizer of this folder than its tokenizer.json describes (a fixed "
            f"text becomes {len(ids)} ids, not the {len(written)} of the file); set tokenizer_class to "
            "PreTrainedTokenizerFast in tokenizer_config.json, which takes the file as it is"
        )
    # The library numbers added tokens anew where the file's numbers leave a gap.
    for token in json.loads(file.read_text(encoding="utf-8"))["added_tokens"]:
        found = vocabulary.get(token["content"])
        if found != token["id"]:
            raise InputError(
                f"{folder}: tokenizer.json says that token {token['id']} is {shown(token['content'])}, but "
                f"transformers makes it {found}; fix added_tokens there: its ids must leave no gap"
            )


def _check_against_vocab_and_merges(folder: Path, tokenizer: Any, vocabulary: dict[str, int]) -> None:
    try:
        written = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = sum(bool(line.strip()) and not (n == 0 and line.startswith("#")) for n, line in enumerate(lines))
        built = len(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"])
        is_same = built == merges and all(vocabulary.get(token) == i for token, i in written.items())
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: vocab.json or merges.txt cannot be read ({brief(error)})") from error
    if not is_same:
        raise InputError(
            f"{folder}: transformers makes another tokenizer of this folder than vocab.json ({len(written):,} tokens) "
            f"and merges.txt ({merges:,} merges) describe; copy the model's tokenizer.json there"
        )
