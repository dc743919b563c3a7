"""Seconds from the command to the first update, and to the first text: what a user waits for.

    python -m benchmarks.measuring.start_up [--readings 7] [--out out/start_up.json]

`train.run` and `sample.generate` with the bundled tiny model, each reading a process of its own, the ways in turns:
cold (nothing compiled before, no text tokenized), and warm (the same command once more, in another folder). The time
runs until the line of the first update is there, or the text; `--help` is there to be compared with.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measuring.table import range_of

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "tiny-qwen3"
TEXT = ROOT / "examples" / "data" / "shakespeare" / "valid.txt"
FIRST_UPDATE, FIRST_TOKEN = "first update", "first text"


@dataclass(frozen=True)
class Row:
    """A wait.

    Attributes:
        what: until what.
        how: cold or warm.
        seconds: of every reading.
    """

    what: str
    how: str
    seconds: tuple[float, ...]

    def __str__(self) -> str:
        median, least, most = range_of(self.seconds)
        return f"{self.what:24}{self.how:6}{median:8.2f}{least:8.2f} to {most:.2f}"


def seconds_until(sign: str, words: list[str], caches: Path, *, code: int = 0) -> float:
    """Seconds from the command to the first line of its standard output that holds `sign`.

    Raises:
        SystemExit: it ends without such a line, or not as it should.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    environment |= {
        "XDG_CACHE_HOME": str(caches), "HF_HOME": str(caches / "huggingface"), "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    begin, took = time.perf_counter(), None
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if took is None and sign in line:
                took = time.perf_counter() - begin
    if took is None or process.returncode != code:
        raise SystemExit(f"exit {process.returncode} of {' '.join(words)}:\n{''.join(lines[-20:])}")
    return took


def first_update(folder: Path, caches: Path) -> float:
    """Seconds until the first line of metrics."""
    settings = {
        "project.output_dir": folder / f"run-{time.monotonic_ns()}", "model.base_model_path": TINY,
        "model.mask_token_id": "auto", "dataset.name": TEXT, "training.max_steps": 2, "training.batch_size": 16,
        "training.max_length": 128, "mesh.data": 1, "evaluation.do_eval_loss": False,
    }  # fmt: skip
    return seconds_until("tokens/s", ["train.run", *(f"--{key}={value}" for key, value in settings.items())], caches)


def first_text(folder: Path, caches: Path) -> float:
    """Seconds until the text."""
    flags = ["--model", str(TINY), "--prompt", "ROMEO:", "--gen-length", "32", "--seed", "0"]
    return seconds_until("ROMEO:", ["sample.generate", *flags], caches)


def rows(readings: int = 7) -> list[Row]:
    """The table: every wait, cold and warm."""
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(readings):
            folder = Path(temporary) / str(number)
            for what, wait in ((FIRST_UPDATE, first_update), (FIRST_TOKEN, first_text)):
                for how in ("cold", "warm"):
                    found.setdefault((what, how), []).append(wait(folder, folder / what))
            for program in ("train.run", "sample.generate"):
                key = (f"{program} --help", "")
                found.setdefault(key, []).append(seconds_until("--help", [program, "--help"], folder))
    return [Row(what, how, tuple(seconds)) for (what, how), seconds in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("out/start_up.json"))
    flags = parser.parse_args()
    table = rows(flags.readings)
    print(f"seconds until, median and range of {flags.readings} readings, {os.cpu_count()} processors")
    for row in table:
        print(row)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps([asdict(row) for row in table], indent=1) + "\n")


if __name__ == "__main__":
    main()
