"""Measure a model: how likely it finds texts (--data), or how it does in tasks of lm-evaluation-harness (--tasks).

    python -m sample.evaluate --model runs/base --data held_out.txt --out out/likelihood
    python -m sample.evaluate --model models/smollm2 --data held_out.txt --block-length 4 --samples 8
    python -m sample.evaluate --model runs/sft --data answers.jsonl --chat
    python -m sample.evaluate --model runs/sft --tasks gsm8k,hellaswag --chat --out out/tasks

--data is a .txt (one text), or a .jsonl (.json, .csv, .parquet, .arrow) whose lines have `text`, or prompts with
answers or conversations in any format that training reads: of these the answers are measured, given their prompts.
Long texts are read in windows that move on by --stride; each token is counted once. docs/likelihood.md says what is
computed: the likelihood where it is exact, else a bound (NELBO), ± standard error. The error is that of the noise that
was drawn, not of the choice of texts; where tokens are written one by one nothing is drawn.

--tasks are names or patterns of lm-evaluation-harness (pip install lm-eval), or .yaml files of one's own, joined by
commas; settings of the sampler are for those that generate (docs/evaluation.md).
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.atomic_files import check_folder, make_folder, write_text
from qwen3llada_jax.likelihood.api import check_samples, each, rows_of
from qwen3llada_jax.likelihood.reading import Reading, reading_of
from qwen3llada_jax.model.config import VISIBILITIES
from qwen3llada_jax.pictures import pyplot, write_picture
from qwen3llada_jax.writing.opening import Folder

from . import inputs
from .answers import check_place
from .flags import THINKING, MeshFlags, SamplerFlags, check_counts
from .measuring import passages
from .measuring.passages import Line, Passage, Window
from .measuring.tally import BANDS, Tally, check_finite, grouped
from .progress import tracked
from .tasks import run as tasks

_PLACES_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(SamplerFlags, MeshFlags):
    mesh_data: int | None = flag("size of the mesh axis data (default: what is left)", None, names=["--mesh-data"])
    data: Path | None = flag("texts, or prompts with answers: .txt, .jsonl, .parquet, …", None)
    tasks: str | None = flag("tasks of lm-evaluation-harness, as gsm8k,hellaswag or mine.yaml", None, metavar="NAMES")
    include_path: Path | None = flag("folder with more tasks, as .yaml files", None)
    num_fewshot: int | None = flag("examples before each question (default: the task's)", None)
    fewshot_as_multiturn: bool | None = flag("with --chat: examples are turns of their own (default: on)", None)
    system: str | None = flag("with --chat and --tasks: begins every chat", None)
    chat: bool = flag("put prompts (and answers of --data) through the tokenizer's chat template", False)
    enable_thinking: bool | None = flag(THINKING, None)
    samples: int = flag("draws of noise for each row, an even number (default: %(default)s)", 16)
    window: int | None = flag("tokens of a text read at once (default: the model's positions, at most 1024)", None)
    stride: int | None = flag("tokens by which windows move on (default: half a window)", None)
    visibility: str | None = flag("who sees whom (default: the model's own)", None, choices=VISIBILITIES)
    block_length: int | None = flag("tokens of a block (default: the model's own)", None)
    limit: int | None = flag("only so many lines of --data, or questions of each task", None)
    batch_size: int = flag("rows read or written together (default: %(default)s)", 8)
    out: Path | None = flag("folder for evaluate.json and evaluate.png, or results.json and samples of --tasks", None)

    def __post_init__(self) -> None:
        if (self.data is None) == (self.tasks is None):
            raise InputError("give what to measure: --data FILE or --tasks NAMES, one of the two")
        if self.data is not None:
            for name in (*tasks.FLAGS, *tasks.given_of_sampler(self)):
                if getattr(self, name) not in (None, False):
                    raise InputError(f"--{name.replace('_', '-')} is of --tasks; leave it out, or give --tasks")
        check_counts(self, "samples", "window", "stride", "block_length", "limit", "batch_size")
        try:
            check_samples(self.samples, "stratified")
        except InputError as error:
            raise InputError(f"--{error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Whatever can be refused is refused before the weights are read."""
    flags = cli.parse(Flags, arguments)
    if flags.data is None:
        tasks.run(flags)
        return
    lines = passages.read(flags.data, flags.limit, chat=flags.chat)
    check_kind(lines, flags)
    if flags.out:
        pyplot()
        check_folder(flags.out)
    else:
        cli.check_output()
    folder = inputs.open_model(flags)
    how = reading_of(
        folder.config, visibility=flags.visibility, block_length=flags.block_length, mask_token_id=flags.mask_token_id
    )
    asked, how, said = rows_to_read(lines, folder, how, flags)
    if flags.out:  # once nothing else is refused: no empty folder is left
        make_folder(flags.out)
        for name in ("evaluate.json", "evaluate.png"):
            check_place("--out", flags.out / name, {"--data": flags.data}, folder.path)
    print(said, file=sys.stderr)
    inputs.say_if_bound_is_loose(folder, how.is_chain)
    results = measure(folder, asked, how, flags)
    report(results, said, how, flags)


