"""Does a run that is killed and stopped again and again end where the undisturbed run ends?

    python -m benchmarks.interruptions [--kills 10] [--stops 3] [--seed 0] [--streaming] [--bucket gs://BUCKET/PATH]

Trains the bundled tiny Qwen3 twice by the same command: once undisturbed, once with `kill -9` at random moments
(every second one inside a save) and SIGTERM at others, each time started again by the same command. Then compares
parameters and optimizer state bit for bit, the lines of metrics and samples, and, for every update that was
computed (some more than once), a digest of the batch that went into it.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qwen3llada_jax.io import buckets
from train.monitor.throughput import MEASURED
from train.runtime import run_lock

ROOT = Path(__file__).resolve().parents[1]


def folder_of(out: Path, bucket: str | None) -> Path:
    """Where a run writes: beside what is noted of it, or in the bucket."""
    return out if bucket is None else buckets.place(bucket) / out.name


def flags_of(folder: Path, updates: int, *, streaming: bool) -> list[str]:
    """The run: three rows of 64 tokens an update, saved every fifth, with evaluations and samples."""
    settings = {
        "project.output_dir": folder, "model.base_model_path": ROOT / "examples" / "tiny-qwen3",
        "model.mask_token_id": "auto", "dataset.name": ROOT / "examples/data/shakespeare/valid.txt",
        "training.max_steps": updates, "training.batch_size": 3, "training.max_length": 64, "training.save_steps": 5,
        "training.save_total_limit": 2, "mesh.data": 1, "evaluation.steps": 1, "evaluation.eval_every_steps": 20,
        "evaluation.eval_name": ROOT / "examples/data/shakespeare/valid.txt", "evaluation.eval_max_batches": 1,
        "evaluation.prompts": '["ROMEO:"]', "evaluation.max_new_tokens": 8, "evaluation.sampling_steps": 4,
        "dataset.streaming": streaming,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in settings.items()]


def work(batches: Path, flags: list[str]) -> None:
    """`train.run`, noting down what goes into each update."""
    import jax
    import numpy as np

    from qwen3llada_jax import cli
    from train import run

    make = run.make_train_step

    def make_noting(*args: Any, **more: Any) -> Any:
        step_fn = make(*args, **more)

        def step(state: Any, batch: Any) -> Any:
            digest = hashlib.sha256()
            for leaf in jax.tree.leaves(batch):
                digest.update(np.ascontiguousarray(leaf).tobytes())
            line = json.dumps({"update": int(state["step"]), "batch": digest.hexdigest()}) + "\n"
            result = step_fn(state, batch)
            with batches.open("a") as stream:
                stream.write(line)
            return result

        step.lower = step_fn.lower  # type: ignore[attr-defined]
        return step

    run.make_train_step = make_noting
    sys.argv = ["train.run", *flags]
    cli.run(run.main)


def start(out: Path, updates: int, cache: Path, *, streaming: bool, bucket: str | None) -> subprocess.Popen:
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.interruptions", "--worker", str(out.with_suffix(".batches"))]
    log = out.with_suffix(".log").open("a")
    return subprocess.Popen(
        [*command, *flags_of(folder_of(out, bucket), updates, streaming=streaming)],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def interrupt(
    process: subprocess.Popen, out: Path, folder: Path, how: str, updates: int, draw: random.Random
) -> dict[str, Any]:
    """Let the process compute some updates, then interrupt it: {"how", "update", "exit", "half_saves"}."""
    wanted = lines_in(out.with_suffix(".batches")) + draw.randint(1, max(1, updates // 12))
    while process.poll() is None and lines_in(out.with_suffix(".batches")) < wanted:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.3))
    if how == "kill in a save":
        while process.poll() is None and not half_saves(folder):
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.03))
    if process.poll() is not None:
        raise SystemExit(f"the run ended before it could be interrupted (exit {process.returncode}): {tail(out)}")
    process.send_signal(signal.SIGTERM if how == "stop" else signal.SIGKILL)
    code = process.wait()
    if code != (0 if how == "stop" else -signal.SIGKILL):
        raise SystemExit(f"exit {code} after {how}: {tail(out)}")
    return {"how": how, "update": len(noted(out)), "exit": code, "half_saves": len(half_saves(folder))}


def lines_in(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


def half_saves(folder: Path) -> list[Path]:
    if buckets.is_bucket(folder):
        return [step for step in (folder / "checkpoints").glob("*") if not buckets.is_whole(step)]
    return list((folder / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def noted(out: Path) -> dict[int, set[str]]:
    """The digests of the batches of each update."""
    found: dict[int, set[str]] = {}
    for line in out.with_suffix(".batches").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["update"], set()).add(record["batch"])
    return found


def tail(out: Path) -> str:
    return out.with_suffix(".log").read_text()[-800:]


def state_of(folder: Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint, optimizer state included."""
    import warnings

    import numpy as np
    import orbax.checkpoint as ocp

    newest = max((p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    found: dict[str, bytes] = {}
    for item in ("params", "opt"):
        with warnings.catch_warnings(action="ignore"), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(buckets.absolute(newest) / item)
        found |= {f"{item}.{k}": np.asarray(v).tobytes() for k, v in ocp.tree.to_flat_dict(tree, sep=".").items()}
    return found


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(x).items() if k not in MEASURED} for x in file.read_text().splitlines()]


