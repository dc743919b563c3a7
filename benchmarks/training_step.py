"""A whole training step on the CPU beside PyTorch's: time, system time, page faults and memory.

    python -m benchmarks.training_step [--shapes small,large] [--rounds 7]

Masked diffusion of a Qwen3 in float32 with AdamW, clipping and LLaDA's loss. `torch` is transformers' model run
eagerly as LLaDA's and dllm's trainers do: sdpa attention, all logits, cross-entropy of masked ones over their level.
Ours has huge pages, as the programs give them to themselves. Each reading is a process of its own: a few steps to warm
up, then --steps that count; ours and torch alternate.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from qwen3llada_jax.process import huge_pages

WAYS = ("ours", "torch")
WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class Shape:
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    rows: int
    length: int

    @property
    def model(self) -> dict[str, Any]:
        """The arguments of Qwen3's configuration."""
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": self.hidden_size // 8}
        return heads | {
            "hidden_size": self.hidden_size, "intermediate_size": 3 * self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers, "vocab_size": self.vocab_size, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True, "max_position_embeddings": 4096,
        }  # fmt: skip


SHAPES = {"small": Shape(256, 6, 4096, 16, 256), "large": Shape(512, 12, 32000, 4, 512)}


def ours(shape: Shape) -> Callable[[np.ndarray], float]:
    """The step that train.run runs."""
    import jax
    from flax import nnx

    import qwen3llada_jax as q
    from qwen3llada_jax import sharding
    from qwen3llada_jax.model import model
    from train.config.parse import read_config
    from train.data.loader import Batch
    from train.objective import objective_of
    from train.optim.optimizer import optimizer
    from train.step import make_train_step, state_shardings, to_devices

    settings = {
        "training.mode": "pretrain", "training.batch_size": shape.rows, "training.micro_batch_size": shape.rows,
        "training.max_length": shape.length, "training.lr": 1e-4, "training.max_steps": 100, "training.bf16": "false",
        "training.remat": "none", "model.base_model_path": "drawn", "project.output_dir": "nowhere",
        "dataset.name": "drawn",
    }  # fmt: skip
    config = read_config(None, [(name, str(value)) for name, value in settings.items()])
    network = q.ModelConfig(**shape.model, rope_theta=1e6, mask_token_id=shape.vocab_size - 1)
    runtime = q.Runtime(config.dtype, config.training.attention, config.training.remat)
    graphdef, _, roles = model.abstract(network, runtime=runtime)
    mesh, tx = sharding.make_mesh(), optimizer(config, 100, roles)
    _, shardings = state_shardings(network, tx, mesh)

    def first() -> dict[str, Any]:
        params = nnx.to_pure_dict(nnx.state(q.Qwen3LLaDA(network, rngs=nnx.Rngs(0)), nnx.Param))
        return {"params": params, "opt": tx.init(params), "step": jax.numpy.int32(0)}

    with jax.set_mesh(mesh):
        held = [jax.jit(first, out_shardings=shardings)()]
        objective = objective_of(config, shape.vocab_size - 1, shape.vocab_size - 1)
        step = make_train_step(graphdef, config, tx, shardings, jax.random.key(0), objective)

    def run(tokens: np.ndarray) -> float:
        with jax.set_mesh(mesh):
            whole = np.full(len(tokens), shape.length, np.int32)
            batch = Batch(tokens, 0 * whole, whole, np.arange(len(tokens)), whole)
            held[0], metrics = step(held[0], to_devices(batch, mesh))
            return float(metrics["loss"])

    return run


def torch(shape: Shape) -> Callable[[np.ndarray], float]:
    """The usual loop."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen3Config(**shape.model, rope_parameters=rope)
    network = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").train()
    network.config.use_cache = False
    for layer in network.model.layers:
        layer.self_attn.is_causal = False
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    everyone = torch.zeros(1, 1, shape.length, shape.length)

    def run(rows: np.ndarray) -> float:
        tokens = torch.from_numpy(rows).long()
        level = (1 - 1e-3) * torch.rand(len(tokens), 1) + 1e-3
        masked = torch.rand(tokens.shape) < level
        noisy = torch.where(masked, shape.vocab_size - 1, tokens)
        logits = network(input_ids=noisy, attention_mask=everyone).logits
        ce = torch.nn.functional.cross_entropy(logits[masked], tokens[masked], reduction="none")
        loss = (ce / level.expand_as(masked)[masked]).sum() / tokens.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def reading(way: str, shape: Shape, steps: int) -> dict[str, float]:
    """What one step takes, the median of `steps`; CPU time and page faults are their mean."""
    run, draw = {"ours": ours, "torch": torch}[way](shape), np.random.default_rng(0)

    def tokens() -> np.ndarray:
        return draw.integers(0, shape.vocab_size - 1, (shape.rows, shape.length), dtype=np.int32)

    for _ in range(WARM_UP):
        run(tokens())
    before, seconds = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(steps):
        rows, begin = tokens(), time.perf_counter()
        run(rows)
        seconds.append(time.perf_counter() - begin)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": statistics.median(seconds),
        "user": (after.ru_utime - before.ru_utime) / steps,
        "system": (after.ru_stime - before.ru_stime) / steps,
        "faults": (after.ru_minflt - before.ru_minflt) / steps,
        "peak_gb": after.ru_maxrss / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="small,large", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SHAPE"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(reading(flags.one[0], SHAPES[flags.one[1]], flags.steps)))
        return
    command = [sys.executable, "-m", "benchmarks.training_step", "--steps", str(flags.steps), "--one"]
    for name in flags.shapes.split(","):
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(flags.rounds):
            for way in WAYS:
                more = huge_pages.environment(os.environ) if way == "ours" and huge_pages.is_had() else {}
                done = subprocess.run(
                    [*command, way, name], check=True, stdout=subprocess.PIPE, text=True, env=os.environ | more
                )
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        for way in WAYS:
            median = {key: statistics.median(one[key] for one in found[way]) for key in found[way][0]}
            print(name, way, "  ".join(f"{key} {value:.3g}" for key, value in median.items()), flush=True)
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(*found.values(), strict=True)]
        print(f"{name}: torch / ours {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
