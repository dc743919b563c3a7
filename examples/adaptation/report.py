"""The tables and pictures of a comparison, from its results alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.pictures import pyplot, write_picture

from .recipes import RECIPES


def report(folder: Path, results: dict[str, Any], tokenizer: Any) -> None:
    """Write report.md and adaptation.png."""
    runs = by_recipe(results)
    lines = [*_likelihoods(results["original"], runs), *_sizes(results["original"], runs),
             *_texts(results["original"], runs), *_samples(results["original"], runs, tokenizer)]  # fmt: skip
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    draw(folder / "adaptation.png", results["original"], runs)


def by_recipe(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each recipe, one for each seed."""
    return {
        name: found
        for name in RECIPES
        if (found := [value for key, value in results.items() if key.split("/")[0] == name])
    }


def over_seeds(values: list[float]) -> tuple[float, float | None]:
    """(mean, its standard error over seeds); one seed says nothing of its error."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return float(np.mean(values)), error


def _said(values: list[float], digits: int = 3) -> str:
    mean, error = over_seeds(values)
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def _likelihoods(original: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "| recipe | updates | nats/token | error of the draws |\n|---|---|---|---|"
    yield f"| *the original, read left to right* | 0 | {original['nelbo']['mean']:.3f}, exact | |"
    for name, found in sorted(runs.items(), key=lambda x: over_seeds([r["nelbo"]["mean"] for r in x[1]])[0]):
        draws = np.mean([run["nelbo"]["standard_error"] for run in found])
        yield (
            f"| {name}: {RECIPES[name].said} ({RECIPES[name].source}) | {found[0]['updates']} "
            f"| {_said([r['nelbo']['mean'] for r in found])} | {draws:.3f} |"
        )


def _sizes(original: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    sizes = list(original["by_block_length"])
    yield "\n| nats/token in blocks of | " + " | ".join(map(str, sizes)) + " |\n|---|" + "---|" * len(sizes)
    for name, found in {"*the original*": [original], **runs}.items():
        if "by_block_length" in found[0]:
            cells = [_said([run["by_block_length"][S]["mean"] for run in found]) for S in sizes]
            yield f"| {name} | " + " | ".join(cells) + " |"


def _texts(original: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "\n| texts of | tokens a pass | nats/token by the original | error over prompts | distinct 4-grams |"
    yield "|---|---|---|---|---|"
    real = original["held_out_text"]
    numbers = f"{real['nats']:.3f} | {real['standard_error']:.3f} | {real['distinct_4grams']:.1%}"
    yield f"| *the held-out text* | | {numbers} |"
    for name, found in {"*the original*": [original], **runs}.items():
        for at_once in found[0]["texts"]:
            texts = [run["texts"][at_once] for run in found]
            error, distinct = (np.mean([t[k] for t in texts]) for k in ("standard_error", "distinct_4grams"))
            speed, nats = np.mean([t["tokens_per_pass"] for t in texts]), _said([t["nats"] for t in texts])
            yield f"| {name} | {speed:.2f} | {nats} | {error:.3f} | {distinct:.1%} |"


def _samples(original: dict[str, Any], runs: dict[str, list[dict[str, Any]]], tokenizer: Any) -> Iterator[str]:
    for name, found in {"the original": [original], **runs}.items():
        for at_once, texts in found[0]["texts"].items():
            yield f"\n{name}, {at_once} a pass:\n"
            yield "```text\n" + tokenizer.decode(texts["answers"][0]).strip("\n") + "\n```"


def draw(path: Path, original: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> None:
    """Likelihood by recipe, and by block length, with two standard errors."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    names = sorted(runs, key=lambda name: -over_seeds([r["nelbo"]["mean"] for r in runs[name]])[0])
    for at, name in enumerate(names):
        mean, error = over_seeds([run["nelbo"]["mean"] for run in runs[name]])
        left.errorbar([mean], [at], xerr=[2 * (error or 0.0)], fmt="o", capsize=3, color="C0")
    left.axvline(original["nelbo"]["mean"], color="gray", linestyle="--", linewidth=1)
    left.set(yticks=range(len(names)), yticklabels=names, xlabel="nats/token ± 2 standard errors over seeds",
             title="held-out text (dashed: the original, exact)")  # fmt: skip
    for name, found in {"the original": [original], **runs}.items():
        if "by_block_length" in found[0]:
            sizes = list(found[0]["by_block_length"])
            points = [over_seeds([run["by_block_length"][S]["mean"] for run in found]) for S in sizes]
            right.errorbar([int(S) for S in sizes], [p[0] for p in points], [2 * (p[1] or 0.0) for p in points],
                           fmt="o-", capsize=3, label=name)  # fmt: skip
    right.set(xlabel="tokens of a block", ylabel="nats/token", xscale="log")
    right.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    right.minorticks_off()
    right.legend()
    write_picture(figure, path)
    plt.close(figure)
