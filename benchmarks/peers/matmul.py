"""What the machine can do at most: one plain product of two square matrices, by JAX (`ours`) and by torch."""

import numpy as np

from benchmarks.peers.reading import Reading, timed


def read(way: str, *, size: int, times: int = 15, dtype: str = "float32") -> Reading:
    drawn = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    if way == "ours":
        import jax

        a, b = jax.numpy.asarray(drawn, dtype)
        product = jax.jit(lambda a, b: a @ b)
        return timed(lambda: product(a, b).block_until_ready(), 3, times)
    import torch

    from benchmarks.peers import torch_models

    c, d = torch.from_numpy(drawn).to(getattr(torch, dtype)).to(torch_models.device())

    def run() -> None:
        c @ d
        torch_models.wait()

    return timed(run, 3, times)
