"""The files beside an export's weights: tokenizer with its mask token, generation config, and transformers' sampler."""

import json
import re
import sys
from pathlib import Path

from qwen3llada_jax.checkpoint.model_folder import copy_tokenizer
from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.model.config import ModelConfig
from qwen3llada_jax.text import added_token, tokens
from qwen3llada_jax.text.text_ends import read_object, with_text_ends

_GENERATE = Path(__file__).parent / "custom_generate.py"
_KNOWN = ("temperature", "top_k", "top_p", "repetition_penalty")  # settings of ours that are transformers' too

_OF_SDAR = 151_669  # the mask token of every published SDAR


def has_custom_generate(config: ModelConfig) -> bool:
    """Whether transformers can unmask with a model: its own Qwen3, Qwen2 and Llama, and what derives from them.

    An autoregressive one it writes with as it is; others bring a sampler of their own.
    """
    kind = config.model_type
    return not config.is_autoregressive and (kind in ("qwen3", "qwen2", "llama", "sdar") or kind.startswith("a2d-"))


def knows_live_rows(folder: Path, config: ModelConfig) -> bool:
    """Whether a folder's tokenizer says which rows are tokens, the mask token's at the end apart."""
    if config.live_vocab_size is None:
        return True
    if not tokens.has_tokenizer(folder):
        return False
    live = tokens.live_vocab_size(tokens.load_tokenizer(folder))
    return live in (config.live_vocab_size, config.live_vocab_size + (config.mask_token_id == live - 1))


def write_files(source: Path, target: Path, config: ModelConfig) -> None:
    """Write all but weights, config.json and card; of an autoregressive model, the tokenizer's files as they are."""
    copied = copy_tokenizer(source, target)
    if config.is_autoregressive:
        return
    if config.mask_token_id is not None and tokens.has_tokenizer(target):
        _name_mask_token(target, config.mask_token_id, "<|MASK|>" if config.model_type == "sdar" else added_token.MASK)
    if config.model_type == "sdar" and config.mask_token_id != _OF_SDAR:
        _notice(f"servers of SDAR may take {_OF_SDAR} for the mask token whatever config.json says (lmdeploy does)")
    ends = with_text_ends(config, source)
    _write_generation_config(target, ends, is_new="generation_config.json" not in copied)
    if has_custom_generate(config) and config.mask_token_id is not None:
        (target / "custom_generate").mkdir()
        write_text(target / "custom_generate" / "generate.py", custom_generate(ends))


def custom_generate(config: ModelConfig) -> str:
    """The sampler for transformers, of a model."""
    facts = {
        "mask_token_id": config.mask_token_id,
        "live_vocab_size": config.live_vocab_size,
        "eos_token_id": list(config.eos_token_ids),
        "visibility": config.visibility,
        "block_length": config.block_length,
        "prompt_sees_answer": config.prompt_sees_answer,
        "shift": config.shift,
        "block_origin": config.block_origin,
        "causal_context": config.causal_context,
    }
    lines = "".join(f'    "{name}": {json.dumps(v) if isinstance(v, str) else v},\n' for name, v in facts.items())
    template = _GENERATE.read_text(encoding="utf-8")
    return re.sub(r"(?m)^(MODEL: .*?= ).*$", lambda found: f"{found[1]}{{\n{lines}}}", template, count=1)


def _name_mask_token(folder: Path, mask_id: int, content: str) -> None:
    """Have a folder's tokenizer call the token of an id its mask token; one is added where no token has that id."""
    tokenizer = tokens.load_tokenizer(folder)
    if tokenizer.mask_token_id == mask_id:
        return
    text = tokens.token_text(tokenizer, mask_id)
    if text is None:
        if content in tokenizer.get_vocab():
            _notice(f"{content} is another token of the tokenizer, so its files do not name mask token {mask_id}")
            return
        if not (folder / "tokenizer.json").is_file() or mask_id != tokens.live_vocab_size(tokenizer):
            _notice(f"row {mask_id} is not the next of the tokenizer's, so its files cannot name it as the mask token")
            return
        added_token.add_mask_token(folder, mask_id, content)
        tokens.load_tokenizer(folder)  # whether it is there under that id
    elif mask_id not in tokenizer.added_tokens_decoder:
        _notice(f"mask token {mask_id} is a piece of real text, so the tokenizer's files do not name it")
    else:
        added_token.name_mask_token(folder, tokenizer.added_tokens_decoder[mask_id].content)


def _write_generation_config(folder: Path, config: ModelConfig, *, is_new: bool) -> None:
    """Write every id that ends a text, and the settings of the model's own that transformers knows."""
    ends, sampling = list(config.eos_token_ids), dict(config.sampling)
    own = {name: sampling[name] for name in _KNOWN if name in sampling}
    if own.get("temperature"):
        own["do_sample"] = True
    if is_new and not ends and not own:
        return
    path = folder / "generation_config.json"
    said = read_object(path)
    pad = {"pad_token_id": config.pad_token_id} if is_new and config.pad_token_id is not None else {}
    told = said | pad | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}) | own
    if isinstance(said.get("eos_token_id"), list) and set(ends) == set(said["eos_token_id"]):
        told["eos_token_id"] = said["eos_token_id"]
    if told != said:
        write_text(path, json.dumps(told, indent=2) + "\n")


def _notice(text: str) -> None:
    print(f"notice: {text}", file=sys.stderr)
