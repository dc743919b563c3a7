"""Opening a folder of safetensors, until the first pass of writing is done: only then has a mapped file been read.

That pass is over a prompt of 32 tokens and a block of 32 masks, as LLaDA's sampler begins. `seconds` is to its end,
`opened` to that of the call that opens; `peak_gb` is what the process held above what it did before, pages mapped from
the file included. Python, libraries and JAX have started before; ours finds its compiled programs in JAX's cache
(JAX_COMPILATION_CACHE_DIR), where a reading that does not count has put them.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.reading import Reading
from benchmarks.peers.samplers import peak_bytes

LENGTH = 32


def read(way: str, *, folder: str, mask: int, dtype: str = "bfloat16") -> Reading:
    prompt = np.random.default_rng(0).integers(0, mask, LENGTH).tolist()
    opens, first_pass = (ours if way == "ours" else in_torch)(folder, prompt, mask, dtype)
    before, begin = peak_bytes(), time.perf_counter()
    model = opens()
    opened = time.perf_counter()
    first_pass(model)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "opened": opened - begin, "peak_gb": (peak_bytes() - before) / 1e9}


def ours(folder: str, prompt: list[int], mask: int, dtype: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    import jax

    import qwen3llada_jax as q

    config = q.SamplerConfig(
        gen_length=LENGTH, block_length=LENGTH, mask_token_id=mask, visibility="full", cache="none", stop_at_eos=False
    )
    jax.numpy.zeros(1).block_until_ready()

    def first_pass(model: Any) -> None:
        canvases = q.watch(model, [prompt], config)
        next(canvases)  # blank
        jax.block_until_ready(next(canvases))

    return lambda: q.load(folder, dtype), first_pass


def in_torch(folder: str, prompt: list[int], mask: int, dtype: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    import torch
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401 - imported before the clock starts

    from benchmarks.peers import torch_models

    @torch.inference_mode()
    def first_pass(model: Any) -> None:
        model(torch.tensor([prompt + [mask] * LENGTH]), use_cache=False).logits.argmax(-1)

    return lambda: torch_models.opened(folder, dtype=dtype), first_pass
