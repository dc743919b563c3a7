"""Writing texts with a folder's weights, greedily.

- `full`: everyone sees everyone, no cache; in torch LLaDA's sampler, which is dllm's for MDLM too.
- `cached`: `block_causal` with its exact cache; in torch as in cached_blocks.py, `dllm` being its second form.
- `autoregressive`: a token at a time; in torch transformers' `generate`.

`compile` is `torch` with the model by torch.compile. `text` names the tokens that were written.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers import cached_blocks, samplers
from benchmarks.peers.reading import Reading, timed

SETTINGS = {
    "full": {"visibility": "full", "cache": "none"},
    "cached": {"visibility": "block_causal", "cache": "prefix"},
    "autoregressive": {},
}


def read(
    way: str, *, folder: str, kind: str, mask: int, rows: int, gen_length: int = 128, block_length: int = 32,
    steps: int = 128, times: int = 3, dtype: str = "float32",
) -> Reading:  # fmt: skip
    prompts = np.random.default_rng(0).integers(0, mask, (rows, samplers.PROMPT)).tolist()
    shared: dict[str, Any] = {"gen_length": gen_length, "block_length": block_length, "steps": steps, "mask": mask}
    asked = (folder, kind, prompts, shared, dtype)
    write = ours(*asked) if way == "ours" else in_torch(way, *asked)
    answers: list[Any] = []
    found = timed(lambda: answers.append(write()), 1, times)
    return found | {"text": hashlib.sha256(repr(answers[-1]).encode()).hexdigest()[:12]}


def ours(folder: str, kind: str, prompts: list[list[int]], shared: dict[str, Any], dtype: str) -> Callable[[], Any]:
    import qwen3llada_jax as q

    model = q.load(folder, dtype)
    asked: dict[str, Any] = {k: v for k, v in shared.items() if k != "mask"} | SETTINGS[kind]
    if kind == "autoregressive":
        asked = {"gen_length": shared["gen_length"]}
    config = q.SamplerConfig(**asked, mask_token_id=shared["mask"], stop_at_eos=False)
    return lambda: q.generate(model, prompts, config).answers()


def in_torch(
    way: str, folder: str, kind: str, prompts: list[list[int]], shared: dict[str, Any], dtype: str
) -> Callable[[], Any]:
    import torch

    from benchmarks.peers import torch_models

    model = torch_models.opened(folder, is_causal=kind == "autoregressive", dtype=dtype)
    tokens = torch.tensor(prompts, device=torch_models.device())
    if torch_models.is_compiled(way):
        model.compile()

    def written() -> Any:
        if kind == "full":
            return samplers.unmask_in_torch(model, tokens, **shared, never=[])
        if kind == "cached":
            return cached_blocks.unmask(model, tokens, **shared, copies=way == "dllm")
        many = shared["gen_length"]
        return model.generate(
            tokens, max_new_tokens=many, min_new_tokens=many, do_sample=False, pad_token_id=0,
            attention_mask=torch.ones_like(tokens), suppress_tokens=[shared["mask"]],
        )  # fmt: skip

    @torch.inference_mode()
    def write() -> Any:
        return written()[:, tokens.shape[1] :].tolist()

    return write
