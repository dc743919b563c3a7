"""Qwen3 as a masked diffusion language model, in JAX.

import qwen3llada_jax as q

model = q.load("models/qwen3-0.6b", dtype="float32")   # our folder, a training run, or a Hugging Face folder
logits = model(tokens)                                  # [B, L] ids → [B, L, V] float32, bidirectional
answer = q.generate(model, prompts, q.SamplerConfig(gen_length=128, steps=64))
"""

from qwen3llada_jax.canvas import Canvas, Generation, finish
from qwen3llada_jax.checkpoint import load
from qwen3llada_jax.config import PRESETS, ModelConfig
from qwen3llada_jax.cross_entropy import cross_entropy
from qwen3llada_jax.diffusion import NoiseConfig, Noised, forward_process, pretrain_loss, sft_loss
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.masks import Mask
from qwen3llada_jax.model import Qwen3LLaDA, Runtime
from qwen3llada_jax.sampler_config import SamplerConfig, is_exact
from qwen3llada_jax.sampling import compilations, generate, infill, watch, watch_infill
from qwen3llada_jax.sharding import make_mesh

__all__ = [
    "PRESETS",
    "Canvas",
    "Generation",
    "InputError",
    "Mask",
    "ModelConfig",
    "NoiseConfig",
    "Noised",
    "Qwen3LLaDA",
    "Runtime",
    "SamplerConfig",
    "compilations",
    "cross_entropy",
    "finish",
    "forward_process",
    "generate",
    "infill",
    "is_exact",
    "load",
    "make_mesh",
    "pretrain_loss",
    "sft_loss",
    "watch",
    "watch_infill",
]
__version__ = "0.1.0"
