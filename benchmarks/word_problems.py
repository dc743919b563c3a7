"""Which rules of sampling win where one written number follows from another? Word problems, as GSM8K writes them.

    python -m benchmarks.word_problems

"Kate had 3 bags of 4 apples. Tom gave Kate 5 more. How many has Kate now?" →

    <<3*4=12>>12 apples
    <<5+12=17>>17 apples
    #### 17

A small model learns them from scratch, by SFT, and once more at half the rate (`masks`); a copy of it goes on with
random tokens in the place of masks, so that it has seen wrong tokens (`wrong`). No held-out question is in the training
data, nor the numbers of one with two steps. Terms and factors stand in either order, at random: two places of an answer
that are right one by one may be wrong together. sample.compare then sweeps the rules, for both models; an answer is
right by GSM8K's strict match, and for some rules its flexible one is told too. The same command goes on after an
interruption, and does nothing twice. `taskset -c 1` keeps it to one core.
"""

import argparse
import functools
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.sorting import ARCHITECTURE, ROOT, write_outline

ROW_LENGTH, ANSWER_LENGTH, BLOCK_LENGTH = 88, 40, 20
BATCH_SIZE, HELD_OUT = 16, 200
NAMES = ("Tom", "Ben", "Sam", "Dan", "Kim", "Kate", "Rose", "Tess")
THINGS = ("hats", "rings", "pears", "apples", "crowns", "cows")
GAINS = ("{other} gave {who} {n} more.", "{who} found {n} more.")
LOSSES = ("{who} gave {other} {n}.", "{who} lost {n}.")


def levels(rule: str, *values: float, beside: str = "") -> list[str]:
    """A rule's levels, as sample.compare takes them."""
    return [f"{rule}={value}{beside}" for value in values]


BUDGETED = ["low_confidence", "finish_below=0.5"]
THRESHOLDS = levels("threshold", 0.9, 0.7, 0.5)
SURE = [*levels("local_leap", 0.9, 0.8), *levels("klass", 0.9, 0.5), *levels("less", 0.9, 0.5)]
CHECKED = levels("wide_in", 0.8, 0.5, beside="+narrow_out=0.9")
EDITED = levels("threshold", 0.9, 0.5, beside="+edit_above=0.9")


@dataclass(frozen=True)
class Problem:
    """A question, and the sums that answer it.

    Attributes:
        steps: (left, operation, right) of each sum in the order of the question; a later one's `left` is the result
            before.
    """

    question: str
    thing: str
    steps: tuple[tuple[int, str, int], ...]


def result(left: int, operation: str, right: int) -> int:
    """Work out one sum."""
    return {"+": left + right, "-": left - right, "*": left * right}[operation]


def draw_problem(draw: random.Random) -> Problem:
    """Draw a problem of one or two steps; no number is below 1."""
    who, other = draw.sample(NAMES, 2)
    thing, steps = draw.choice(THINGS), []
    count, in_bags = draw.randint(2, 9), draw.random() < 0.3
    said = [f"{who} had {count} {thing}."]
    if in_bags:
        bags = draw.randint(2, 5)
        said = [f"{who} had {bags} bags of {count} {thing}."]
        steps.append((bags, "*", count))
        count *= bags
    for _ in range(draw.randint(0, 1) if in_bags else draw.randint(1, 2)):
        n = draw.randint(2, 9)
        operation = draw.choice("+-") if n < count else "+"
        said.append(draw.choice(GAINS if operation == "+" else LOSSES).format(who=who, other=other, n=n))
        steps.append((count, operation, n))
        count = result(*steps[-1])
    said.append(f"How many has {who} now?")
    return Problem(" ".join(said), thing, tuple(steps))


def answer_of(problem: Problem, draw: random.Random) -> str:
    """One of the right answers, annotated as GSM8K's; the order of what commutes is drawn."""
    lines = []
    for left, operation, right in problem.steps:
        found = result(left, operation, right)
        terms = [left, right]
        if operation != "-":
            draw.shuffle(terms)
        lines.append(f"<<{operation.join(map(str, terms))}={found}>>{found} {problem.thing}")
    return "\n".join([*lines, f"#### {found}"])


