"""Writing a token at a time with a real model, SmolLM2-135M: tokens/s beside transformers' cached `generate`.

    python -m benchmarks.autoregressive [--folder out/smollm2/hf] [--tokens 128] [--rounds 5]

Greedy, float32, the same prompt in every row, no text ends early. Each reading is a process of its own, which writes
once to warm up (and compile) and then three times; the best counts. The two alternate.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROMPT = "The three laws of thermodynamics, and what each of them means for an engine that is to run for ever, are"
WAYS = ("ours", "transformers")


def ours(folder: Path, rows: int, tokens: int) -> Callable[[], object]:
    import qwen3llada_jax as q

    model, prompt = q.load(folder), q.load_tokenizer(folder)(PROMPT).input_ids
    settings = q.SamplerConfig(gen_length=tokens, mask_token_id=7, stop_at_eos=False)
    return lambda: q.generate(model, [prompt] * rows, settings).answers()


def transformers(folder: Path, rows: int, tokens: int) -> Callable[[], object]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids] * rows)
    lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens}

    def write() -> object:
        with torch.no_grad():
            done = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths)
        return done[:, ids.shape[1] :].tolist()

    return write


def reading(way: str, folder: Path, rows: int, tokens: int) -> float:
    """Tokens/s, the best of three."""
    write = {"ours": ours, "transformers": transformers}[way](folder, rows, tokens)
    write()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        write()
        seconds.append(time.perf_counter() - begin)
    return rows * tokens / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/smollm2/hf"))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "ROWS"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        way, rows = flags.one
        print(json.dumps(reading(way, flags.folder, int(rows), flags.tokens)))
        return
    command = [sys.executable, "-m", "benchmarks.autoregressive", "--folder", str(flags.folder)]
    command += ["--tokens", str(flags.tokens)]
    for rows in (1, 8):
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(flags.rounds):
            for way in WAYS:
                done = subprocess.run(
                    [*command, "--one", way, str(rows)], check=True, stdout=subprocess.PIPE, text=True
                )
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        a, b = (statistics.median(found[way]) for way in WAYS)
        ratios = [x / y for x, y in zip(*found.values(), strict=True)]
        print(
            f"batch {rows}: ours {a:.1f} tokens/s, transformers {b:.1f} tokens/s; ours / transformers "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)",
            flush=True,
        )


if __name__ == "__main__":
    main()
