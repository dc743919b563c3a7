"""Does the whole chain learn? SFT of a small model from scratch on sorting digits, judged by sample.generate.

    python -m benchmarks.sorting [--updates 1500] [--digits 8] [--folder out/sorting]

"31415926" → "11234569". The held-out prompts are none of the training ones; an answer counts only if it is right to
the last digit and ends there by itself. Prints the share of exact answers and the seconds of training.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "examples" / "tiny-qwen3"
ARCHITECTURE = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 1088, "hidden_size": 128,
    "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 64, "hidden_act": "silu",
    "tie_word_embeddings": True, "attention_bias": False, "initializer_range": 0.02, "eos_token_id": 1024,
}  # fmt: skip


def make_problems(folder: Path, digits: int, held_out: int) -> list[str]:
    """Write the model's outline and the training data; returns the held-out prompts."""
    folder.mkdir(parents=True)
    start = folder / "start"
    start.mkdir()
    (start / "config.json").write_text(json.dumps(ARCHITECTURE))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, start / name)
    draw = random.Random(0)
    prompts: set[str] = set()
    while len(prompts) < 20_000 + held_out:
        prompts.add("".join(draw.choices("0123456789", k=digits)))
    shuffled = sorted(prompts)
    draw.shuffle(shuffled)
    lines = (json.dumps({"prompt": p, "completion": "".join(sorted(p))}) for p in shuffled[held_out:])
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return shuffled[:held_out]


def train(folder: Path, updates: int) -> float:
    """Seconds that train.run takes."""
    keys = {
        "project.output_dir": folder / "run", "model.base_model_path": folder / "start", "model.from_scratch": "true",
        "model.mask_token_id": "auto", "dataset.name": folder / "train.jsonl", "training.batch_size": 64,
        "training.max_length": 32, "training.max_steps": updates, "training.lr": 2e-3, "training.weight_decay": 0.0,
        "training.noise.antithetic": "true", "training.save_steps": 100_000, "evaluation.do_eval_loss": "false",
        "evaluation.steps": 100, "training.keep_best": "false",
    }  # fmt: skip
    begin = time.perf_counter()
    flags = [f"--{key}={value}" for key, value in keys.items()]
    subprocess.run([sys.executable, "-m", "train.run", "--mode", "sft", *flags], cwd=ROOT, check=True)
    return time.perf_counter() - begin


def answers(folder: Path, prompts: list[str], digits: int) -> list[str]:
    """What sample.generate prints, cut where the model ended its answer."""
    length = digits + 4
    flags = ["--model", str(folder / "run"), "--chat", "--gen-length", str(length), "--steps", str(length)]
    flags += ["--block-length", str(length), *(f"--prompt={prompt}" for prompt in prompts)]
    done = subprocess.run(
        [sys.executable, "-m", "sample.generate", *flags], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--digits", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "sorting")
    flags = parser.parse_args()
    folder = flags.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    prompts = make_problems(folder, flags.digits, flags.held_out)
    seconds = train(folder, flags.updates)
    given = answers(folder, prompts, flags.digits)
    exact = sum(answer == "".join(sorted(prompt)) for prompt, answer in zip(prompts, given, strict=True))
    result = {"digits": flags.digits, "updates": flags.updates, "exact": exact / len(prompts), "seconds": seconds}
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    share = f"{exact} of {len(prompts)} held-out prompts sorted exactly ({result['exact']:.1%})"
    print(f"{share}, {seconds:.0f} s of training")


if __name__ == "__main__":
    main()
