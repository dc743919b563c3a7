"""A whole training step: masked diffusion of a Qwen3 by AdamW with clipping and LLaDA's loss, the weights in float32.

- `ours`: the step that train.run runs.
- `torch`: transformers' model eagerly, sdpa, as LLaDA trains: the cross-entropy of masked tokens over their level.
- `dllm`: the same in the manner of dllm's trainer: the cross-entropy of all tokens, weighted, and the fused AdamW that
  transformers' Trainer takes.
- `compile`: as `dllm`, model and loss together by torch.compile.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.reading import Reading, timed
from benchmarks.peers.shapes import Shape

Run = Callable[[np.ndarray], float]


def read(
    way: str, *, shape: Shape, rows: int, length: int, times: int = 6, warm_up: int = 3, dtype: str = "float32"
) -> Reading:
    asked = (shape, rows, length, dtype)
    run = ours(*asked) if way == "ours" else in_torch(way, *asked)
    draw = np.random.default_rng(0)

    def step() -> None:
        run(draw.integers(0, shape["vocab_size"] - 1, (rows, length), dtype=np.int32))

    return timed(step, warm_up, times)


def ours(shape: Shape, rows: int, length: int, dtype: str) -> Run:
    import jax
    from flax import nnx

    import qwen3llada_jax as q
    from qwen3llada_jax import sharding
    from qwen3llada_jax.model import model
    from train.config.parse import read_config
    from train.data.loader import Batch
    from train.objective import objective_of
    from train.optim.optimizer import optimizer
    from train.step import make_train_step, runtime_of, state_shardings, to_devices

    settings = {
        "training.mode": "pretrain", "training.batch_size": rows, "training.micro_batch_size": rows,
        "training.max_length": length, "training.lr": 1e-4, "training.max_steps": 100,
        "training.bf16": dtype == "bfloat16", "training.remat": "none", "model.base_model_path": "drawn",
        "project.output_dir": "nowhere", "dataset.name": "drawn",
    }  # fmt: skip
    config = read_config(None, [(name, str(value).lower()) for name, value in settings.items()])
    mask = shape["vocab_size"] - 1
    network = q.ModelConfig(**shape, rope_theta=1e6, mask_token_id=mask)
    graphdef, _, roles = model.abstract(network, runtime=runtime_of(config))
    mesh, tx = sharding.make_mesh(), optimizer(config, 100, roles)
    _, shardings = state_shardings(network, tx, mesh)

    def first() -> dict[str, Any]:
        params = nnx.to_pure_dict(nnx.state(q.Qwen3LLaDA(network, rngs=nnx.Rngs(0)), nnx.Param))
        return {"params": params, "opt": tx.init(params), "step": jax.numpy.int32(0)}

    with jax.set_mesh(mesh):
        held = [jax.jit(first, out_shardings=shardings)()]
        step = make_train_step(graphdef, config, tx, shardings, jax.random.key(0), objective_of(config, mask, mask))

    def run(tokens: np.ndarray) -> float:
        with jax.set_mesh(mesh):
            whole = np.full(len(tokens), length, np.int32)
            batch = Batch(tokens, 0 * whole, whole, np.arange(len(tokens)), whole)
            held[0], metrics = step(held[0], to_devices(batch, mesh))
            return float(metrics["loss"])

    return run


def in_torch(way: str, shape: Shape, rows: int, length: int, dtype: str) -> Run:
    import torch

    from benchmarks.peers import torch_models

    device, mask = torch_models.device(), shape["vocab_size"] - 1
    network = torch_models.drawn(shape)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=way != "torch")

    def loss_of(noisy: Any, tokens: Any, masked: Any, level: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = network(input_ids=noisy).logits
        if way == "torch":
            ce = torch.nn.functional.cross_entropy(logits[masked].float(), tokens[masked], reduction="none")
            return (ce / level.expand_as(masked)[masked]).sum() / tokens.numel()
        ce = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
        return (ce * masked / level).sum() / tokens.numel()

    loss_of_step = torch.compile(loss_of) if torch_models.is_compiled(way) else loss_of

    def run(drawn: np.ndarray) -> float:
        tokens = torch.from_numpy(drawn).long().to(device)
        level = (1 - 1e-3) * torch.rand(rows, 1, device=device) + 1e-3
        masked = torch.rand(tokens.shape, device=device) < level
        loss = loss_of_step(torch.where(masked, mask, tokens), tokens, masked, level)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run