def compare(
    folder: Path, *, kills: int, stops: int, updates: int, seed: int, streaming: bool = False, bucket: str | None = None
) -> dict[str, Any]:
    """Both runs, in a folder or a bucket, and what differs between them."""
    draw = random.Random(seed)
    whole, disturbed = folder / "whole", folder / "disturbed"

    def begin(out: Path) -> subprocess.Popen:
        return start(out, updates, folder / "cache", streaming=streaming, bucket=bucket)

    if begin(whole).wait() != 0:
        raise SystemExit(f"the undisturbed run failed: {tail(whole)}")
    ways = ["kill in a save" if i % 2 else "kill" for i in range(kills)] + ["stop"] * stops
    draw.shuffle(ways)
    ours_at, theirs_at = folder_of(whole, bucket), folder_of(disturbed, bucket)
    interruptions = [interrupt(begin(disturbed), disturbed, theirs_at, how, updates, draw) for how in ways]
    if begin(disturbed).wait() != 0:
        raise SystemExit(f"the last start failed: {tail(disturbed)}")
    ours, theirs = state_of(ours_at), state_of(theirs_at)
    planned, seen = noted(whole), noted(disturbed)
    return {
        "interruptions": interruptions,
        "updates": updates,
        "updates_computed_again": lines_in(disturbed.with_suffix(".batches")) - updates,
        "arrays": len(ours),
        "arrays_that_differ": sorted(k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)),
        "batches_that_differ": sorted(k for k in {**planned, **seen} if planned.get(k) != seen.get(k)),
        "logs_that_differ": [
            n for n in ("metrics.jsonl", "samples.jsonl") if lines_of(ours_at / n) != lines_of(theirs_at / n)
        ],
        "leftovers": [p.name for p in half_saves(theirs_at)]
        + [p.name for p in theirs_at.glob(".*") if bucket is not None or p.name != run_lock.NAME],
    }


def same(result: dict[str, Any]) -> bool:
    return not any(result[k] for k in result if k.endswith("_that_differ") or k == "leftovers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stops", type=int, default=3)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--streaming", action="store_true", help="read the rows as a stream")
    parser.add_argument("--bucket", help="where the runs are to lie, gs://BUCKET/PATH; nothing may be there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/interruptions.json"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    flags, rest = parser.parse_known_args()
    if flags.worker:
        work(flags.worker, rest)
    with tempfile.TemporaryDirectory() as folder:
        result = compare(
            Path(folder), kills=flags.kills, stops=flags.stops, updates=flags.updates, seed=flags.seed,
            streaming=flags.streaming, bucket=flags.bucket,
        )  # fmt: skip
    print(f"{'':4}{'interruption':16}{'update':>8}{'exit':>6}{'half saves left':>17}")
    for number, one in enumerate(result["interruptions"], 1):
        print(f"{number:3} {one['how']:16}{one['update']:8}{one['exit']:6}{one['half_saves']:17}")
    print(f"{result['updates']} updates, {result['updates_computed_again']} of them computed again")
    for name in ("arrays_that_differ", "batches_that_differ", "logs_that_differ", "leftovers"):
        print(f"{name.replace('_', ' ')}: {', '.join(map(str, result[name])) or 'none'}")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(0 if same(result) else 1)


if __name__ == "__main__":
    main()
