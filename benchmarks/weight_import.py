"""Opening a checkpoint of Qwen3-0.6B's shape: seconds and memory, against transformers, in one run.

    python -m benchmarks.weight_import [--dtype bfloat16] [--repeats 3]

Each reading is a process of its own. `cold`: the file was dropped from the page cache before. `opened` is the
time of the call; `in memory` adds reading every parameter once, because transformers maps the file and reads
nothing until then. Memory is the peak above the process before the call, pages mapped from the file included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers.samplers import peak_bytes


def make_checkpoint(folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from qwen3llada_jax import PRESETS

    torch.set_default_dtype(torch.bfloat16)
    config = Qwen3Config(**{**PRESETS["qwen3-0.6b"].to_hf(), "is_causal": True})
    Qwen3ForCausalLM(config).save_pretrained(folder)


def drop_from_cache(folder: Path) -> None:
    os.sync()
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def peak_megabytes() -> float:
    return peak_bytes() / 1e6  # of this program alone: getrusage's is that of the process it was started from, too


def open_ours(folder: Path, dtype: str) -> dict[str, float]:
    import jax
    import numpy as np
    from flax import nnx

    import qwen3llada_jax as q

    jax.numpy.zeros(1).block_until_ready()
    before, begin = peak_megabytes(), time.perf_counter()
    model = q.load(folder, dtype)
    opened = time.perf_counter()
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        np.asarray(leaf).view(np.uint8).reshape(-1)[::64].max()
    return result(before, begin, opened)


def open_transformers(folder: Path, dtype: str) -> dict[str, float]:
    import torch
    from transformers import Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    before, begin = peak_megabytes(), time.perf_counter()
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    opened = time.perf_counter()
    for parameter in model.parameters():
        parameter.detach().view(torch.uint8).flatten()[::64].max()
    return result(before, begin, opened)


def result(before: float, begin: float, opened: float) -> dict[str, float]:
    return {"opened": opened - begin, "in_memory": time.perf_counter() - begin, "peak": peak_megabytes() - before}


def measure(side: str, folder: Path, dtype: str) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.weight_import",
        "--side",
        side,
        "--folder",
        str(folder),
        "--dtype",
        dtype,
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", action="append", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/weight_import.json"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side:
        print(
            json.dumps({"ours": open_ours, "transformers": open_transformers}[flags.side](flags.folder, flags.dtype[0]))
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or Path(temporary)
        if not (folder / "config.json").exists():
            make_checkpoint(folder)
        rows = []
        for dtype in flags.dtype or ["bfloat16", "float32"]:
            for cache in ("cold", "warm"):
                readings: dict[str, list[dict[str, float]]] = {"ours": [], "transformers": []}
                for _ in range(flags.repeats):
                    for side, found in readings.items():  # alternating, so that both see the same machine
                        if cache == "cold":
                            drop_from_cache(folder)
                        found.append(measure(side, folder, dtype))
                rows.append({"dtype": dtype, "cache": cache, **{s: medians(found) for s, found in readings.items()}})
    report(rows)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(rows, indent=1) + "\n")


def medians(readings: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in readings) for key in readings[0]}


def report(rows: list[dict]) -> None:
    print(f"{'':18}{'opened, s':>26}{'in memory, s':>26}{'peak, MB':>20}")
    print(f"{'dtype':10}{'cache':8}" + f"{'ours':>9}{'transf.':>9}{'ratio':>8}" * 2 + f"{'ours':>10}{'transf.':>10}")
    for row in rows:
        ours, theirs = row["ours"], row["transformers"]
        cells = "".join(f"{ours[k]:9.2f}{theirs[k]:9.2f}{ours[k] / theirs[k]:8.2f}" for k in ("opened", "in_memory"))
        print(f"{row['dtype']:10}{row['cache']:8}{cells}{ours['peak']:10.0f}{theirs['peak']:10.0f}")


if __name__ == "__main__":
    main()
