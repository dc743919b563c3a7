"""Does the whole chain learn? SFT of a small model from scratch on sorting digits, judged by sample.generate.

    python -m benchmarks.sorting
    # long answers, first and once more at half the rate:
    LONG="--lists 18 --digits 6 --visibility block_causal --held-out 16"
    python -m benchmarks.sorting $LONG --updates 450 --folder out/first
    python -m benchmarks.sorting $LONG --updates 250 --folder out/long --start out/first

"31415926" → "11234569"; with --lists N a prompt holds N lists and its answer each of them sorted. No list of a held-out
prompt is in the training data; an answer counts only if it is right to the last digit and ends there by itself.
Prints the share of exact answers (and lists) and the CPU seconds, user and system, of the training process.
"""

import argparse
import dataclasses
import json
import random
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "examples" / "tiny-qwen3"
BLOCK_LENGTH = 32
AROUND = 11  # tokens that the chat template puts around a prompt
ARCHITECTURE = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 1088, "hidden_size": 128,
    "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 512, "hidden_act": "silu",
    "tie_word_embeddings": True, "attention_bias": False, "initializer_range": 0.02, "eos_token_id": 1024,
}  # fmt: skip
LARGER = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "head_dim": 64}  # for several lists


@dataclass(frozen=True)
class Task:
    """Which lists, and how they are learned.

    Attributes:
        lists: of one prompt.
        digits: of one list.
        visibility: who sees whom: full, block_bias or block_causal.
        updates: of training.
        batch_size: rows of an update.
    """

    lists: int
    digits: int
    visibility: str
    updates: int
    batch_size: int

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt, one for each digit and space, without the chat template's; an answer has one more."""
        return self.lists * (self.digits + 1) - 1

    @property
    def block_length(self) -> int:
        """Tokens of a block; under full visibility the whole answer."""
        return self.prompt_length // 4 * 4 + 4 if self.visibility == "full" else BLOCK_LENGTH

    @property
    def answer_length(self) -> int:
        """Tokens to write: the sorted lists, the end, and what fills the last block."""
        return -(-(self.prompt_length + 1) // self.block_length) * self.block_length

    @property
    def row_length(self) -> int:
        """Tokens of a training row, in quarters of which rows are padded."""
        return -(-(AROUND + self.prompt_length + self.answer_length) // 4) * 4


def sort_lists(prompt: str) -> str:
    """The right answer."""
    return " ".join("".join(sorted(numbers)) for numbers in prompt.split())


def write_outline(start: Path, architecture: dict[str, Any]) -> None:
    """Write into a folder the outline of a model without weights: its config and the bundled tokenizer."""
    (start / "config.json").write_text(json.dumps(architecture))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, start / name)


def make_problems(folder: Path, task: Task, held_out: int) -> list[str]:
    """Write the model's outline and the training data; returns the held-out prompts.

    The lists, and which of them are held out, are the same for any number of updates.
    """
    start = folder / "start"
    start.mkdir(parents=True)
    write_outline(start, ARCHITECTURE | (LARGER if task.lists > 1 else {}))
    rows = task.updates * task.batch_size
    draw, combine = random.Random(0), random.Random(rows)
    apart = held_out * task.lists
    found: set[str] = set()
    while len(found) < 20_000 + apart:
        found.add("".join(draw.choices("0123456789", k=task.digits)))
    numbers = sorted(found)
    draw.shuffle(numbers)
    learned = numbers[apart:]
    prompts = learned if task.lists == 1 else [" ".join(combine.sample(learned, task.lists)) for _ in range(rows)]
    lines = (json.dumps({"prompt": prompt, "completion": sort_lists(prompt)}) for prompt in prompts)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return [" ".join(numbers[i : i + task.lists]) for i in range(0, apart, task.lists)]


def train(folder: Path, task: Task, earlier: Path | None) -> float:
    """CPU seconds that train.run takes, with starting, tokenizing and compiling."""
    if earlier is None:
        start = {"model.base_model_path": folder / "start", "model.from_scratch": "true"}
    else:
        start = {"model.qwen3llada_model_path": earlier / "run"}
    keys = {
        "project.output_dir": folder / "run", **start, "model.mask_token_id": "auto",
        "dataset.name": folder / "train.jsonl", "training.batch_size": task.batch_size,
        "training.max_length": task.row_length, "training.max_steps": task.updates,
        "training.lr": 2e-3 if earlier is None else 1e-3, "training.weight_decay": 0.0,
        "training.noise.antithetic": "true", "training.noise.reweight_cap": 5, "training.save_steps": 100_000,
        "training.keep_best": "false", "evaluation.do_eval_loss": "false", "evaluation.steps": 50,
    }  # fmt: skip
    if task.visibility != "full":
        block = "training.block_attention."
        keys |= {f"{block}enabled": "true", f"{block}block_length": task.block_length}
        keys |= {f"{block}visibility": task.visibility}
    flags = [f"--{key}={value}" for key, value in keys.items()]
    before = cpu_seconds_of_children()
    subprocess.run([sys.executable, "-m", "train.run", "--mode", "sft", *flags], cwd=ROOT, check=True)
    return cpu_seconds_of_children() - before


def cpu_seconds_of_children() -> float:
    """User and system time of all ended processes that this one started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def answers(folder: Path, prompts: list[str], task: Task) -> list[str]:
    """What sample.generate writes, one token a step, cut where the model ended its answer."""
    length = str(task.answer_length)
    flags = ["--model", str(folder / "run"), "--chat", "--gen-length", length, "--steps", length]
    flags += ["--block-length", str(task.block_length), *(f"--prompt={prompt}" for prompt in prompts)]
    done = subprocess.run(
        [sys.executable, "-m", "sample.generate", *flags], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def exact_lists(prompt: str, answer: str) -> int:
    """How many of a prompt's lists stand sorted in their places."""
    return sum(given == right for given, right in zip(answer.split(" "), sort_lists(prompt).split(), strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--lists", type=int, default=1)
    parser.add_argument("--digits", type=int, default=8)
    parser.add_argument("--visibility", choices=("full", "block_bias", "block_causal"), default="full")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "sorting")
    parser.add_argument("--start", type=Path, help="an earlier --folder, to go on from its weights at half the rate")
    flags = parser.parse_args()
    if 10**flags.digits < 2 * (20_000 + flags.held_out * flags.lists):
        parser.error(
            f"--digits {flags.digits}: too few different lists to learn from and to hold out; take more digits"
        )
    task = Task(flags.lists, flags.digits, flags.visibility, flags.updates, 64 if flags.lists == 1 else 8)
    folder = flags.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    prompts = make_problems(folder, task, flags.held_out)
    asked = [json.dumps({"prompt": prompt, "answer": sort_lists(prompt)}) for prompt in prompts]
    (folder / "held_out.jsonl").write_text("\n".join(asked) + "\n")  # for sample.compare
    seconds = train(folder, task, flags.start and flags.start.absolute())
    given = answers(folder, prompts, task)
    exact = sum(answer == sort_lists(prompt) for prompt, answer in zip(prompts, given, strict=True))
    lists = sum(exact_lists(prompt, answer) for prompt, answer in zip(prompts, given, strict=True))
    shares = {"exact": exact / len(prompts), "exact_lists": lists / (len(prompts) * task.lists)}
    result = dataclasses.asdict(task) | {"held_out": len(prompts), **shares, "cpu_seconds": seconds}
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    share = f"{exact} of {len(prompts)} held-out prompts sorted exactly ({shares['exact']:.1%})"
    if task.lists > 1:
        share += f", {shares['exact_lists']:.1%} of their lists"
    print(f"{share}, {seconds:.0f} CPU seconds of training")


if __name__ == "__main__":
    main()