def check_kind(lines: Sequence[Line], flags: Flags) -> None:
    """Refuse flags that mean nothing for what the file holds.

    Raises:
        InputError: naming them.
    """
    has_talk = any(line.talk is not None for line in lines)
    if lines[0].text is not None and flags.chat:
        raise InputError(f"--chat: {flags.data} has texts, and no prompts with answers; leave it out")
    if flags.enable_thinking is not None and not has_talk:
        raise InputError("--enable-thinking belongs to a chat; add --chat")
    if lines[0].text is None:
        for name in ("window", "stride"):
            if getattr(flags, name) is not None:
                raise InputError(f"--{name} is of texts; an answer is read whole behind its prompt, so leave it out")


def rows_to_read(
    lines: Sequence[Line], folder: Folder, how: Reading, flags: Flags
) -> tuple[list[Passage], Reading, str]:
    """(the rows, how they are read, a line that says it)."""
    blocks = f"visibility {how.visibility}"
    if how.visibility != "full":
        blocks += f", blocks of {how.block_length}"
    given = "; the first token is given, not counted, for the model predicts a token at the one before it"
    if lines[0].text is None:
        found, left_out = passages.of_answers(lines, folder, enable_thinking=flags.enable_thinking, shift=how.shift)
        said = f"{blocks}; {len(found):,} answers, each given its prompt"
        said += f" ({left_out:,} left out: empty, or not to be learned)" if left_out else ""
        return found, how, said
    # What stands in a window before the tokens that it counts is text, no prompt: blocks begin with the window.
    how = dataclasses.replace(how, block_origin="start")
    window = passages.window_of(dataclasses.replace(folder.config, shift=how.shift), how.block_length, flags.window,
                                flags.stride)  # fmt: skip
    found = passages.of_texts(lines, folder, window, shift=how.shift)
    if not any(passage.ids for passage in found):
        raise InputError(f"{flags.data}: nothing to measure in it")
    said = f"{blocks}; {_in_windows(found, len(lines), window)}" + (given if how.shift else "")
    return found, how, said


def _in_windows(found: Sequence[Passage], texts: int, window: Window) -> str:
    count = f"{texts:,} text" + ("s" if texts > 1 else "")
    if all(not passage.given for passage in found):
        return f"{count} read whole"
    return (
        f"{count} in {len(found):,} windows of {window.length} tokens that move on by {window.stride}: each "
        f"token is counted once, behind at least {window.length - window.stride} others but in a text's first window"
    )


def measure(folder: Folder, asked: Sequence[Passage], how: Reading, flags: Flags) -> dict[str, Any]:
    """Read the weights and every row, and sum up."""
    model = folder.load(flags.dtype)
    rows = rows_of(model, [p.ids for p in asked], [p.given for p in asked], flags.seed)
    tally = Tally(how.block_length if how.in_blocks else None)
    with folder.on_mesh():
        found = each(model, rows, how, flags.samples, "stratified", flags.batch_size)
        for number, draws in tracked(found, "measuring", len(asked)):
            check_finite(draws.value, asked[number].where)
            tally.add(draws, _places(asked[number], draws.start.size, how), asked[number].size)
    results = tally.results()
    if not results["tokens"]:
        raise InputError(f"{flags.data}: has no token to count; with shift a text's first is given")
    return results


