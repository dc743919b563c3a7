"""Compare rules of sampling: quality against forward passes and speed.

    python -m sample.compare --model runs/sort --data held_out.jsonl --chat --gen-length 16 \\
        --rules low_confidence,margin,random,threshold=0.9,entropy+entropy_bound=0.3 --steps 16,8,4,2 --out out/compare

--data is a .jsonl with `prompt` (or `messages`) and, if there is a right answer, `answer` (or `completion`). Quality
is then the share of exact answers. Without answers it is the model's own opinion of the finished text: the mean
log-probability of its tokens, each given all others (a quarter of them masked at a time), together with the share of
distinct 4-grams, because a text that repeats itself is likely too.

A rule is the name of a confidence rule, an adaptive `threshold=`, `factor=` or `entropy_bound=`, or several joined by
`+`. Rules with a fixed budget run once for each of --steps, adaptive ones once, without a limit on their steps.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import qwen3llada_jax as q
from qwen3llada_jax import command_line
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.files import make_folder, write_text
from qwen3llada_jax.pictures import pyplot
from qwen3llada_jax.rules import CONFIDENCE_RULES
from qwen3llada_jax.sampler_config import SamplerConfig
from sample import prompts
from sample.flags import Opened, add_model_flags, add_setting_flags, open_model, say_if_approximate, settings_of

_ADAPTIVE = ("threshold", "factor", "entropy_bound")


def main() -> None:
    flags = parse()
    base = settings_of(flags)
    variants = variants_of(base, flags.rules, flags.steps_list)
    rows = prompts.from_file(flags.data)[: flags.limit]
    answers = [row.get("answer", row.get("completion")) for row in rows]
    if any("infill" in row for row in rows) or len({answer is None for answer in answers}) > 1:
        raise InputError(f"{flags.data}: every line needs a prompt (or messages), and an answer all of them or none")
    if flags.out:
        pyplot()
        make_folder(flags.out)
    opened, base = open_model(flags, base)
    for variant in variants.values():
        variant.for_model(opened.model.config)
        say_if_approximate(variant, opened.model.config)
    ids = [encode(opened, row, chat=flags.chat) for row in rows]
    found = []
    with opened.on_mesh():
        for name, variant in track(variants.items(), "comparing", console=Console(stderr=True), transient=True):
            settings = dataclasses.replace(variant, eos_token_ids=base.eos_token_ids)
            found.append({"rule": name, **measure(opened, ids, answers, settings, flags)})
    report(found, flags)


def parse() -> Any:
    """The command line."""
    parser = command_line.Parser(__doc__)
    add_model_flags(parser)
    parser.add_argument("--data", type=Path, required=True, help=".jsonl with prompt (or messages) and maybe answer")
    parser.add_argument("--rules", default="low_confidence,margin,entropy,random,left_to_right,threshold=0.9")
    parser.add_argument("--chat", action="store_true", help="put prompts through the tokenizer's chat template")
    parser.add_argument("--limit", type=int, help="only so many lines of --data")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts written together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for compare.json and compare.png")
    add_setting_flags(parser)
    steps = next(action for action in parser._actions if "--steps" in action.option_strings)
    steps.type, steps.help = str, "budgets of the rules with a fixed one, as 32,16,8 (default: one pass for each token)"
    flags = parser.parse()
    try:
        flags.steps_list = [int(n) for n in flags.steps.split(",")] if flags.steps else [None]
    except ValueError as error:
        raise InputError(f"--steps takes numbers joined by commas, not {flags.steps!r}") from error
    flags.steps = None
    for name in ("limit", "batch_size"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(flags, name)}")
    return flags


def variants_of(base: SamplerConfig, rules: str, steps: list[int | None]) -> dict[str, SamplerConfig]:
    """Name → settings of everything that is compared.

    Raises:
        InputError: a rule that does not exist, or an impossible value.
    """
    variants: dict[str, SamplerConfig] = {}
    for rule in rules.split(","):
        change: dict[str, Any] = {}
        for part in rule.strip().split("+"):
            name, equals, value = part.partition("=")
            if equals and name in _ADAPTIVE:
                try:
                    change[name] = float(value)
                except ValueError as error:
                    raise InputError(f"--rules: {name} takes a number, not {value!r}") from error
            elif part in CONFIDENCE_RULES:
                change["remasking"] = part
            else:
                known = [*CONFIDENCE_RULES, *(f"{n}=" for n in _ADAPTIVE)]
                raise InputError(f"--rules: unknown rule {part!r}" + command_line.nearest(part, known))
        settings = dataclasses.replace(base, **change)
        for budget in [None] if settings.adaptive else steps:
            name = rule.strip() if budget is None else f"{rule.strip()}, {budget} steps"
            variants[name] = dataclasses.replace(settings, steps=budget)
    return variants


def encode(opened: Opened, row: dict[str, Any], *, chat: bool) -> list[int]:
    """A line's ids."""
    if "messages" in row:
        return prompts.encode_chat(opened.tokenizer, row["messages"])
    if chat:
        return prompts.encode_chat(opened.tokenizer, [{"role": "user", "content": row["prompt"]}])
    return prompts.encode(opened.tokenizer, row["prompt"])


