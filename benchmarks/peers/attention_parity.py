"""An implementation of attention in bfloat16 (the way) beside plain matmuls in float32, under every kind of mask.

Errors are the largest, of results and of gradients (of q, k and v, for a random cotangent), each over the root mean
square of what it should be; tokens of padding do not count.
"""

from typing import Any

import numpy as np

from benchmarks.peers.reading import Reading


def masks(B: int, L: int) -> dict[str, Any]:
    """Every kind of rule, documents and padding, prompts of each row's own, coordinates, and a plain array."""
    import jax.numpy as jnp

    import qwen3llada_jax as q

    at = np.arange(L)[None]
    real: Any = at < np.linspace(L, L // 2, B).astype(int)[:, None]
    documents: Any = (at >= np.linspace(L // 3, L // 2, B).astype(int)[:, None]).astype(np.int32)
    prompts = jnp.asarray(np.linspace(3, L // 4, B).astype(np.int32))
    block = L // 8
    return {
        "none": None,
        "padding": q.Mask(is_real=real),
        "documents": q.Mask(segment_ids=documents, is_real=real),
        "block_bias": q.Mask("block_bias", block, prompt_length=prompts),
        "block_bias, prompt sees answer": q.Mask("block_bias", block, prompt_sees_answer=True, prompt_length=prompts),
        "block_causal": q.Mask("block_causal", block, prompt_length=prompts, is_real=real),
        "block_diffusion": q.Mask("block_diffusion", block // 2),
        "from left to right": q.Mask("block_causal", 1),
        "coordinates": q.Coordinates(segment=documents, block=at // np.linspace(block, L // 2, B).astype(int)[:, None]),
        "an array": np.tril(np.ones((1, L, L), bool)),
    }


def read(way: str, *, rows: int, length: int, heads: int, key_heads: int, head_dim: int) -> Reading:
    import jax
    import jax.numpy as jnp

    import qwen3llada_jax as q
    from qwen3llada_jax.model.attention import attention

    draw = np.random.default_rng(0)
    shapes = [(rows, length, n, head_dim) for n in (heads, key_heads, key_heads, heads)]
    *inputs, cotangent = (jnp.asarray(draw.standard_normal(s, np.float32), jnp.bfloat16) for s in shapes)

    def result_and_gradients(mask: Any, real: Any, implementation: str, dtype: str) -> list[np.ndarray]:
        @jax.jit
        def run(qkv: Any, cotangent: Any) -> Any:
            out, pull = jax.vjp(lambda qkv: attention(qkv[0], qkv[1], qkv[2], mask, implementation), qkv)
            return out, *pull(cotangent.astype(out.dtype))[0]

        found = run(tuple(x.astype(dtype) for x in inputs), cotangent * real)
        return [np.asarray(x, np.float32) * np.asarray(real, np.float32) for x in found]

    errors = {}
    for name, mask in masks(rows, length).items():
        real = getattr(mask, "is_real", None) if isinstance(mask, q.Mask) else None
        real = jnp.ones((1, length, 1, 1)) if real is None else jnp.asarray(real)[..., None, None]
        got = result_and_gradients(mask, real, way, "bfloat16")
        with jax.default_matmul_precision("highest"):
            expected = result_and_gradients(mask, real, "xla", "float32")
        off = [float(np.abs(a - b).max() / np.sqrt((b**2).mean())) for a, b in zip(got, expected, strict=True)]
        errors[name] = {"result": off[0], "gradients": max(off[1:])}
    return {"errors": errors}
