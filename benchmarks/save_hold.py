"""How long a save holds the training loop: written in the background, against waited for, in one run.

    python -m benchmarks.save_hold [--layers 8] [--width 256] [--repeats 8]

Without --width it is the bundled tiny Qwen3 (the demo's model). An update follows each save and gives the saved state
up, as in training. `held` is the time of the call (waited for: until all is on disk); `update after` that of the
update behind it, which must not have to wait for what is still being written.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.model import model
from qwen3llada_jax.model.config import ModelConfig
from train.checkpoint import manager as checkpoints
from train.config.schema import BaseModelConfig, Config, DatasetConfig
from train.optim.optimizer import optimizer

ROOT = Path(__file__).resolve().parents[1]


def measure(config: ModelConfig, repeats: int) -> dict:
    settings = Config(model=BaseModelConfig(base_model_path="."), dataset=DatasetConfig(name="."))
    _, shapes, roles = model.abstract(config)
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), shapes)
    state = {"params": params, "opt": optimizer(settings, 10, roles).init(params), "step": jnp.int32(0)}
    megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6

    @jax.jit
    def rest(x: jax.Array) -> jax.Array:  # stands for the forward and backward pass between two saves
        return jax.lax.fori_loop(0, 40, lambda _, y: jnp.tanh(y @ y), x)

    update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    busy = jnp.ones((512, 512))
    rows: dict[str, list[float]] = {"background": [], "waited for": [], "after background": [], "after nothing": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        checkpoints.open_checkpoints(Path(folder), 2, keep_best=False) as manager,
    ):
        for turn in range(2 * repeats + 2):
            way = "waited for" if turn % 2 else "background"
            state = jax.block_until_ready(update(state))
            begin = time.perf_counter()
            checkpoints.save(manager, state, settings, config, {"fingerprint": ""})
            if way == "waited for":
                manager.wait_until_finished()
            saved = time.perf_counter()
            state = jax.block_until_ready(update(state))
            after = time.perf_counter()
            if turn >= 2:
                rows[way].append(saved - begin)
                rows["after nothing" if turn % 2 else "after background"].append(after - saved)
            while manager.is_saving_in_progress():  # updates go on until the next save
                rest(busy).block_until_ready()
    return {"megabytes": megabytes, **{k: 1e3 * statistics.median(v) for k, v in rows.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out/save_hold.json"))
    flags = parser.parse_args()
    if flags.width:
        config = ModelConfig(32_000, flags.width, 3 * flags.width, flags.layers, flags.width // 64, 1, 64)
    else:
        config = model_folder.read_model_config(ROOT / "examples" / "tiny-qwen3")
    found = measure(config, flags.repeats)
    print(f"state of {found['megabytes']:.1f} MB, medians of {flags.repeats}, ms")
    print(f"{'save':14}{'held':>10}{'update after':>16}")
    print(f"{'background':14}{found['background']:10.1f}{found['after background']:16.1f}")
    print(f"{'waited for':14}{found['waited for']:10.1f}{found['after nothing']:16.1f}")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
