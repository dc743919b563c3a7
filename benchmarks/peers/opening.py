"""Opening a folder of safetensors, until the first forward pass is done: only then has a mapped file been read.

`seconds` is to the end of that pass, `opened` to that of the call; `peak_gb` is what the process held above what it did
before, pages mapped from the file included. Python, libraries and JAX have started before; ours finds its compiled
programs in JAX's cache (JAX_COMPILATION_CACHE_DIR), where a reading that does not count has put them.
"""

import time

import numpy as np

from benchmarks.peers.reading import Reading
from benchmarks.peers.samplers import peak_bytes


def read(way: str, *, folder: str, length: int = 32, dtype: str = "bfloat16") -> Reading:
    tokens = np.random.default_rng(0).integers(0, 500, (1, length))
    if way == "ours":
        import jax
        from flax import nnx

        import qwen3llada_jax as q

        jax.numpy.zeros(1).block_until_ready()
        before, begin = peak_bytes(), time.perf_counter()
        model = q.load(folder, dtype)
        opened = time.perf_counter()
        jax.block_until_ready(nnx.jit(lambda model, tokens: model(tokens))(model, jax.numpy.asarray(tokens)))
    else:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.models.qwen3 import modeling_qwen3  # noqa: F401 - imported before the clock starts
        from transformers.utils import logging

        logging.disable_progress_bar()
        before, begin = peak_bytes(), time.perf_counter()
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        opened = time.perf_counter()
        with torch.inference_mode():
            theirs(torch.from_numpy(tokens), use_cache=False)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "opened": opened - begin, "peak_gb": (peak_bytes() - before) / 1e9}
