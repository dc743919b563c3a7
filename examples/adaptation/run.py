"""From an autoregressive model to a diffusion model: recipes at equal compute, measured alike.

    python -m examples.adaptation.run --out out/adaptation --quick      # five minutes on two cores
    python -m examples.adaptation.run --out out/adaptation              # every recipe, three seeds
    python -m examples.adaptation.run --out out/real --model out/smollm2/hf --text train.txt --held-out test.txt \\
        --recipes autoregressive,joint-clipped --seeds 1 --updates 300 --batch-size 4 --lr 3e-4 --windows 32 \\
        --samples 4 --prompts 16

Every recipe (recipes.py) is a run of train.run from the same weights, with as many updates as cost the FLOPs of
--updates updates of masked diffusion. A run that was stopped goes on by the same command, and what is measured is not
measured again. In --out: a folder for each run, results.json, report.md and adaptation.png.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import make_folder, write_text
from train.monitor.model_flops import Reading, training_flops_of_row

from .measure import GIVEN, WRITTEN, judged, measure
from .recipes import QUICK, RECIPES, Recipe
from .report import report

ROOT = Path(__file__).resolve().parents[2]
SHAKESPEARE = ROOT / "examples" / "data" / "shakespeare"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    out: Path = flag("folder of runs and results; one that is there is gone on with", Path("out/adaptation"))
    model: Path = flag("autoregressive model to start from (default: the bundled one)", ROOT / "examples/tiny-qwen3")
    text: Path = flag("text to train on, a .txt (default: the bundled one)", SHAKESPEARE / "train.txt")
    held_out: Path = flag("text to measure on, a .txt (default: the bundled one)", SHAKESPEARE / "valid.txt")
    recipes: str | None = flag(f"joined by commas; of {', '.join(RECIPES)} (default: all)", None)
    seeds: int = flag("runs of each recipe (default: %(default)s)", 3)
    updates: int = flag("of masked diffusion; other recipes as many as cost the same (default: %(default)s)", 200)
    batch_size: int = flag("rows of an update (default: %(default)s)", 8)
    length: int = flag("tokens of a row, at least 128 (default: %(default)s)", 128)
    lr: float = flag("peak learning rate (default: %(default)s)", 1e-3)
    windows: int = flag("held-out rows to measure on (default: %(default)s)", 64)
    prompts: int = flag("held-out texts to go on from (default: %(default)s)", 32)
    samples: int = flag("draws of noise for each row, an even number (default: %(default)s)", 8)
    quick: bool = flag(f"{', '.join(QUICK)}, one seed, 60 updates, less to measure", False)


def main() -> None:
    flags = cli.parse(Flags)
    flags = dataclasses.replace(flags, **{n: getattr(flags, n).resolve() for n in ("out", "model", "text", "held_out")})
    if flags.quick:
        flags = dataclasses.replace(flags, seeds=1, updates=60, windows=16, prompts=8)
    names = (flags.recipes or ",".join(QUICK if flags.quick else RECIPES)).split(",")
    for name in names:
        if name not in RECIPES:
            raise InputError(f"--recipes {name}: unknown; choose of {', '.join(RECIPES)}")
    if min(flags.seeds, flags.updates, flags.batch_size, flags.windows, flags.prompts, flags.samples) < 1:
        raise InputError("--seeds, --updates, --batch-size, --windows, --prompts and --samples must be at least 1")
    if flags.length < GIVEN + WRITTEN:
        raise InputError(f"--length {flags.length} must be at least {GIVEN + WRITTEN}, what is measured")
    make_folder(flags.out)
    start = imported(flags)
    judge = q.load(start, dtype="float32")
    windows, prompts, following = held_out_rows(flags)
    results = results_of(flags)
    if "original" not in results:
        results["original"] = measure(judge, judge, windows, prompts, flags.samples)
        results["original"]["held_out_text"] = judged(judge, prompts, following)
        save(flags, results)
    console = Console(stderr=True)
    todo = [(name, seed) for seed in range(flags.seeds) for name in names]
    for name, seed in track(todo, "adapting", console=console, disable=not sys.stderr.isatty()):
        key = f"{name}/{seed}"
        if key in results:
            continue
        seconds = train(flags, start, RECIPES[name], name, seed, judge.config)
        run = flags.out / name / f"seed{seed}"
        model = q.load(run, dtype="float32")
        results[key] = measure(model, judge, windows, prompts, flags.samples) | {
            "seconds": seconds, "updates": updates_of(flags, RECIPES[name], judge.config)}  # fmt: skip
        save(flags, results)
        print(f"{key}: {results[key]['nelbo']['mean']:.3f} nats/token", file=sys.stderr)
    report(flags.out, results, q.load_tokenizer(flags.model))
    print(f"{flags.out}: report.md, adaptation.png, results.json")


def updates_of(flags: Flags, recipe: Recipe, config: q.ModelConfig) -> int:
    """Updates that cost what --updates of masked diffusion do."""
    plain, own = (training_flops_of_row(config, flags.length, reads) for reads in (Reading(), recipe.reads))
    return round(flags.updates * plain / own)


def imported(flags: Flags) -> Path:
    """The model as a folder of this project's, with a mask token."""
    folder = flags.out / "original"
    if not folder.exists():
        run_program("converters.from_hf", f"--src={flags.model}", f"--dst={folder}", "--mask-token-id=auto")
    return folder


