"""How fast is sampling? Ours against LLaDA's sampler as it is written in PyTorch, the same weights, in one run.

    python -m benchmarks.sampling [--only small|large|trained] [--trained out/sorting] [--repeats 3]

PyTorch runs transformers' Qwen3 in float32 on the whole text, takes all logits, and writes by topk; the last row of a
shape is its KV-cached autoregressive `generate`. Each side is a process of its own that keeps its model; readings
alternate, tokens/s are of the median reading, without compiling. `equal` is the share of written tokens on which both
sides agree (random weights), `right` that of lists sorted rightly (trained by `sorting.py --lists`). Then: cold starts
with and without JAX's persistent compilation cache, a prompt of another length, and memory. Both sides want all cores:
a busy machine slows PyTorch's threads, which wait for each other, far more than ours. So PyTorch gets all cores or one,
whichever is faster in a trial (`thr`), and the load is printed.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.peers import shapes
from benchmarks.peers.samplers import PROMPT, memory, other_length, write, write_in_torch
from benchmarks.peers.torch_models import make_folder

SMALL, LARGE = {**shapes.SMALL, "tie_word_embeddings": False}, shapes.QWEN3_06B
ALLOWANCE = 300e6  # bytes beside parameters, caches and one block of logits


@dataclass(frozen=True)
class Row:
    """One line of the table: what each side is asked to do with the same prompts.

    Attributes:
        ours: fields of SamplerConfig.
        theirs: arguments of `peers.samplers.unmask_in_torch`.
        target: least ratio of tokens/s.
        is_exact: both should write the same.
    """

    name: str
    folder: Path
    prompts: list[list[int]]
    ours: dict[str, Any]
    theirs: dict[str, Any]
    target: float | None = None
    is_exact: bool = False
    answers: list[str] = field(default_factory=list)


def process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def rows_of(folder: Path, shape: dict[str, Any], *, gen_length: int, steps: int, target: float) -> list[Row]:
    """The exact algorithm and, at the small shape, what caches add."""
    draw, mask = random.Random(0), shape["vocab_size"] - 1
    prompts = [[draw.randrange(mask) for _ in range(PROMPT)]]
    common = {"gen_length": gen_length, "block_length": 32, "steps": steps}
    ours = common | {"mask_token_id": mask, "stop_at_eos": False, "visibility": "full", "cache": "none"}
    theirs = common | {"mask": mask, "never": []}
    causal = {"visibility": "block_causal"}
    rows = [Row("exact, full", folder, prompts, ours, theirs, target, is_exact=True)]
    if gen_length > 32:
        prefix = ours | causal | {"cache": "prefix"}
        rows += [
            Row("prefix, block_causal", folder, prompts, prefix, theirs | causal, 3, is_exact=True),
            Row("prefix, block_causal | torch full", folder, prompts, prefix, theirs, 3),
            Row("dual, full", folder, prompts, ours | {"cache": "dual"}, theirs),
        ]
    autoregressive = {"gen_length": gen_length, "autoregressive": True}
    return [*rows, Row("exact, full | autoregressive", folder, prompts, ours, autoregressive)]


def trained_rows(trained: Path, folder: Path, limit: int) -> list[Row]:
    """The threshold rule on a model that sorts lists, against one token a pass, on its held-out prompts."""
    from benchmarks import sorting
    from converters.to_hf import export
    from qwen3llada_jax.checkpoint.model_folder import read_model_config
    from qwen3llada_jax.text.tokens import load_tokenizer

    result = json.loads((trained / "result.json").read_text())
    task = sorting.Task(**{f: result[f] for f in sorting.Task.__dataclass_fields__})
    texts = sorting.make_problems(folder / "problems", task, result["held_out"])[:limit]
    export(trained / "run", folder / "model")
    config, tokenizer = read_model_config(folder / "model"), load_tokenizer(folder / "model")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]
    common = {"gen_length": task.answer_length, "block_length": task.block_length}
    ours = common | {"visibility": task.visibility, "threshold": 0.9}
    ours["cache"] = "dual" if task.visibility == "full" else "prefix"
    never = range(config.live_vocab_size or config.vocab_size, config.vocab_size)
    theirs: dict[str, Any] = common | {"steps": task.answer_length, "mask": config.mask_token_id, "never": list(never)}
    name, answers = f"threshold 0.9, {ours['cache']}, {task.visibility}", [sorting.sort_lists(text) for text in texts]
    theirs["visibility"] = task.visibility
    return [Row(name, folder / "model", prompts, ours, theirs, 10, answers=answers)]


def measure(row: Row, sides: dict[str, ProcessPoolExecutor], repeats: int) -> dict[str, Any]:
    """Alternating readings; with several prompts, every one is written once by each side."""
    settings = {"ours": row.ours, "torch": row.theirs}
    calls = {"ours": write, "torch": write_in_torch}

    def reading(side: str, number: int) -> dict[str, Any]:
        prompt = row.prompts[number % len(row.prompts)]
        return sides[side].submit(calls[side], row.folder, [prompt], settings[side]).result()

    first = {side: reading(side, 0) for side in sides}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(max(repeats, len(row.prompts))):
        for side in sides:
            found[side].append(reading(side, number))
    line: dict[str, Any] = {"name": row.name, "target": row.target, "ours_settings": row.ours}
    for side, readings in found.items():
        seconds = statistics.median(r["seconds"] for r in readings)
        nfe = statistics.mean(r["nfe"] for r in readings)
        many = row.ours["gen_length"]
        line[side] = {"seconds": seconds, "tokens_per_second": many / seconds, "nfe": nfe, "per_forward": many / nfe}
    line["torch"]["threads"] = first["torch"]["threads"]
    if first["ours"]["compiled"]:
        line["compile_seconds"] = first["ours"]["seconds"] - line["ours"]["seconds"]
    line["ratio"] = line["torch"]["seconds"] / line["ours"]["seconds"]
    if row.is_exact:
        mine, other = (found[side][0]["answers"][0] for side in ("ours", "torch"))
        line["equal"] = statistics.mean(a == b for a, b in zip(mine, other, strict=True))
    if row.answers:
        for side, readings in found.items():
            line[side]["right"] = share_right(row, [r["answers"][0] for r in readings])
    return line


def share_right(row: Row, written: list[list[int]]) -> float:
    """Of all lists, those sorted rightly and in their places."""
    from qwen3llada_jax.checkpoint.model_folder import read_model_config
    from qwen3llada_jax.text.text_ends import with_text_ends
    from qwen3llada_jax.text.tokens import load_tokenizer, up_to_stop

    tokenizer = load_tokenizer(row.folder)
    ends = with_text_ends(read_model_config(row.folder), row.folder).eos_token_ids  # at which ours stops
    right = []
    for ids, answer in zip(written, row.answers, strict=False):
        lists = tokenizer.decode(up_to_stop(ids, ends), skip_special_tokens=True).split(" ")
        right += [number < len(lists) and lists[number] == a for number, a in enumerate(answer.split())]
    return statistics.mean(right)


def cold_starts(row: Row) -> dict[str, float]:
    """Seconds from starting Python to the answer, without and with a filled compilation cache."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, place in (("no cache", None), ("fills the cache", cache), ("from the cache", cache)):
            os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
            if place:
                os.environ["JAX_COMPILATION_CACHE_DIR"] = place
            begin = time.perf_counter()
            with process() as fresh:
                fresh.submit(write, row.folder, row.prompts[:1], row.ours).result()
            found[name] = time.perf_counter() - begin
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("small", "large", "trained"))
    parser.add_argument("--trained", type=Path, help="folder of benchmarks.sorting --lists")
    parser.add_argument("--prompts", type=int, default=16, help="of the trained model's held-out ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/sampling.json"))
    flags = parser.parse_args()
    report: dict[str, Any] = {"load": os.getloadavg()[0], "cores": os.cpu_count(), "rows": []}
    print(f"{report['cores']} cores, load of the last minute before the start {report['load']:.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = {"small": (SMALL, 128, 128, 1.4), "large": (LARGE, 32, 8, 1.5)}
        groups: dict[str, list[Row]] = {}
        for name, (shape, gen_length, steps, target) in sizes.items():
            if flags.only in (None, name):
                with process() as maker:
                    maker.submit(make_folder, folder / name, shape).result()
                groups[name] = rows_of(folder / name, shape, gen_length=gen_length, steps=steps, target=target)
        if flags.trained and flags.only in (None, "trained"):
            groups["trained"] = trained_rows(flags.trained, folder, flags.prompts)
        print(f"{'':42}{'ours':^30}{'torch':^27}\n{'':42}" + HEADS)
        for name, rows in groups.items():
            with process() as ours, process() as torch:  # a large model is given up before the next
                for row in rows:
                    line = {"shape": name, **measure(row, {"ours": ours, "torch": torch}, flags.repeats)}
                    report["rows"].append(line)
                    print(line_of(line), flush=True)
                if name == "small":
                    report["other_length"] = ours.submit(other_length, rows[0].folder, rows[0].ours).result()
                    report["cold_start"] = cold_starts(rows[0])
            if name == "large":
                report["memory"] = {}
                causal = rows[0].ours | {"visibility": "block_causal", "cache": "prefix"}
                for kind, settings in (("exact, full", rows[0].ours), ("prefix, block_causal", causal)):
                    for dtype in ("float32", "bfloat16"):
                        with process() as fresh:
                            found = fresh.submit(memory, rows[0].folder, settings, dtype).result()
                        report["memory"][f"{kind}, {dtype}"] = found
    print_rest(report)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(report, indent=1) + "\n")


