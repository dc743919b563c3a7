"""Every optimizer on the demo's adaptation: loss, bytes of state and time, against AdamW, in one run.

    python -m benchmarks.optimizers [--steps 100] [--model FOLDER]

All see the same rows under the same noise. `train` is the mean loss of the last tenth of the updates, `held-out`
the loss on the validation text; bytes are those of the state's own arrays, whatever else a step needs on top.
`step` and `update` are median times of a whole training step and of the optimizer's part of it alone.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3llada_jax import sharding
from qwen3llada_jax.model import model
from train.checkpoint.base_model import find_base_model
from train.checkpoint.initial_state import first_state
from train.config.parse import read_config
from train.data.batches import load_eval_rows, training_batches
from train.evaluate import evaluate
from train.objective import objective_of
from train.optim.optimizer import optimizer
from train.step import make_eval_step, make_train_step, state_shardings, to_devices

ROOT = Path(__file__).parent.parent
RATES = {"adamw": 1e-3, "adamw8bit": 1e-3, "lion": 2e-4, "lion8bit": 2e-4, "adafactor": 1e-3, "muon": 1e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--model", default=str(ROOT / "examples" / "tiny-qwen3"))
    parser.add_argument("--only", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--out", type=Path, default=Path("out/optimizers.json"))
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'':10}{'lr':>8}{'train':>9}{'held-out':>10}{'state, MB':>11}{'of adamw':>10}{'step, ms':>10}{'update':>8}")
    for name in dict.fromkeys(["adamw", *flags.only]):
        row = measure(name, flags.model, flags.steps)
        rows.append(row | {"of_adamw": row["state_bytes"] / (rows or [row])[0]["state_bytes"]})
        print(
            f"{name:10}{row['lr']:8.0e}{row['train']:9.4f}{row['eval_rows']:10.4f}{row['state_bytes'] / 1e6:11.2f}"
            f"{rows[-1]['of_adamw']:10.1%}{row['step_ms']:10.0f}{row['update_ms']:8.1f}",
            flush=True,
        )
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps({"steps": flags.steps, "rows": rows}, indent=1) + "\n")


def measure(name: str, folder: str, steps: int) -> dict[str, Any]:
    given = {
        "optim.name": name, "training.lr": RATES[name], "training.max_steps": steps, "model.mask_token_id": "auto",
        "model.qwen3llada_model_path": folder, "project.output_dir": "/nonexistent",
        "dataset.name": ROOT / "examples/data/shakespeare/train.txt",
        "evaluation.eval_name": ROOT / "examples/data/shakespeare/valid.txt",
    }  # fmt: skip
    config = read_config(ROOT / "configs" / "demo.yaml", [(k, str(v)) for k, v in given.items()])
    start = find_base_model(config)
    live, mask_id = start.config.live_vocab_size, start.config.mask_token_id
    assert live is not None
    assert mask_id is not None
    batches = training_batches(config, start.tokenizer, start.config.vocab_size)
    eval_rows = load_eval_rows(config, start.tokenizer, start.config.vocab_size)
    graphdef, _, roles = model.abstract(start.config)
    mesh, tx = sharding.make_mesh(), optimizer(config, steps, roles)
    shapes, shardings = state_shardings(start.config, tx, mesh)
    losses, times = [], []
    with jax.set_mesh(mesh):
        output, made_of = Path(config.project.output_dir), batches.fingerprint
        state = first_state(config, output, None, start, made_of, tx, shapes, shardings, mesh).state
        key = jax.random.key(config.project.seed)
        step_fn = make_train_step(graphdef, config, tx, shardings, key, objective_of(config, mask_id, live))
        for step in range(steps):
            batch = to_devices(batches.take(step), mesh)
            begin = time.perf_counter()
            state, metrics = step_fn(state, batch)
            losses.append(float(metrics["loss"]))
            times.append(time.perf_counter() - begin)
        eval_fn = make_eval_step(graphdef, objective_of(config, mask_id, live, for_evaluation=True))
        held = evaluate(eval_fn, state["params"], eval_rows, start.tokenizer.eos_token_id, config, mesh)
        update_times = time_of_update(tx, state)
    return {
        "optimizer": name,
        "lr": RATES[name],
        "first": losses[0],
        "train": statistics.mean(losses[-max(1, steps // 10) :]),
        "eval_rows": held["eval_loss"],
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state["opt"])),
        "step_ms": 1e3 * statistics.median(times),
        "update_ms": 1e3 * update_times,
    }


def time_of_update(tx: Any, state: dict[str, Any], repeats: int = 9) -> float:
    """Median seconds of one update of gradients as large as the parameters."""
    update = jax.jit(tx.update, donate_argnums=1)
    opt, times = state["opt"], []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        updates, opt = jax.block_until_ready(update(state["params"], opt, state["params"]))
        times.append(time.perf_counter() - begin)
        del updates
    return float(np.median(times[1:]))


if __name__ == "__main__":
    main()
