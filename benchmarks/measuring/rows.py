"""The table of `benchmarks.run_all`, line by line."""

import os
import shutil

from benchmarks.measuring.collecting import Row
from benchmarks.peers.shapes import LARGE, QWEN3_06B, SMALL, Shape, forward_flops, training_flops

DTYPES = {"float32": "", "bfloat16": "-bf16"}  # and what a row's name ends with
MATMUL, SIZE = "matmul", 2048
MATMUL_FLOPS = 2.0 * SIZE**3


def all_rows(*, compiles: bool) -> list[Row]:
    """Without torch.compile where there is no compiler for it."""
    compiled = ("compile",) if compiles else ()
    return [
        Row(MATMUL, f"one product of {SIZE}² × {SIZE}² numbers", "matmul", ("ours", "torch"), {"size": SIZE},
            flops=MATMUL_FLOPS),
        *(row for dtype in DTYPES for row in (
            _training("small", "256 wide, 6 layers, V 4,096, 16 × 256 tokens", SMALL, 16, 256, compiled, dtype),
            _training("large", "512 wide, 12 layers, V 32,000, 4 × 512 tokens", LARGE, 4, 512, compiled, dtype),
            _forward(256, compiled, dtype),
            _forward(32, compiled, dtype),
        )),
        _writing("mdlm", "everyone sees everyone, 128 passes", "full", ("ours", "torch", *compiled)),
        _writing("blocks-128", "`block_causal`, cache, 128 passes", "cached", ("ours", "torch", "dllm")),
        _writing("blocks-32", "`block_causal`, cache, 32 passes", "cached", ("ours", "torch", "dllm"), steps=32),
        _writing("blocks-batch", "`block_causal`, cache, 128 passes, batch 4", "cached", ("ours", "torch", "dllm"), 4),
        _writing("autoregressive", "an autoregressive model, cache", "autoregressive", ("ours", "torch")),
        Row("import", "import of a bfloat16 folder of 0.6B's shape, to the first pass of writing done", "opening",
            ("ours", "torch"), {"mask": QWEN3_06B["vocab_size"] - 1}, QWEN3_06B, keeps_programs=True),
    ]  # fmt: skip


def has_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _training(size: str, what: str, shape: Shape, rows: int, length: int, compiled: tuple[str, ...], dtype: str) -> Row:
    return Row(
        f"training-{size}{DTYPES[dtype]}", f"training step, {what}{_in(dtype)}", "training",
        ("ours", "torch", *compiled, "dllm"), {"shape": shape, "rows": rows, "length": length, "dtype": dtype},
        flops=training_flops(shape, rows, length), tokens=rows * length,
    )  # fmt: skip


def _forward(length: int, compiled: tuple[str, ...], dtype: str) -> Row:
    return Row(
        f"forward-{length}{DTYPES[dtype]}", f"forward pass, Qwen3-0.6B's shape, 1 × {length} tokens{_in(dtype)}",
        "forward", ("ours", "torch", *compiled), {"rows": 1, "length": length, "dtype": dtype}, QWEN3_06B,
        flops=forward_flops(QWEN3_06B, 1, length), tokens=length,
    )  # fmt: skip


def _in(dtype: str) -> str:
    return "" if dtype == "float32" else f", {dtype}"


def _writing(name: str, what: str, kind: str, ways: tuple[str, ...], rows: int = 1, steps: int = 128) -> Row:
    arguments = {"kind": kind, "mask": SMALL["vocab_size"] - 1, "rows": rows, "steps": steps}
    return Row(
        name, f"128 tokens by the small model: {what}", "writing", ways, arguments, SMALL,
        is_causal=kind == "autoregressive", tokens=128 * rows, same_text=True,
    )  # fmt: skip
