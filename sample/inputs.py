"""What the flags name, opened: the model, and what it is to write after; and what is to be said of them.

A line of a .jsonl file (or a row of a .json, .csv, .parquet or .arrow) has `prompt`, `infill`, or a conversation
(qwen3llada_jax/writing/requests.py); a line of a .txt is a prompt. All columns are carried through to the answers.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qwen3llada_jax as q
from qwen3llada_jax.cli import nearest
from qwen3llada_jax.commands import as_typed
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import expanded, put_back
from qwen3llada_jax.io.jsonl import BadRowError, NoFormatError, kind_of, shortened
from qwen3llada_jax.io.objects import on_disk
from qwen3llada_jax.io.readers import SUFFIXES, raw_rows, unpacked
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.process import compilation_cache
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.limits import beyond, memory, most_tokens
from qwen3llada_jax.text.conversations import FORMATS, read_conversation, read_messages
from qwen3llada_jax.text.turns import Message
from qwen3llada_jax.writing import completions, requests
from qwen3llada_jax.writing.opening import Folder, open_folder
from qwen3llada_jax.writing.requests import KINDS, Request
from qwen3llada_jax.writing.settings import in_words

from .flags import MeshFlags

_BYTES_OF_A_REQUEST = 200


# ---- the model -----------------------------------------------------------------------------------------------


def open_model(flags: MeshFlags) -> Folder:
    """Open the folder that --model names, on the mesh that the flags ask for, without its weights.

    Raises:
        InputError: no model there, no tokenizer, or a mesh that the devices do not make.
    """
    sizes = {axis: getattr(flags, f"mesh_{axis}") for axis in ("data", "fsdp", "tensor")}
    sizes = {axis: size for axis, size in sizes.items() if size is not None}
    path = named(flags.model)
    compilation_cache.keep_programs()
    return open_folder(path, q.make_mesh(**sizes) if sizes else None)


def named(model: str) -> Path:
    """The folder that --model names.

    Raises:
        InputError: a file, or what looks like a model on the hub.
    """
    path = expanded(model)
    put_back(path)
    if path.is_file():
        raise InputError(f"--model {path}: is a file; give the folder that holds it")
    if not path.exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        raise InputError(
            f"--model {model}: no such folder; if it is a model on the hub, import it first: "
            + as_typed("python -m converters.from_hf")
            + f" --src {model} --dst models/{path.name}"
        )
    return path


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without chat template.

    Raises:
        InputError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; leave out --chat, or add chat_template.jinja")


def say_own_settings(own: Mapping[str, Any]) -> None:
    """Print a line on standard error with the model's own settings that are in force."""
    if own:
        print(f"as the model's own settings say: {in_words(own)} (flags win)", file=sys.stderr)


def say_if_untrained(folder: Folder, settings: SamplerConfig) -> None:
    """Print a line on standard error when an autoregressive model is to write as it was not trained to."""
    complete = settings.for_model(folder.config)
    how = (complete.visibility, complete.block_length)
    if folder.config.is_autoregressive and complete.speculate:
        print(
            f"{folder.path}: is autoregressive and was not trained to draft, so few of its drafts are kept, and few "
            "passes saved; what it writes is its own text. Train it with causal_context and clean_loss first ("
            + as_typed("python -m train.run --mode pretrain")
            + ")",
            file=sys.stderr,
        )
    elif folder.config.is_autoregressive and how != ("block_causal", 1):
        print(
            f"{folder.path}: is autoregressive and was not trained for blocks of {complete.block_length} under "
            f"visibility {complete.visibility}, so what it writes is poor; adapt it first ("
            + as_typed("python -m train.run --mode pretrain")
            + "), or leave out --block-length and --visibility",
            file=sys.stderr,
        )


def say_if_bound_is_loose(folder: Folder, is_chain: bool) -> None:
    """Print a line on standard error when an autoregressive model is read as it was not trained to be.

    Args:
        is_chain: each token is predicted from those before it alone.
    """
    if folder.config.is_autoregressive and not is_chain:
        said = "is autoregressive and was not trained to see or predict like this, so the bound is loose"
        print(f"{folder.path}: {said}", file=sys.stderr)


def say_if_approximate(settings: SamplerConfig, config: ModelConfig) -> None:
    """Print a line on standard error when a cache changes what is written, in any dtype."""
    if not q.is_exact(settings, config):
        visibility = settings.visibility or config.visibility
        print(
            f"cache {settings.cache}: approximate under visibility {visibility}, where keys and values of all tokens "
            "change with every written one; --cache none is exact",
            file=sys.stderr,
        )


def say_if_rounded(model: q.Qwen3LLaDA, settings: SamplerConfig, rows: int = 1) -> None:
    """Print a line on standard error when the dtype is too coarse for batch and cache to leave every token as it is."""
    dtype = str(np.dtype(model.compute_dtype))
    causes = [f"the batch ({rows} texts)"] * (rows > 1) + [f"the cache ({settings.cache})"] * (settings.cache != "none")
    if dtype != "float32" and causes:
        print(
            f"computing in {dtype}: its rounding differs with {' and '.join(causes)}, and may put another token first "
            "where two are near; --dtype float32 keeps them apart",
            file=sys.stderr,
        )


