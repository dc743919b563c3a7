"""Models named the hub's way: a folder, or an id like `Qwen/Qwen3-0.6B` that is downloaded."""

import re
from pathlib import Path

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io import buckets
from qwen3llada_jax.io.atomic_files import expanded, put_back
from qwen3llada_jax.io.safetensors_folder import GGUF


def model_folder(source: str) -> Path:
    """The folder itself, on a disk or in a bucket, or the local copy of a hub model (weights, config, tokenizer only).

    Raises:
        InputError: neither a folder nor a model the hub gives out.
    """
    path = expanded(source)
    put_back(path)
    if path.is_dir():
        return path
    if path.exists():
        is_gguf = path.suffix == ".gguf"
        raise InputError(f"{source}: {GGUF if is_gguf else 'is a file; give the folder that holds it'}")
    if buckets.is_bucket(path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith((".", "/")):
        raise InputError(f"{source}: no such folder")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja"])
        )
    except (OSError, ValueError) as error:  # every hub and network error is one of these
        raise InputError(
            f"{source}: no such folder, and the hub did not give a model of that name "
            f"({type(error).__name__}); check the spelling, the network and your access"
        ) from error
