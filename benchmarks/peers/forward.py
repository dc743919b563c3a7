"""A forward pass of a folder's weights, all logits: ours, and transformers' with sdpa, eagerly or by torch.compile.

Ours is compiled, with its layers laid out as a sampler's are.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.peers.reading import Reading, timed


def read(way: str, *, folder: str, rows: int, length: int, times: int = 5, dtype: str = "float32") -> Reading:
    run = ours(folder, dtype) if way == "ours" else in_torch(way, folder, dtype)
    tokens = np.random.default_rng(0).integers(0, 500, (rows, length))
    return timed(lambda: run(tokens), 2, times)


def ours(folder: str, dtype: str) -> Callable[[np.ndarray], object]:
    import jax
    from flax import nnx

    import qwen3llada_jax as q
    from qwen3llada_jax.model.layers import unstack_layers

    model = q.load(folder, dtype)
    model.layers = unstack_layers(model.layers)
    graphdef, params = nnx.split(model)
    # nnx.jit would give the weights back as well, which is a copy of them.
    forward = jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens))
    return lambda tokens: jax.block_until_ready(forward(params, jax.numpy.asarray(tokens)))


def in_torch(way: str, folder: str, dtype: str) -> Callable[[np.ndarray], object]:
    import torch

    from benchmarks.peers import torch_models

    model = torch_models.opened(folder, dtype=dtype)
    if torch_models.is_compiled(way):
        model.compile()

    @torch.inference_mode()
    def run(tokens: np.ndarray) -> object:
        logits = model(torch.from_numpy(tokens).to(torch_models.device()), use_cache=False).logits
        torch_models.wait()
        return logits

    return run
