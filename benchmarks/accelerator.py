"""How fast is it on a GPU (or a TPU), and is its attention right? Qwen3-0.6B's shape in bfloat16, in under 8 minutes.

    python -m benchmarks.accelerator [--minutes 8] [--out out/performance/accelerator.json]

Forward pass, training step (float32 weights and moments) and samplers, ours beside transformers with sdpa, eagerly and
by torch.compile, where torch sees a GPU; random weights. Seconds are the median of the calls of one process, and their
range; `MFU` is the model's own FLOPs over the device's published ones. Then attention: the kernel that is taken there
(cuDNN, splash) and XLA's matmuls, both in bfloat16, against float32 under every mask; where the kernel is further off
than XLA's, a line says so, and the exit code is 1. What --minutes leave no time for is named; the same command goes on
from --out. Without an accelerator a tiny shape runs on the CPU, to show that it works: its times say nothing.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring.collecting import Collection, Row, collect, continued
from benchmarks.measuring.machine import sentence
from benchmarks.peers import reading
from benchmarks.peers.reading import OURS, Reading
from benchmarks.peers.shapes import QWEN3_06B, TINY, Shape, forward_flops, training_flops
from qwen3llada_jax.errors import InputError

KERNEL = {"gpu": "cudnn", "tpu": "splash", "cpu": "splash_interpret"}
PARITY = "attention"
TIMES_XLA = 2.0  # a kernel's error may be so many times that of XLA's matmuls, and this much more:
FLOOR = 0.01


def rows_for(platform: str, ways: tuple[str, ...]) -> list[Row]:
    """What is measured there: attention's parity first, and last what could best be left out."""
    big = platform != "cpu"
    shape: Shape = QWEN3_06B if big else TINY
    B, L, written, block = (4, 1024, 128, 32) if big else (2, 128, 16, 8)
    heads = {"heads": shape["num_attention_heads"], "key_heads": shape["num_key_value_heads"]}
    name, mask = "Qwen3-0.6B's shape" if big else "a tiny shape", shape["vocab_size"] - 1
    # For each length of its cache torch would compile anew.
    eager = tuple(way for way in ways if way != "compile")

    def forward(b: int, n: int, ways: tuple[str, ...]) -> Row:
        arguments = {"rows": b, "length": n, "dtype": "bfloat16", "times": 10}
        what = f"forward pass, {name}, {b} × {n} tokens"
        return Row(
            f"forward-{b}x{n}", what, "forward", ways, arguments, shape, flops=forward_flops(shape, b, n), tokens=b * n
        )

    def writing(kind: str, b: int, steps: int, ways: tuple[str, ...]) -> Row:
        arguments = {
            "kind": kind, "mask": mask, "rows": b, "steps": steps, "gen_length": written, "block_length": block,
            "dtype": "bfloat16",
        }  # fmt: skip
        sees = "everyone sees everyone" if kind == "full" else "`block_causal`, cache"
        what = f"{b} × {written} tokens written: {sees}, {steps} passes"
        return Row(f"{kind}-{b}", what, "writing", ways, arguments, shape, tokens=b * written)

    return [
        Row(PARITY, f"attention, {B} × {L} tokens", "attention_parity", ("xla", KERNEL[platform]),
            {"rows": B, "length": L, **heads, "head_dim": shape["head_dim"]}),
        forward(B, L, ways),
        Row("training", f"training step, {name}, {B} × {L} tokens", "training", ways,
            {"shape": shape, "rows": B, "length": L, "dtype": "bfloat16"},
            flops=training_flops(shape, B, L), tokens=B * L),
        writing("full", 1, written, ways),
        writing("cached", 1, written // 4, eager),
        writing("cached", 2 * B, written // 4, eager),
        forward(1, L // 4, eager),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="what is not done by then is left out (default: 8)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/performance/accelerator.json"), help="(default: %(default)s)"
    )
    flags = parser.parse_args()
    until = time.monotonic() + 60 * flags.minutes
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        device, theirs = (reading.take("device", way, {}, timeout=until - time.monotonic()) for way in (OURS, "torch"))
        collection = continued(flags.out, device=device["name"], torch_device=theirs["platform"])
        rows = rows_for(device["platform"], (OURS, "torch", "compile") if theirs["platform"] == "gpu" else (OURS,))
        left = collect(collection, rows, 1, until=until)
    except InputError as error:
        parser.error(str(error))
    except subprocess.TimeoutExpired:
        parser.error(f"--minutes {flags.minutes:g} were over before the devices were found; give more")
    except reading.ReadingFailedError as error:
        sys.exit(f"{error} (see above). What was read is kept in {flags.out}; the same command goes on")
    print(report(collection, rows, device, theirs))
    for name in left:
        print(f"left out, --minutes {flags.minutes:g} were over: {name}")
    wrong = worse_than_xla(collection.found.get(PARITY, {}), KERNEL[device["platform"]])
    for line in wrong:
        print(line)
    sys.exit(1 if wrong else 0)


def report(collection: Collection, rows: Sequence[Row], device: Reading, theirs: Reading) -> str:
    peak = f"{device['peak'] / 1e12:.0f} TFLOP/s in bfloat16" if device["peak"] else "no published peak"
    lines = [f"{device['name']} ({device['platform']}), {peak}; {sentence(collection.machine)}"]
    if device["platform"] == "cpu":
        lines.append("no accelerator: a tiny shape, whose times say nothing")
    if theirs["platform"] != "gpu":
        lines.append("torch sees no GPU: ours alone")
    lines += ["", "| | way | seconds | tokens/s | TFLOP/s | MFU |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        for way, readings in collection.found.get(row.name, {}).items():
            if readings and row.name != PARITY:
                lines.append(f"| {row.what} | {' | '.join([way, *cells(row, readings[0], device['peak'])])} |")
    return "\n".join([*lines, "", *parity(rows[0], collection.found.get(PARITY, {}))])


def cells(row: Row, found: Reading, peak: float | None) -> list[str]:
    """Seconds and their range, tokens/s, TFLOP/s, and the share of the device's peak."""
    seconds = f"{found['seconds']:.4g} ({found['fastest']:.4g} … {found['slowest']:.4g})"
    rate = None if row.flops is None else row.flops / found["seconds"]
    return [
        seconds,
        f"{(row.tokens or 0) / found['seconds']:,.0f}",
        "–" if rate is None else f"{rate / 1e12:.3g}",
        "–" if rate is None or peak is None else f"{rate / peak:.0%}",
    ]


def parity(row: Row, found: Mapping[str, Sequence[Reading]]) -> list[str]:
    """Each mask's largest errors, over the root mean square of what it should be."""
    ways = {way: readings[0]["errors"] for way, readings in found.items() if readings}
    if not ways:
        return []
    heads = [f"{way}, {what}" for way in ways for what in ("result", "gradients")]
    lines = [f"| {row.what} | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for mask in next(iter(ways.values())):
        errors = [of_way[mask][what] for of_way in ways.values() for what in ("result", "gradients")]
        lines.append(f"| {mask} | {' | '.join(f'{error:.1e}' for error in errors)} |")
    return lines


def worse_than_xla(found: Mapping[str, Sequence[Any]], kernel: str) -> list[str]:
    """A line for each mask under which the kernel is further off than XLA's matmuls of the same dtype."""
    if not found.get("xla") or not found.get(kernel):
        return []
    lines = []
    for mask, allowed in found["xla"][0]["errors"].items():
        for what, error in found[kernel][0]["errors"][mask].items():
            if not error <= TIMES_XLA * allowed[what] + FLOOR:  # NaN is worse, too
                lines.append(f"{kernel} under mask {mask}: {what} off by {error:.2g}, XLA's by {allowed[what]:.2g}")
    return lines


if __name__ == "__main__":
    main()
