"""Small models in torch, and the same ones as ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from qwen3llada_jax.checkpoint.model_folder import load
from qwen3llada_jax.model.model import Qwen3LLaDA


def torch_model(seed: int = 0, dtype: torch.dtype = torch.float32, **settings) -> Qwen3ForCausalLM:
    """A bidirectional torch Qwen3 whose every weight, norms and biases included, is away from its initial value."""
    values = dict(
        vocab_size=211,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.05,
    )
    values |= settings
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM._from_config(Qwen3Config(**values, is_causal=False), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.add_(0.2 * torch.randn_like(weight))
    return model.to(dtype)


def save_torch(model: Qwen3ForCausalLM, folder: Path, **options) -> Path:
    """The model as a Hugging Face folder."""
    model.save_pretrained(folder, **options)
    return folder


@contextmanager
def wide_twin(folder: Path, seed: int, vocab_size: int) -> Iterator[tuple[Qwen3ForCausalLM, Qwen3LLaDA]]:
    """One small model twice, in torch and ours, with wide weights, so that confidences are well spread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for two to help, and they wait for each other on a busy machine
    reference = torch_model(
        seed, vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, initializer_range=0.35,
        tie_word_embeddings=False,
    )  # fmt: skip
    yield reference, load(save_torch(reference, folder))
    torch.set_num_threads(threads)


def logits_of(model: Qwen3ForCausalLM, tokens: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Torch's logits, under an additive 4-D mask where `allowed` [B, L, L] is given."""
    mask = None
    if allowed is not None:
        mask = torch.where(torch.tensor(allowed)[:, None], 0.0, torch.finfo(torch.float32).min).to(model.dtype)
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long), attention_mask=mask).logits.float().numpy()
