"""One reading: a piece of work, done one way, in a process of its own that nothing else has touched.

    python -m benchmarks.peers.reading WORK WAY ARGUMENTS

WORK is a module of this folder whose `read(way, **ARGUMENTS)` does it; what it finds is printed as JSON.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.samplers import peak_bytes
from qwen3llada_jax.process import huge_pages

ROOT = Path(__file__).resolve().parents[2]
OURS = "ours"
Reading = dict[str, Any]


class ReadingFailedError(RuntimeError):
    """The process of a reading did not end well; what it said stands above."""


def take(
    work: str, way: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Reading:  # fmt: skip
    """Ours has huge pages where they are had, as the programs give them to themselves.

    Raises:
        ReadingFailedError: its process failed.
        subprocess.TimeoutExpired: it was not done within so many seconds.
    """
    told = huge_pages.environment(os.environ) if way == OURS and huge_pages.is_had() else {}
    command = [sys.executable, "-m", "benchmarks.peers.reading", work, way, json.dumps(arguments)]
    done = subprocess.run(
        command, check=False, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=timeout,
        env={**os.environ, **told, **(environment or {})},
    )  # fmt: skip
    if done.returncode:
        raise ReadingFailedError(f"{work}, {way}: the reading's process ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(run: Callable[[], Any], warm_up: int, times: int) -> Reading:
    """What one call takes: the median of `times`, after `warm_up`; CPU time and page faults are their mean."""
    for _ in range(warm_up):
        run()
    before, seconds = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "user": (after.ru_utime - before.ru_utime) / times,
        "system": (after.ru_stime - before.ru_stime) / times,
        "faults": (after.ru_minflt - before.ru_minflt) / times,
        "peak_gb": peak_bytes() / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("work", "way", "arguments"):
        parser.add_argument(name)
    flags = parser.parse_args()
    work = importlib.import_module(f"benchmarks.peers.{flags.work}")
    print(json.dumps(work.read(flags.way, **json.loads(flags.arguments))))


if __name__ == "__main__":
    main()