SIDE = f"{'tok/s':>8}{'NFE':>6}{'tok/f':>7}"
HEADS = f"{SIDE}{'compile':>9}{'thr':>6}{SIDE}{'ratio':>8}{'target':>8}"


def line_of(line: dict[str, Any]) -> str:
    def cells(side: dict[str, Any]) -> str:
        return f"{side['tokens_per_second']:8.1f}{side['nfe']:6.0f}{side['per_forward']:7.2f}"

    target = f"{line['target']:.1f}×" if line["target"] else ""
    compiling = f"{line['compile_seconds']:.1f}s" if "compile_seconds" in line else ""
    text = f"{line['shape']:8}{line['name']:34}{cells(line['ours'])}{compiling:>9}"
    text += f"{line['torch']['threads']:6}{cells(line['torch'])}{line['ratio']:7.2f}×{target:>8}"
    if "equal" in line:
        text += f"  equal {line['equal']:.1%}"
    if "right" in line["ours"]:
        text += f"  right {line['ours']['right']:.1%}, torch {line['torch']['right']:.1%}"
    return text


def print_rest(report: dict[str, Any]) -> None:
    if "cold_start" in report:
        cells = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["cold_start"].items())
        print(f"small, start of Python to the answer: {cells}")
        new = report["other_length"]
        print(f"small, another prompt length: first tokens {new['seconds']:.3f} s, {new['compilations']} compilations")
    for kind, m in report.get("memory", {}).items():
        budget = m["parameters"] + m["caches"] + m["logits"] + ALLOWANCE
        parts = " + ".join(f"{name} {m[name] / 1e6:.0f}" for name in ("parameters", "caches", "logits"))
        above = f"{(m['peak'] - m['interpreter']) / 1e6:.0f} MB above the interpreter's {m['interpreter'] / 1e6:.0f}"
        print(f"large, {kind}: peak {above}; {parts} + 300 = {budget / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
