"""Compare rules of sampling: quality against forward passes and speed.

    python -m sample.compare --model runs/sort --data held_out.jsonl --chat --gen-length 16 \\
        --rules low_confidence,margin,random,threshold=0.9,entropy+entropy_bound=0.3 --steps 16,8,4,2 --out out/compare

--data is a .jsonl (.json, .csv, .parquet, .arrow) with `prompt` and, if there is a right answer, `completion`,
`response` or `answer`; or with conversations in any format that training reads, whose last turn, if the assistant's, is
the answer. Quality is then the share of right answers: --match exact, contains, last-number, regex=PATTERN, or
gsm8k-strict and gsm8k-flexible, as lm-evaluation-harness judges GSM8K, looked for in the text and in the answer alike;
an empty think block at the head of a text is left out. Without answers it is the model's own opinion of the finished
text: the mean log-probability of its tokens, each given all others (comparing/quality.py), together with the share of
distinct 4-grams, because a text that repeats itself is likely too. Intervals are 95%, by drawing prompts anew
(comparing/frontier.py).

A rule is a confidence rule, or SETTING=VALUE (threshold=0.9, factor=1, cache=dual, temperature=0.7), or one of your own
(my.py:Halves:share=0.3, as --rule takes it), or several joined by `+`; steps= is no part of one. Rules with a fixed
budget run once for each of --steps, adaptive ones once, without a limit on their steps. Levels of one rule
(threshold=0.9,threshold=0.7,…, or several --steps) are one line of the picture, and with answers one AUP.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError, brief
from qwen3llada_jax.io.atomic_files import check_folder, make_folder
from qwen3llada_jax.pictures import pyplot
from qwen3llada_jax.text.conversations import answer_of
from qwen3llada_jax.text.tokens import up_to_stop
from qwen3llada_jax.writing import completions
from qwen3llada_jax.writing.completions import Completion
from qwen3llada_jax.writing.opening import Folder
from qwen3llada_jax.writing.requests import Request
from qwen3llada_jax.writing.settings import settings_for

from . import inputs
from .answers import check_place
from .clock import Timed, timed
from .comparing import quality
from .comparing.frontier import Points
from .comparing.report import report
from .comparing.variants import Variant, budgets_of, variants_of
from .flags import THINKING, MeshFlags, SamplerFlags, check_counts, own_settings, settings_of
from .progress import tracked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(SamplerFlags, MeshFlags):
    mesh_data: int | None = flag("size of the mesh axis data (default: what is left)", None, names=["--mesh-data"])
    data: Path = flag("rows with prompt (or messages) and maybe answer: .jsonl, .parquet, …")
    rules: str = flag(
        "joined by commas; see above (default: %(default)s)",
        "low_confidence,margin,entropy,random,left_to_right,threshold=0.9",
    )
    chat: bool = flag("put prompts through the tokenizer's chat template", False)
    enable_thinking: bool | None = flag(THINKING, None)
    match: str = flag(f"what is right: {', '.join(quality.KINDS)} (default: %(default)s)", "exact", metavar="HOW")
    limit: int | None = flag("only so many lines of --data", None)
    batch_size: int = flag("prompts written together (default: %(default)s)", 32)
    out: Path | None = flag("folder for compare.json and compare.png", None)
    steps: str | None = flag(
        "budgets of the rules with a fixed one, as 32,16,8 (default: one pass for each token)", None, metavar="N,N"
    )

    def __post_init__(self) -> None:
        budgets_of(self.steps)
        check_counts(self, "limit", "batch_size")


def main(arguments: Sequence[str] | None = None) -> None:
    """Whatever can be refused is refused before the weights are read."""
    flags = cli.parse(Flags, arguments)
    unbudgeted = dataclasses.replace(flags, steps=None)
    variants_of(settings_of(unbudgeted), flags.rules, budgets_of(flags.steps))
    rows, answers = read(flags.data, flags.limit)
    inputs.check_chat(rows, chat=flags.chat, enable_thinking=flags.enable_thinking)
    if answers[0] is not None:
        quality.check_references(quality.match_of(flags.match)[1], answers, flags.match)
    elif flags.match != "exact":
        raise InputError(f"--match {flags.match}: {flags.data} has no answers to match; leave it out")
    if flags.out:
        pyplot()
        check_folder(flags.out)
    else:
        cli.check_output()
    folder = inputs.open_model(flags)
    base, default = settings_of(unbudgeted, folder.config), settings_for(folder.config)
    variants = variants_of(base, flags.rules, budgets_of(flags.steps), default)
    variants = [dataclasses.replace(v, settings=folder.ending(v.settings)) for v in variants]
    for variant in variants:
        if answers[0] is None:
            quality.check_likelihood(folder.config, variant.settings)
        inputs.say_if_approximate(variant.settings.for_model(folder.config), folder.config)
    requests = inputs.requests_of(rows, folder, chat=flags.chat, enable_thinking=flags.enable_thinking)
    size = completions.rows_of_a_batch(len(requests), flags.batch_size, folder.ways)
    for variant in variants:
        inputs.check_fit(requests, variant.settings, folder.config, size)
    if flags.out:  # once nothing else is refused: no empty folder is left
        make_folder(flags.out)
        for name in ("compare.json", "compare.png"):
            check_place("--out", flags.out / name, {"--data": flags.data}, folder.path)
    inputs.say_own_settings(own_settings(unbudgeted, folder.config))
    inputs.say_if_untrained(folder, variants[0].settings)
    model = folder.load(flags.dtype)
    inputs.say_if_rounded(model, variants[0].settings.for_model(folder.config), size)
    found = [
        measure(model, folder, requests, answers, variant, flags)
        for variant in tracked(variants, "comparing", len(variants))
    ]
    rows, of_each = zip(*found, strict=True)
    report(rows, Points(*(np.stack(x) for x in zip(*of_each, strict=True))), flags)


def read(path: Path, limit: int | None) -> tuple[list[dict[str, Any]], list[str | None]]:
    """(what is asked, the right answers or None for each) of the first `limit` lines.

    Raises:
        InputError: holes to fill, or answers to some of the lines only.
    """
    if path.suffix.lower() == ".txt":
        raise InputError(f"{path}: unknown kind of file; --data has rows with prompts and answers, as in a .jsonl")
    rows: list[dict[str, Any]] = []
    answers: list[str | None] = []
    for line in inputs.from_file(path)[:limit]:
        row = line
        if "infill" in row:
            raise InputError(f"{path}: has texts with holes; --data asks with prompt or messages")
        answer = answer_of(row)
        if row.get("messages") and row["messages"][-1]["role"] == "assistant":
            answer, row = line["messages"][-1]["content"], line | {"messages": line["messages"][:-1]}
            if not row["messages"]:
                raise InputError(f"{path}: a chat has an answer and no question")
        if answer is not None and not isinstance(answer, str):
            raise InputError(f"{path}: prompt {len(rows) + 1}: an answer must be a text, not {brief(answer, 60)}")
        rows.append(row)
        answers.append(answer)
    if len({answer is None for answer in answers}) > 1:
        raise InputError(f"{path}: some lines have an answer and some have none; keep one kind")
    return rows, answers


def measure(
    model: q.Qwen3LLaDA,
    folder: Folder,
    requests: Sequence[Request],
    answers: Sequence[str | None],
    variant: Variant,
    flags: Flags,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(quality, forward passes and speed of one way to sample, what `Points` has of it). Tokens end with the text."""
    size = completions.rows_of_a_batch(len(requests), flags.batch_size, folder.ways)
    written: list[Completion] = []
    seconds = 0.0
    log_p: list[np.ndarray] = []  # of each text's tokens
    stops, distinct = variant.settings.eos_token_ids or (), []

    def write() -> Iterator[Timed]:
        return timed(completions.write(model, folder, requests, variant.settings, seed=flags.seed, rows=size))

    next(write())  # a first call pays for more than compiling
    for batch in write():
        seconds += batch.seconds
        distinct += [
            quality.distinct_share(up_to_stop(ids, stops))
            for _, ids in zip(batch.completions, batch.result.answers(), strict=False)
        ]
        if answers[0] is None:
            with folder.on_mesh():
                found = quality.log_probability(model, batch.result, variant.settings)
            log_p += [x[np.isfinite(x)] for x in found[: len(batch.completions)]]
        written += batch.completions
    if any(w.error for w in written):
        raise InputError(f"rule {variant.rule}: {next(w.error for w in written if w.error)}; weights are damaged")
    tokens, nfe = sum(w.tokens for w in written), sum(w.nfe for w in written)
    n = len(written)
    result: dict[str, Any] = {"rule": variant.rule, "steps": variant.steps}
    if answers[0] is not None:
        name, match = quality.match_of(flags.match)
        pairs = [(quality.without_empty_thought(w.text), str(a)) for w, a in zip(written, answers, strict=True)]
        good = np.array([match(text, quality.without_empty_thought(answer)) for text, answer in pairs], np.float64)
        right, out_of = int(good.sum()) / n, np.ones(n)
        result |= {name: right, "standard_error": (right * (1 - right) / n) ** 0.5}
    else:
        every = np.concatenate(log_p)
        good, out_of = (np.array([f(x) for x in log_p], np.float64) for f in (np.sum, np.size))
        result |= {"log_probability": float(every.mean()) if every.size else None}
    speed = {"nfe": nfe / n, "tokens_per_forward": tokens / nfe, "tokens_per_second": tokens / seconds}
    of_each = [good, out_of, *(np.array([getattr(w, x) for w in written], np.float64) for x in ("tokens", "nfe"))]
    return {**result, "distinct_4grams": float(np.mean(distinct)), **speed}, of_each


if __name__ == "__main__":
    cli.run(main, leaves_at_once=True)
