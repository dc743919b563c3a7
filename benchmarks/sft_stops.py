"""Does SFT teach a model to answer and to stop? The bundled model on the bundled dialogues, before and after.

    python -m benchmarks.sft_stops [--updates 400]

Speeches of Shakespeare's plays: the last turn of each held-out dialogue is answered by sample.generate, greedily. An
answer `ends` if the model wrote an EOS within --gen-length tokens; `tokens` are those before it, beside the mean of the
true answers. The start is the imported autoregressive checkpoint.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen3llada_jax.text.tokens import load_tokenizer
from train.monitor.jsonl import read_lines

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "examples" / "tiny-qwen3"
DIALOGUES = ROOT / "examples" / "data" / "dialogue"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "sft_stops")
    flags = parser.parse_args()
    folder = flags.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = held_out(folder / "prompts.jsonl")
    run("converters.from_hf", "--src", START, "--dst", folder / "start", "--mask-token-id", "auto")
    before = answers(folder, folder / "start", flags.gen_length)
    train(folder, flags.updates)
    after = answers(folder, folder / "run", flags.gen_length)
    lines = read_lines(folder / "run" / "metrics.jsonl")
    assert lines[-1]["step"] == flags.updates, f"training stopped at update {lines[-1]['step']}"
    losses = [line["loss"] for line in lines if "loss" in line]
    held = [line["eval_loss"] for line in lines if "eval_loss" in line]
    tenth = max(1, len(losses) // 10)
    falls = [statistics.mean(losses[:tenth]), statistics.mean(losses[-tenth:])]
    print(f"training loss {falls[0]:.3f} → {falls[1]:.3f}, held-out loss {held[0]:.3f} → {held[-1]:.3f}")
    tokenizer = load_tokenizer(START)
    true = statistics.mean(len(tokenizer(text)["input_ids"]) for text in wanted)
    result: dict[str, Any] = {
        "before": summary(before, flags.gen_length),
        "after": summary(after, flags.gen_length),
        "true": true,
    }
    for name in ("before", "after"):
        print(f"{name:7}{result[name]['ends']:7.1%} end, {result[name]['tokens']:.1f} tokens (true answers {true:.1f})")
    for prompt, answer in list(zip(lines_of(folder / "prompts.jsonl"), after, strict=True))[:4]:
        print(f"  {prompt['messages'][-1]['content']!r} → {answer['text']!r}")
    (folder / "result.json").write_text(json.dumps({**result, "train": falls, "held_out": held}, indent=1) + "\n")


def held_out(path: Path) -> list[str]:
    """Write the held-out dialogues without their last answer; returns these answers."""
    prompts, wanted = [], []
    for line in (DIALOGUES / "valid.jsonl").read_text().splitlines():
        *asked, answer = json.loads(line)["messages"]
        prompts.append(json.dumps({"messages": asked}))
        wanted.append(answer["content"])
    path.write_text("\n".join(prompts) + "\n")
    return wanted


def train(folder: Path, updates: int) -> None:
    keys = {
        "project.output_dir": folder / "run", "model.qwen3llada_model_path": folder / "start",
        "dataset.name": DIALOGUES / "train.jsonl", "evaluation.eval_name": DIALOGUES / "valid.jsonl",
        "training.max_steps": updates, "training.batch_size": 16, "training.max_length": 128, "training.lr": 1e-3,
        "training.save_steps": updates, "evaluation.eval_every_steps": max(1, updates // 8),
    }  # fmt: skip
    run("train.run", "--mode", "sft", *(f"--{key}={value}" for key, value in keys.items()))


def answers(folder: Path, model: Path, length: int) -> list[dict[str, Any]]:
    out = folder / f"{model.name}.jsonl"
    run(
        "sample.generate", "--model", model, "--chat", "--prompts", folder / "prompts.jsonl", "--out", out,
        "--gen-length", length, "--steps", length, "--block-length", 16, "--batch-size", 25,
        "--dtype", "float32",
    )  # fmt: skip
    return lines_of(out)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(found: list[dict[str, Any]], length: int) -> dict[str, float]:
    """The share of answers that end, and their mean length."""
    counts = [line["tokens"] for line in found]
    return {"ends": statistics.mean(count < length for count in counts), "tokens": statistics.mean(counts)}


def run(program: str, *arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", program, *map(str, arguments)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
