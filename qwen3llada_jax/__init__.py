"""Qwen3 as a masked diffusion language model, in JAX.

import qwen3llada_jax as q

model = q.load("models/qwen3-0.6b", dtype="float32")   # our folder, a training run, or a Hugging Face folder
logits = model(tokens)                                  # [B, L] ids → [B, L, V] float32, no causal mask
answer = q.generate(model, prompts, q.SamplerConfig(gen_length=128, steps=64))
text = q.write(model, q.load_tokenizer("models/qwen3-0.6b"), "The capital of France is")
q.save(model, "models/mine", tokenizer="models/qwen3-0.6b")
"""

from qwen3llada_jax import commands, process  # noqa: F401 - before all others: it may start the program anew
from qwen3llada_jax.checkpoint.model_folder import load
from qwen3llada_jax.checkpoint.saving import save
from qwen3llada_jax.cross_entropy import cross_entropy
from qwen3llada_jax.diffusion import NoiseConfig, Noised, forward_process, pretrain_loss, sft_loss, shift_right
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.likelihood.api import nelbo
from qwen3llada_jax.likelihood.estimate import Estimate
from qwen3llada_jax.model.config import PRESETS, ModelConfig
from qwen3llada_jax.model.coordinates import Coordinates
from qwen3llada_jax.model.masks import Mask
from qwen3llada_jax.model.model import Qwen3LLaDA, Runtime
from qwen3llada_jax.sampling import rules
from qwen3llada_jax.sampling.api import generate, infill, watch, watch_infill
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.sampling.engine import Engine
from qwen3llada_jax.sampling.loop import compilations
from qwen3llada_jax.sampling.passes.forward import is_exact
from qwen3llada_jax.sampling.slots import rule
from qwen3llada_jax.sampling.state import Canvas, Generation, NotFiniteError
from qwen3llada_jax.sampling.state import to_host as finish
from qwen3llada_jax.sharding import make_mesh
from qwen3llada_jax.text.tokens import load_tokenizer
from qwen3llada_jax.writing.settings import settings_for
from qwen3llada_jax.writing.write import write

__all__ = [
    "PRESETS",
    "Canvas",
    "Coordinates",
    "Engine",
    "Estimate",
    "Generation",
    "InputError",
    "Mask",
    "ModelConfig",
    "NoiseConfig",
    "Noised",
    "NotFiniteError",
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
    "load_tokenizer",
    "make_mesh",
    "nelbo",
    "pretrain_loss",
    "rule",
    "rules",
    "save",
    "settings_for",
    "sft_loss",
    "shift_right",
    "watch",
    "watch_infill",
    "write",
]
__version__ = "0.1.0"
if commands.IS_CHECKOUT:  # the programs are found as parts of this package; here, where worker processes come by, too
    __path__.append(str(commands.PACKAGE.parent))