def _places(passage: Passage, counted: int, how: Reading) -> np.ndarray | None:
    """Where in its block each counted token stands."""
    if not how.in_blocks:
        return None
    assert how.block_length is not None
    position = np.arange(len(passage.ids) - counted, len(passage.ids))
    return (position - how.counted_from(passage.given)) % how.block_length


# ---- what comes out ------------------------------------------------------------------------------------------


def report(results: Mapping[str, Any], said: str, how: Reading, flags: Flags) -> None:
    """The table, and with --out the figures and their picture."""
    bound = "" if results["is_exact"] else " (bound)"
    table = Table("measured", f"mean{bound}", "± standard error", "of")
    for name, title, unit, digits in (
        ("nats_per_token", "nats/token", f"{results['tokens']:,} tokens", 4),
        ("bits_per_byte", "bits/byte", f"{results['bytes']:,} bytes", 4),
        ("perplexity", "perplexity", "", 2),
    ):
        table.add_row(title, *_numbers(results[name] | {"is_exact": results["is_exact"]}, digits), unit)
    if not results["is_exact"]:
        table.add_section()
        for band in results["by_level"]:
            if band["mean"] is not None:
                title = f"nats/token, {band['above']:.0%} to {band['up_to']:.0%} noised"
                table.add_row(title, *_numbers(band, 4), f"{band['share']:.0%} of the draws")
    if len(results["by_place"]) > 1:
        table.add_section()
        for group in grouped(results["by_place"], _PLACES_SHOWN):
            first, last = group["first"] + 1, group["last"] + 1
            which = f"token {first}" if first == last else f"tokens {first} to {last}"
            table.add_row(f"nats/token, {which} of a block", *_numbers(group, 4), f"{group['tokens']:,} tokens")
    # A pipe has no columns to be cut at.
    Console(width=None if sys.stdout.isatty() else 1 << 12).print(table)
    if flags.out:
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(flags).items()}
        whole = {"flags": asked, "read": said, "reading": dataclasses.asdict(how), "results": results}
        write_text(flags.out / "evaluate.json", json.dumps(whole, indent=1, allow_nan=False) + "\n")
        draw(results, flags.out / "evaluate.png")
        print(f"{flags.out}: evaluate.json, evaluate.png", file=sys.stderr)


def _numbers(found: Mapping[str, Any], digits: int) -> tuple[str, str]:
    mean, error = found["mean"], found["standard_error"]
    said = "exact" if found["is_exact"] else "—" if error is None else f"{error:.{digits}f}"
    return "—" if mean is None else f"{mean:.{digits}f}", said


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Nats per token by noise level, and by place in the block, with two standard errors each."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    levels = [band for band in results["by_level"] if band["mean"] is not None]
    for axis, found, at, label in (
        (axes[0], levels, [(b["above"] + b["up_to"]) / 2 for b in levels], f"noise level, in {BANDS} bands"),
        (axes[1], results["by_place"], [p["place"] + 1 for p in results["by_place"]], "place in the block"),
    ):
        errors = [2 * (x["standard_error"] or 0.0) for x in found]
        axis.errorbar(at, [x["mean"] for x in found], errors, fmt="o-", capsize=3)
        axis.axhline(results["nats_per_token"]["mean"], color="gray", linewidth=1, linestyle="--")
        axis.set(xlabel=label)
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    if not results["by_place"]:
        axes[1].text(0.5, 0.5, "no blocks", ha="center", transform=axes[1].transAxes)
    axes[0].set(ylabel="nats/token ± 2 standard errors", xlim=(0, 1))
    write_picture(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main, leaves_at_once=True)