# ---- what is asked -------------------------------------------------------------------------------------------


def check_chat(
    rows: Sequence[Mapping[str, Any]], *, chat: bool, system: str | None = None, enable_thinking: bool | None = None
) -> None:
    """Refuse flags of a chat where there is none.

    Raises:
        InputError: naming them.
    """
    kinds = {kind for row in rows for kind in KINDS if kind in row}
    if kinds == {"infill"} and (chat or system is not None):
        raise InputError("a text with holes is taken as it stands; leave out --chat and --system")
    for flag, value in {"--system": system, "--enable-thinking": enable_thinking}.items():
        if value is not None and not (chat or "messages" in kinds):
            raise InputError(f"{flag} belongs to a chat; add --chat")


def requests_of(
    rows: Sequence[Mapping[str, Any]],
    folder: Folder,
    *,
    chat: bool,
    system: str | None = None,
    enable_thinking: bool | None = None,
    samples: int = 1,
) -> list[Request]:
    """Encode rows as the flags ask, each `samples` times.

    Raises:
        InputError: more texts than memory has place for, a chat without template, or as in `requests.from_rows`.
    """
    if len(rows) * samples * _BYTES_OF_A_REQUEST > memory():
        raise InputError(f"--num-samples: {len(rows) * samples:,} texts are more than memory has place for")
    if chat or any("messages" in row for row in rows):
        check_template(folder.tokenizer)
    thinks, most = folder.thinks(enable_thinking), most_tokens(folder.config)
    return requests.from_rows(
        rows, folder.tokenizer, chat=chat, system=system, enable_thinking=thinks, samples=samples, most=most
    )


def check_fit(asked: Sequence[Request], settings: SamplerConfig, config: ModelConfig, rows: int) -> SamplerConfig:
    """Complete the settings, as `completions.check` does, and say which texts only a stretched model holds.

    Raises:
        InputError: as there.
    """
    complete = completions.check(asked, settings, config, rows)
    lengths = [len(request.ids) for request in asked]
    stretched = beyond(config, lengths, 0 if asked[0].kind == "infill" else settings.gen_length)
    if stretched:
        print(
            f"{stretched:,} of {len(lengths):,} texts go beyond the {config.max_position_embeddings:,} positions the "
            "model was trained on, by its rope_scaling",
            file=sys.stderr,
        )
    return complete


def from_file(path: Path) -> list[dict[str, Any]]:
    """The rows of a file (with one of `KINDS`: conversations as `messages`), or the lines of a .txt, one prompt each.

    Raises:
        InputError: no such file, another kind, an empty one, or a line that asks nothing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file; use .txt (a prompt a line) or {', '.join(SUFFIXES[1:])}")
    if path.suffix.lower() == ".txt":
        rows = [{"prompt": line} for line in _read(path).split("\n") if line.strip()]
    else:
        rows = [_asked(f"{path}: line {raw['line']}", raw) for raw in raw_rows([str(path)])]
    if not rows:
        raise InputError(f"{path}: no prompt in it")
    return rows


def read_history(path: Path) -> list[Message]:
    """The messages of a chat so far, from a .json file.

    Raises:
        InputError: no such file, or not a list of messages.
    """
    text = _read(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({shortened(str(error), 100)})") from error
    try:
        messages = list(read_messages(value))
    except BadRowError as error:
        raise InputError(f"{path}: {error.in_full}") from error
    if not messages:
        raise InputError(f"{path}: has no messages in it")
    return messages


def _asked(where: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A line as one of `KINDS`, with all its columns."""
    try:
        row = {name: value for name, value in unpacked(raw).items() if name not in KINDS or value is not None}
        is_chat = any(row.get(name) is not None for name in ("messages", "conversations"))
        if "infill" not in row and (is_chat or not isinstance(row.get("prompt", []), str)):
            return row | {"messages": list(read_conversation(row, needs_answer=False).messages)}
    except NoFormatError as error:
        if "prompt" in row:
            what = f"{kind_of(row['prompt'])}, not a text"
            raise InputError(f"{where}: prompt is {what} ({shortened(row['prompt'])})") from error
        guess = next((g for key in row if (g := nearest(key, KINDS))), "")
        raise InputError(f"{where} needs one of infill, prompt, {FORMATS.rpartition(', or')[0]}{guess}") from error
    except BadRowError as error:
        raise InputError(f"{where} {error.in_full}") from error
    kinds = [kind for kind in KINDS if kind in row]
    if len(kinds) > 1:
        raise InputError(f"{where} has {' and '.join(kinds)}, which all say what to write; keep one of them")
    if not isinstance(row[kinds[0]], str):
        raise InputError(f"{where}: {kinds[0]} is {kind_of(row[kinds[0]])}, not a text ({shortened(row[kinds[0]])})")
    return row


def _read(path: Path) -> str:
    try:
        return on_disk(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text (byte {error.start} is not UTF-8)") from error
