"""What benchmarks.sampling and run_all run in processes of their own: our sampler, PyTorch's, and what else is read of
ours."""

import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import torch_models
from benchmarks.peers.cached_blocks import block_bias

PROMPT = 64


@functools.cache
def our_model(folder: Path, dtype: str) -> Any:
    import qwen3llada_jax as q

    return q.load(folder, dtype)


def write(folder: Path, prompts: list[list[int]], settings: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """Our side: {"answers", "seconds", "nfe" (of one row), "compiled" (programs)}."""
    import qwen3llada_jax as q

    model, config = our_model(folder, dtype), q.SamplerConfig(**settings)
    before, begin = q.compilations(), time.perf_counter()
    result = q.generate(model, prompts, config)
    answers = result.answers()
    seconds, compiled = time.perf_counter() - begin, q.compilations() - before
    return {"answers": answers, "seconds": seconds, "nfe": float(result.nfe.mean()), "compiled": compiled}


@functools.lru_cache(maxsize=1)
def torch_model(folder: Path, *, is_causal: bool) -> Any:
    import torch

    model = torch_models.opened(folder, is_causal=is_causal)
    torch.set_num_threads(best_threads(model))
    return model


def best_threads(model: Any) -> int:
    """All cores, or one where the machine is busy: torch's threads then only wait for each other."""
    import torch

    seconds = {}
    for threads in (os.cpu_count() or 1, 1):
        torch.set_num_threads(threads)
        times = []
        with torch.inference_mode():
            for _ in range(3):
                begin = time.perf_counter()
                model(torch.ones(1, 2 * PROMPT, dtype=torch.long), use_cache=False)
                times.append(time.perf_counter() - begin)
        seconds[threads] = min(times[1:])
    return min(seconds, key=seconds.__getitem__)


def write_in_torch(folder: Path, prompts: list[list[int]], settings: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's side, as `write`; `autoregressive` among the settings: transformers' `generate`."""
    import torch

    settings = dict(settings)
    is_causal = settings.pop("autoregressive", False)
    model, tokens = torch_model(folder, is_causal=is_causal), torch.tensor(prompts)
    begin = time.perf_counter()
    with torch.inference_mode():
        if is_causal:
            many = settings["gen_length"]
            written = model.generate(
                tokens, max_new_tokens=many, min_new_tokens=many, do_sample=False, pad_token_id=0,
                attention_mask=torch.ones_like(tokens),
            )  # fmt: skip
            nfe = many
        else:
            written = unmask_in_torch(model, tokens, **settings)
            nfe = settings["steps"]
    seconds = time.perf_counter() - begin
    answers = written[:, tokens.shape[1] :].tolist()
    return {"answers": answers, "seconds": seconds, "nfe": float(nfe), "threads": torch.get_num_threads()}


def unmask_in_torch(
    model: Any,
    prompts: Any,
    *,
    gen_length: int,
    block_length: int,
    steps: int,
    mask: int,
    never: Sequence[int],
    visibility: str = "full",
) -> Any:
    """LLaDA's algorithm 5, greedy: the model on the whole text, all logits, the surest of the block by topk."""
    import torch

    B, P = prompts.shape
    text = torch.cat([prompts, prompts.new_full((B, gen_length), mask)], dim=1)
    bias = None
    if visibility == "block_causal":
        bias = block_bias(P, P + gen_length, block_length, model.dtype, prompts.device)
    forbidden = torch.tensor([mask, *never], device=prompts.device)
    many = block_length * steps // gen_length
    per_step = block_length // many
    for end in range(P + block_length, P + gen_length + 1, block_length):
        for _ in range(many):
            logits = model(text, attention_mask=bias, use_cache=False).logits.float()
            logits[..., forbidden] = -torch.inf
            proposal = logits.argmax(-1)
            sure = logits.softmax(-1).gather(-1, proposal[..., None])[..., 0]
            sure = torch.where(text == mask, sure, -torch.inf)
            sure[:, end:] = -torch.inf
            chosen = sure.topk(per_step, dim=-1).indices
            text.scatter_(1, chosen, proposal.gather(1, chosen))
    return text


def other_length(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Seconds to the first written tokens of a prompt whose length is new, and programs compiled for it."""
    import jax

    import qwen3llada_jax as q

    model, config = our_model(folder, "float32"), q.SamplerConfig(**settings)
    for prompt in ([1] * PROMPT, [1] * (PROMPT - 5)):
        before, begin = q.compilations(), time.perf_counter()
        canvases = q.watch(model, [prompt], config)
        next(canvases)
        jax.block_until_ready(next(canvases))
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "compilations": q.compilations() - before}


def memory(folder: Path, settings: dict[str, Any], dtype: str) -> dict[str, float]:
    """Bytes: what must be there, and the peak of a fresh process that loads the model and writes.

    `interpreter` is that process's peak before: Python with the library imported and JAX started.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import qwen3llada_jax  # noqa: F401

    jnp.zeros(1).block_until_ready()
    interpreter = peak_bytes()
    write(folder, [[1] * PROMPT], settings, dtype)
    peak = peak_bytes()
    model = our_model(folder, dtype)
    config, length = model.config, PROMPT + settings["gen_length"]
    parameters = sum(x.nbytes for x in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    heads = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    caches = 0 if settings.get("cache") == "none" else 2 * jnp.dtype(model.compute_dtype).itemsize * length * heads
    logits = 4 * settings["block_length"] * config.vocab_size
    return {
        "parameters": parameters, "caches": caches, "logits": logits, "interpreter": interpreter, "peak": peak
    }  # fmt: skip


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
