"""Text in, text out: the sampler between a tokenizer's two ends."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from qwen3llada_jax import sharding
from qwen3llada_jax.errors import InputError, shown
from qwen3llada_jax.io.jsonl import BadRowError
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.sampling.api import generate
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.text import mask_token, tokens
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.text.conversations import read_messages
from qwen3llada_jax.writing import completions, requests

Turns = Sequence[Mapping[str, str]]  # [{"role": "user", "content": text}, …]


def write(
    model: Qwen3LLaDA,
    tokenizer: Any,
    prompts: str | Sequence[str | Turns],
    config: SamplerConfig = SamplerConfig(),
    *,
    key: PRNGKeyArray | int | None = None,
    chat: bool = False,
) -> Any:
    """Go on from texts, or answer chats: as `generate`, with the tokenizer before and behind it.

    An answer ends before the first token that ends a text: an EOS of model or tokenizer, or `<|im_end|>`, unless
    `config.eos_token_ids` names others. Rows without token are never written.

    Args:
        prompts: a text or a chat, or several; a chat is a list of messages {"role", "content"}.
        key: as in `generate`.
        chat: put texts through the tokenizer's chat template, as a user's message; chats always go. Whether an answer
            begins with its reasoning is as the model was taught.

    Returns:
        The answer to one text or chat, or the list of answers to several.

    Raises:
        InputError: prompts that are none, a chat whose last message the model has not to answer, no chat template or
            one that refuses them, or settings that do not fit.
    """
    if isinstance(prompts, str):
        return write(model, tokenizer, [prompts], config, key=key, chat=chat)[0]
    if isinstance(tokenizer, str | Path):
        raise InputError(f"tokenizer must be a tokenizer, not {shown(tokenizer)}: q.load_tokenizer({tokenizer!r})")
    if isinstance(prompts, Sequence) and prompts and isinstance(prompts[0], Mapping):  # one chat
        one: Any = prompts
        return write(model, tokenizer, [one], config, key=key, chat=chat)[0]
    if not isinstance(prompts, Sequence) or not prompts:
        raise InputError(f"prompts must be a text, or a list of texts or chats, not {shown(prompts)}")
    rows = _encode(tokenizer, prompts, chat, model.config.enable_thinking)
    rows += rows[-1:] * (-len(rows) % sharding.ways("batch"))  # rows fill the mesh
    if config.eos_token_ids is None:
        config = dataclasses.replace(config, eos_token_ids=tokens.stop_ids(model.config, tokenizer))
    result = generate(_told_of(model, tokenizer), rows, config, key=key)
    stops = config.eos_token_ids or ()
    return [completions.answer_of(tokenizer, answer, stops) for answer in result.answers()[: len(prompts)]]


def _encode(tokenizer: Any, prompts: Sequence[str | Turns], chat: bool, enable_thinking: bool) -> list[list[int]]:
    is_text = [isinstance(prompt, str) and not chat for prompt in prompts]
    writer = None if all(is_text) else ChatWriter(tokenizer, enable_thinking=enable_thinking)
    rows = []
    for prompt, is_plain in zip(prompts, is_text, strict=True):
        turns: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            if writer is None or is_plain:
                rows.append(requests.encode(tokenizer, str(prompt)))
            else:
                messages = read_messages(list(turns) if isinstance(turns, tuple) else turns)
                rows.append(requests.encode_chat(writer, messages))
        except (BadRowError, InputError) as error:
            raise InputError(f"prompts: {error.in_full if isinstance(error, BadRowError) else error}") from error
    return rows


def _told_of(model: Qwen3LLaDA, tokenizer: Any) -> Qwen3LLaDA:
    """The same model, knowing what a plain Qwen3 folder does not say: which rows are tokens, and the mask token."""
    tokens.check_vocabulary(tokenizer, model.config, "the tokenizer")
    known: dict[str, Any] = {}
    if model.config.live_vocab_size is None:
        known["live_vocab_size"] = tokens.live_vocab_size(tokenizer)
    if model.config.mask_token_id is None:
        own = mask_token.own_mask_token(tokenizer, "mask_token_id")
        if own is None and model.config.is_autoregressive:  # it never sees one
            own, _ = mask_token.unused(tokenizer, model.config.vocab_size, "mask_token_id")
        known["mask_token_id"] = own
    if known:
        model = jax.tree.map(lambda x: x, model)  # a shallow copy
        model.config = dataclasses.replace(model.config, **known)
    return model