def make_problems(held_out: int, learned: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(rows to hold out, rows to learn from), each a `question` and an `answer`; all questions differ.

    Held-out rows do not depend on how many are learned. The steps of a held-out problem with two are learned nowhere.
    """
    draw = random.Random(0)
    apart: list[dict[str, str]] = []
    rows: list[dict[str, str]] = []
    asked: set[str] = set()
    steps: set[tuple[tuple[int, str, int], ...]] = set()
    while len(rows) < learned:
        problem = draw_problem(draw)
        if problem.question in asked or problem.steps in steps:
            continue
        asked.add(problem.question)
        row = {"question": problem.question, "answer": answer_of(problem, draw)}
        if len(apart) < held_out:
            apart.append(row)
            steps |= {problem.steps} if len(problem.steps) == 2 else set()
        else:
            rows.append(row)
    return apart, rows


def make_folder(folder: Path, updates: int) -> None:
    """Write the rows, and the outline of a model."""
    start = folder / "start"
    start.mkdir(parents=True, exist_ok=True)
    write_outline(start, ARCHITECTURE)
    apart, learned = make_problems(HELD_OUT, updates * BATCH_SIZE)
    for name, rows in (("held_out", apart), ("train", learned)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(folder: Path, name: str, updates: int, **keys: Any) -> None:
    """Run train.run, or let it go on; `keys` with `__` for their points."""
    every = {
        "project.output_dir": folder / name, "model.mask_token_id": "auto", "dataset.name": folder / "train.jsonl",
        "training.batch_size": BATCH_SIZE, "training.max_length": ROW_LENGTH, "training.max_steps": updates,
        "optim.name": "muon", "training.weight_decay": 0.0, "training.noise.antithetic": "true",
        "training.noise.weight": "none", "training.save_steps": 100, "training.save_total_limit": 1,
        "training.keep_best": "false", "evaluation.do_eval_loss": "false", "evaluation.steps": 50,
    } | {key.replace("__", "."): value for key, value in keys.items()}  # fmt: skip
    run("train.run", "--mode=sft", *(f"--{key}={value}" for key, value in every.items()))


def compare(
    folder: Path, prompts: int, model: str, rules: Sequence[str], steps: str, match: str = "gsm8k-strict"
) -> None:
    """Run sample.compare on the first held-out rows, unless their figures are there."""
    out = folder / f"{model}-{match}-{prompts}"
    if (out / "compare.json").is_file():
        print(f"{out}: compare.json is there")
        return
    run(
        "sample.compare", f"--model={folder / model}", f"--data={folder / 'held_out.jsonl'}", f"--match={match}",
        f"--gen-length={ANSWER_LENGTH}", f"--block-length={BLOCK_LENGTH}", f"--rules={','.join(rules)}",
        f"--steps={steps}", f"--limit={prompts}", "--batch-size=25", f"--out={out}",
    )  # fmt: skip


def run(program: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", program, *arguments], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=700, help="of a model from scratch (default: %(default)s)")
    parser.add_argument("--more", type=int, default=500, help="updates at half the rate (default: %(default)s)")
    parser.add_argument("--wrong", type=int, default=100, help="updates on wrong tokens (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=HELD_OUT, help="held-out questions to ask, at most %(default)s")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "word_problems")
    flags = parser.parse_args()
    if not 1 <= flags.prompts <= HELD_OUT:
        parser.error(f"--prompts {flags.prompts}: must be 1 to {HELD_OUT}, as many as are held out")
    folder = flags.folder.absolute()
    make_folder(folder, flags.updates)
    start = {"model__base_model_path": folder / "start", "model__from_scratch": "true"}
    train(folder, "first", flags.updates, training__lr=4e-3, **start)
    train(folder, "masks", flags.more, training__lr=2e-3, project__seed=1,
          model__qwen3llada_model_path=folder / "first")  # fmt: skip
    train(folder, "wrong", flags.wrong, training__lr=1e-3, project__seed=2,
          model__qwen3llada_model_path=folder / "masks", training__noise__noise_type="random_replace")  # fmt: skip
    ask = functools.partial(compare, folder, flags.prompts)
    ask("masks", [*BUDGETED, *THRESHOLDS, *SURE, *CHECKED, *EDITED], "40,20,10")
    ask("wrong", [BUDGETED[0], *THRESHOLDS[::2], *CHECKED, *EDITED], "40,20")
    ask("masks", [BUDGETED[0], THRESHOLDS[-1]], "10", match="gsm8k-flexible")


if __name__ == "__main__":
    main()
