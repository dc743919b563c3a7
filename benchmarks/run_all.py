"""How fast is it all? Ours beside PyTorch, torch.compile and dllm's manner, on this machine's CPU, in one table.

    python -m benchmarks.run_all [--only training-small,mdlm] [--readings 7] [--out out/performance/readings.json]

Each reading is a process of its own, and the ways of a row take turns. What is read is kept at once in --out: a run
that was killed goes on by the same command, and one with more --readings adds to it. A cell is the median time and its
range; then others' time over ours, again median and range, of readings that followed each other: above 1 ours is ahead.
Memory is the peak of the process, system that part of the processor's time, both in the same order. The limit is the
faster of two plain matrix products, JAX's and torch's. = after a row: every way wrote the same tokens.
docs/performance.md says what each way does.
"""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.measuring import rows, table
from benchmarks.measuring.collecting import collect, continued, opened
from benchmarks.peers.reading import ReadingFailedError
from qwen3llada_jax.errors import InputError

OUT = Path("out/performance/readings.json")
ON_THE_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    names = [row.name for row in rows.all_rows(compiles=True)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of the rows: {', '.join(names)}")
    parser.add_argument("--readings", type=int, default=7, help="of each row and way (default: 7)")
    parser.add_argument("--out", type=Path, default=OUT, help="(default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the table of what was read, and read nothing")
    flags = parser.parse_args()
    if flags.readings < 1:
        parser.error(f"--readings must be at least 1, not {flags.readings}")
    asked = flags.only.split(",") if flags.only else names
    if unknown := [name for name in asked if name not in names]:
        parser.error(f"--only {unknown[0]}: no such row; choose of {', '.join(names)}")
    if flags.table and not flags.out.exists():
        parser.error(f"--table: {flags.out} is not there; read first, or say where with --out")
    os.environ.update(ON_THE_CPU)
    compiles = flags.table or rows.has_compiler()
    if not compiles:
        print("torch.compile needs a C++ compiler (g++, or CXX); its column is left out", file=sys.stderr)
    chosen = [row for row in rows.all_rows(compiles=compiles) if row.name in asked]
    try:
        collection = opened(flags.out) if flags.table else continued(flags.out)
        if not flags.table:
            collect(collection, chosen, flags.readings)
    except InputError as error:
        parser.error(str(error))
    except ReadingFailedError as error:
        sys.exit(f"{error} (see above). What was read is kept in {flags.out}; the same command goes on")
    print(table.markdown(collection, chosen))


if __name__ == "__main__":
    main()