def run_program(name: str, *arguments: str) -> None:
    """Run a program of this project; what it says goes to standard error.

    Raises:
        InputError: it failed.
    """
    code = subprocess.run([sys.executable, "-m", name, *arguments], check=False, stdout=sys.stderr, cwd=ROOT).returncode
    if code:
        raise InputError(f"{name} ended with exit code {code}; its reason stands above")


def train(flags: Flags, start: Path, recipe: Recipe, name: str, seed: int, config: q.ModelConfig) -> float:
    """Run train.run, or let it go on; the seconds that it took."""
    keys = {
        "project.output_dir": flags.out / name / f"seed{seed}", "project.seed": seed,
        "model.base_model_path": start, "dataset.name": flags.text,
        "training.max_length": flags.length, "training.batch_size": flags.batch_size, "training.lr": flags.lr,
        "training.max_steps": updates_of(flags, recipe, config), "training.warmup_ratio": 0.05,
        "optim.scheduler": "cosine", "training.noise.antithetic": "true", "training.noise.random_length_prob": 0,
        "training.save_steps": 100, "training.save_total_limit": 1, "training.keep_best": "false",
        "evaluation.do_eval_loss": "false", "evaluation.steps": 20,
    } | recipe.keys  # fmt: skip
    began = time.monotonic()
    run_program("train.run", "--mode", "pretrain", *(f"--{key}={value}" for key, value in keys.items()))
    return time.monotonic() - began


def held_out_rows(flags: Flags) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """([windows, L] text to measure on, [prompts, GIVEN] text to go on from, [prompts, WRITTEN] what really follows
    it), from all over the held-out text."""
    rows = _rows(flags)
    if len(rows) < max(flags.windows, flags.prompts):
        need = max(flags.windows, flags.prompts)
        raise InputError(f"{flags.held_out} has {len(rows)} rows of {flags.length} tokens; {need} are asked for")
    texts = _spread(rows, flags.prompts)
    return _spread(rows, flags.windows), texts[:, :GIVEN], texts[:, GIVEN : GIVEN + WRITTEN]


def _rows(flags: Flags) -> np.ndarray:
    ids = q.load_tokenizer(flags.model)(flags.held_out.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    count = len(ids) // flags.length
    return np.array(ids[: count * flags.length], np.int32).reshape(count, flags.length)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def results_of(flags: Flags) -> dict[str, Any]:
    """What is measured already, under the same flags.

    Raises:
        InputError: the folder's results are of others.
    """
    path, asked = flags.out / "results.json", asked_of(flags)
    if not path.exists():
        return {"asked": asked}
    results: dict[str, Any] = json.loads(path.read_text())
    if results["asked"] != asked:
        other = [name for name, value in asked.items() if results["asked"].get(name) != value]
        raise InputError(
            f"{path} is of other {', '.join('--' + n.replace('_', '-') for n in other)}; choose another --out"
        )
    return results


def asked_of(flags: Flags) -> dict[str, Any]:
    """What decides a run's numbers: recipes and seeds may be added."""
    names = set(vars(flags)) - {"out", "recipes", "seeds", "quick"}
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(flags).items() if name in names
    }


def save(flags: Flags, results: dict[str, Any]) -> None:
    """Write what is measured so far, whole or not at all."""
    write_text(flags.out / "results.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