def measure(
    opened: Opened, ids: list[list[int]], answers: list[str | None], settings: SamplerConfig, flags: Any
) -> dict[str, Any]:
    """Quality, NFE and speed of one way to sample."""
    size = min(flags.batch_size, len(ids))
    size += -size % opened.rows
    key = jax.random.key(flags.seed)
    right, seconds, tokens, nfe, passes, likely, distinct = 0, 0.0, 0, 0, 0, [], []
    for begin in range(0, len(ids), size):
        batch = ids[begin : begin + size]
        count = len(batch)
        batch = batch + batch[-1:] * (size - count)
        numbers = jnp.arange(begin, begin + size)
        keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers)
        compiled = None
        while compiled != q.compilations():  # a run that compiled says nothing about speed: once more
            compiled, start = q.compilations(), time.perf_counter()
            result = jax.block_until_ready(q.generate(opened.model, batch, settings, key=keys))
            took = time.perf_counter() - start
        seconds += took
        tokens += int((np.asarray(result.written_at)[:count] >= 0).sum())
        nfe += int(np.asarray(result.nfe)[:count].sum())
        passes += int(np.asarray(result.nfe)[:count].sum() / (2 if settings.cfg_scale else 1))
        for answer, expected in zip(result.answers()[:count], answers[begin : begin + count], strict=True):
            written = prompts.up_to_stop(answer, settings.eos_token_ids or ())
            if expected is not None:
                text = opened.tokenizer.decode(written, skip_special_tokens=True)
                right += text.strip() == expected.strip()
            distinct.append(distinct_share(written))
        if answers[0] is None:
            likely.append(float(log_probability(opened.model, result, settings)))
    quality = (
        {"exact": right / len(ids)}
        if answers[0] is not None
        else {"log_probability": float(np.mean(likely)), "distinct_4grams": float(np.mean(distinct))}
    )
    speed = {"nfe": nfe / len(ids), "tokens_per_pass": tokens / passes, "tokens_per_second": tokens / seconds}
    return {**quality, **speed}


def distinct_share(ids: list[int], n: int = 4) -> float:
    """Distinct n-grams of all n-grams; 1 for a text shorter than that."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def log_probability(model: q.Qwen3LLaDA, result: q.Generation, settings: SamplerConfig, strides: int = 4) -> jax.Array:
    """Mean log p(token | all others visible), in nats: every `strides`-th answer token is masked at a time."""
    complete = settings.for_model(model.config)
    L = result.tokens.shape[1]
    written = result.written_at >= 0
    in_blocks = complete.visibility != "full"
    end = result.prompt_length + settings.gen_length
    mask = q.Mask(
        complete.visibility or "full",
        complete.block_length if in_blocks else None,
        prompt_length=result.prompt_length if in_blocks else None,
        is_real=jnp.arange(L)[None] < end[:, None],
    )
    place = jnp.arange(L)[None] - result.prompt_length[:, None]
    total = jnp.float32(0)
    for stride in range(strides):
        where = written & (place % strides == stride)
        hidden = model.hidden(jnp.where(where, complete.mask_token_id or 0, result.tokens), mask)
        _, ce = q.cross_entropy(hidden, model.head, result.tokens, jnp.zeros(where.shape), where)
        total -= ce.sum()
    return total / written.sum()


def report(found: list[dict[str, Any]], flags: Any) -> None:
    """The table, and with --out the figures and their picture."""
    is_exact = "exact" in found[0]
    quality = "exact" if is_exact else "log_probability"
    table = Table(
        "rule", *(["exact"] if is_exact else ["log p a token", "distinct 4-grams"]), "NFE", "tokens a pass", "tokens/s"
    )
    for row in found:
        good = (
            [f"{row['exact']:.1%}"] if is_exact else [f"{row['log_probability']:.3f}", f"{row['distinct_4grams']:.1%}"]
        )
        numbers = [f"{row[k]:.1f}" for k in ("nfe", "tokens_per_pass", "tokens_per_second")]
        table.add_row(row["rule"], *good, *numbers)
    Console().print(table)
    if not flags.out:
        return
    write_text(flags.out / "compare.json", json.dumps(found, indent=1) + "\n")
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for rule in dict.fromkeys(row["rule"].split(", ")[0] for row in found):
        rows = sorted((r for r in found if r["rule"].split(", ")[0] == rule), key=lambda r: r["nfe"])
        for axis, name in zip(axes, ("nfe", "tokens_per_second"), strict=True):
            axis.plot([r[name] for r in rows], [r[quality] for r in rows], "o-", label=rule)
    axes[0].set(
        xlabel="NFE (forward passes a text)", ylabel="exact answers" if is_exact else "log p a token", xscale="log"
    )
    axes[1].set(xlabel="tokens/s", xscale="log")
    axes[0].legend(fontsize="small")
    part = flags.out / ".compare.png.part"
    figure.savefig(part, dpi=130, format="png")
    part.replace(flags.out / "compare.png")
    plt.close(figure)


if __name__ == "__main__":
    command_line.run(main)
