"""Write text by unmasking.

    python -m sample.generate --model models/qwen3-0.6b --prompt "The capital of France is" --steps 64 --gen-length 64
    python -m sample.generate --model runs/chat --chat --prompt "What is a haiku?" --live --trace haiku.html
    python -m sample.generate --model runs/chat --chat --prompts asks.jsonl --batch-size 16 --out answers.jsonl
    python -m sample.generate --model models/qwen3-0.6b --infill "The capital of<mask:2> is Paris."

--model takes a model folder, a training run, or a Hugging Face folder of safetensors. Lengths, blocks and
steps must divide: --gen-length into blocks of --block-length, --steps among the blocks.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.cli import flag
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.writing import completions
from qwen3llada_jax.writing.completions import Completion, Watcher
from qwen3llada_jax.writing.opening import Folder
from qwen3llada_jax.writing.requests import Request

from . import answers, inputs, own_rules
from .answers import check_place
from .clock import Timed, timed
from .flags import THINKING, MeshFlags, SamplerFlags, check_counts, own_settings, settings_of, told
from .live import show_live
from .progress import tracked
from .traces.trace import Trace, check_trace_path, write_trace


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What to write."""

    prompt: list[str] | None = flag("text to go on from; several make a batch", None)
    prompts: Path | None = flag(
        ".txt, or .jsonl (.parquet, …) with prompt, infill, or a conversation", None, metavar="FILE"
    )
    infill: list[str] | None = flag("text with holes to fill: <mask>, or <mask:N> for N tokens", None)
    chat: bool = flag("put prompts through the tokenizer's chat template", False)
    system: str | None = flag("the chat's system prompt", None, metavar="TEXT")
    enable_thinking: bool | None = flag(THINKING, None)
    history: Path | None = flag("the chat so far: a .json list of {role, content}", None, metavar="FILE")
    num_samples: int = flag("texts for each prompt (default: 1)", 1)
    batch_size: int = flag("texts written together (default: 8)", 8)


@dataclass(frozen=True, kw_only=True)
class Out:
    """What comes out."""

    out: Path | None = flag("answers to this .jsonl instead of standard output", None, metavar="FILE")
    live: bool = flag("show the text while it is unmasked", False)
    trace: Path | None = flag(
        "when each token of the first batch was written, and how surely: .png .gif .html .json", None, metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class Flags(SamplerFlags, MeshFlags, Out, Ask):
    def __post_init__(self) -> None:
        check_counts(self, "num_samples", "batch_size")


def main(arguments: Sequence[str] | None = None) -> None:
    """Whatever can be refused is refused before the weights are read."""
    flags = cli.parse(Flags, arguments)
    settings_of(flags)
    rows = asked(flags)
    inputs.check_chat(rows, chat=flags.chat, system=flags.system, enable_thinking=flags.enable_thinking)
    check_places(flags)
    folder = inputs.open_model(flags)
    wanted = folder.ending(settings_of(flags, folder.config))
    check_samples(flags, wanted)
    requests = inputs.requests_of(
        rows,
        folder,
        chat=flags.chat,
        system=flags.system,
        enable_thinking=flags.enable_thinking,
        samples=flags.num_samples,
    )
    if flags.out:
        answers.check_columns(requests)
    size = completions.rows_of_a_batch(len(requests), flags.batch_size, folder.ways)
    settings = inputs.check_fit(requests, wanted, folder.config, size)
    inputs.say_own_settings(own_settings(flags, folder.config))
    inputs.say_if_untrained(folder, settings)
    inputs.say_if_approximate(settings, folder.config)
    texts: list[Completion] = []
    with _output(flags, folder, requests, wanted, size) as (stream, begin):
        if begin < len(requests):
            texts = _write(flags, folder, requests[begin:], settings, wanted, size, stream)
    if stream is not None:
        print(f"{flags.out}: {len(requests)} answers", file=sys.stderr)
    check_written(texts)


@contextlib.contextmanager
def _output(
    flags: Flags, folder: Folder, requests: Sequence[Request], settings: SamplerConfig, size: int
) -> Iterator[tuple[BinaryIO | None, int]]:
    """(the file of --out, if there is one; how many answers it has already)."""
    if not flags.out:
        yield None, 0
        return
    command = {
        **told(settings),
        **({"rule": own_rules.fingerprint(flags.rule)} if flags.rule else {}),
        "model": folder.identity(),
        "dtype": flags.dtype,
        "seed": flags.seed,
        "trace": str(flags.trace),
        "asked": answers.fingerprint(requests),
    }
    with answers.growing(flags.out, command, requests, size) as (stream, begin):
        yield stream, begin


def _write(
    flags: Flags,
    folder: Folder,
    requests: Sequence[Request],
    settings: SamplerConfig,
    wanted: SamplerConfig,
    size: int,
    stream: BinaryIO | None,
) -> list[Completion]:
    """Read the weights, write every text, and say what it took."""
    model = folder.load(flags.dtype)
    inputs.say_if_rounded(model, settings, size)
    trace = Trace() if flags.trace and wanted.revise else None
    watcher = watcher_of(flags, folder.tokenizer, trace, wanted.eos_token_ids or ())
    written = completions.write(model, folder, requests, wanted, seed=flags.seed, rows=size, watcher=watcher)
    count = -(-len(requests) // size)
    batches = timed(written)
    if count > 1 and not flags.live:
        batches = tracked(batches, "batches", count)
    done = emit(batches, flags, folder.tokenizer, settings, trace, stream)
    print(summary(done, flags.seed), file=sys.stderr)
    return done[0]


def check_samples(flags: Flags, settings: SamplerConfig) -> None:
    """Refuse several samples that would all be the same.

    Raises:
        InputError: nothing is random.
    """
    is_random = settings.temperature or settings.remasking in ("random", "random_topk")
    is_random = is_random or (settings.revise and settings.revise_by == "random") or flags.rule
    if flags.num_samples > 1 and not is_random:
        raise InputError("--num-samples: without randomness all samples are the same; set --temperature")


def check_written(texts: Sequence[Completion]) -> None:
    """Refuse to end as if all were well.

    Raises:
        InputError: naming the texts that could not be written.
    """
    failed = [text for text in texts if text.error]
    if failed:
        named = ", ".join(str(text.request.number + 1) for text in failed[:10]) + (", …" if len(failed) > 10 else "")
        raise InputError(
            f"{len(failed)} of {len(texts)} texts could not be written: {failed[0].error}; weights are damaged, or "
            f"float16 overflows (--dtype float32). Prompts: {named}"
        )


def check_places(flags: Flags) -> None:
    """Refuse places that cannot be written to, or that are read.

    Raises:
        InputError: saying which.
    """
    inputs, model = {"--prompts": flags.prompts, "--history": flags.history}, Path(flags.model)
    if flags.out:
        if flags.out.suffix != ".jsonl":
            raise InputError(f"--out {flags.out}: unknown kind of file; use .jsonl")
        check_place("--out", flags.out, inputs, model)
    else:
        cli.check_output()
    if flags.trace:
        check_trace_path(flags.trace)
        check_place("--trace", flags.trace, {**inputs, "--out": flags.out}, model)


def asked(flags: Flags) -> list[dict[str, Any]]:
    """What is asked, as the lines of a file would say it.

    Raises:
        InputError: nothing, several things, or flags that mean nothing for them.
    """
    given = [f"--{name}" for name in ("prompt", "prompts", "infill") if getattr(flags, name) is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} both say what to write; give one of them")
    if flags.history is not None:
        if not flags.chat:
            raise InputError("--history belongs to a chat; add --chat")
        if given not in ([], ["--prompt"]):
            raise InputError(f"--history goes on with --prompt, not with {given[0]}")
        said = inputs.read_history(flags.history)
        asks = [[*said, {"role": "user", "content": text}] for text in flags.prompt or ()] or [said]
        return [{"messages": messages} for messages in asks]
    if not given:
        raise InputError("nothing to write; give --prompt TEXT, --prompts FILE or --infill TEXT (see --help)")
    if flags.prompts is not None:
        rows = inputs.from_file(flags.prompts)
    else:
        rows = [{given[0][2:]: text} for text in flags.prompt or flags.infill or ()]
    if "infill" in rows[0]:
        for name in ("gen_length", "stop_at_eos", "parallel_blocks"):
            value = getattr(flags, name)
            if value is not None:
                no = "no-" if value is False else ""
                raise InputError(f"--{no}{name.replace('_', '-')} means nothing when holes are filled; leave it out")
    return rows


def watcher_of(flags: Flags, tokenizer: Any, trace: Trace | None, stops: tuple[int, ...]) -> Watcher | None:
    """What looks at the canvases: the live view, the trace's memory of what was masked again, or nobody."""
    if not flags.live and trace is None:
        return None
    is_first = True

    def look(canvases: Iterator[q.Canvas]) -> q.Canvas:
        nonlocal is_first
        if trace is not None and is_first:
            canvases = trace.recording(canvases)
        is_first = False
        if flags.live:
            return show_live(canvases, tokenizer, stops=stops)
        *_, last = canvases
        return last

    return look


def emit(
    batches: Iterable[Timed],
    flags: Flags,
    tokenizer: Any,
    settings: SamplerConfig,
    trace: Trace | None,
    stream: BinaryIO | None,
) -> tuple[list[Completion], float, float]:
    """Print or write every text when its batch is done; (all of them, seconds, seconds of compiling)."""
    done: list[Completion] = []
    seconds = compiling = 0.0
    for batch in batches:
        if flags.trace and not done:  # before the lines, so that whoever goes on behind them has it
            rows = [i for i, completion in enumerate(batch.completions) if not completion.error]
            note = write_trace(flags.trace, trace or Trace(), batch.result, tokenizer, settings, rows)
            print(f"{flags.trace}: {note}", file=sys.stderr)
        if stream is not None:
            answers.add(stream, answers.records(batch, flags.seed))
        else:
            for completion in batch.completions:
                goes_on = completion.request.kind == "prompt" and not flags.chat
                if not completion.error:
                    print(completion.request.given + completion.text if goes_on else completion.text, flush=True)
        done += batch.completions
        seconds, compiling = seconds + batch.seconds, compiling + batch.compiling
    return done, seconds, compiling


def summary(done: tuple[list[Completion], float, float], seed: int) -> str:
    """Forward passes, tokens, speed and seed, in a line."""
    texts, seconds, compiling = done
    nfe, tokens = [text.nfe for text in texts], sum(text.tokens for text in texts)
    each = f"{nfe[0]}" if min(nfe) == max(nfe) else f"{sum(nfe) / len(nfe):.1f} ({min(nfe)} to {max(nfe)})"
    speed = f"{tokens / seconds:.1f} tokens/s · {tokens / sum(nfe):.2f} tokens per forward"
    took = f"{seconds:.2f} s, with compiling {seconds + compiling:.2f} s"
    return f"NFE {each} · {tokens} tokens · {speed} · {took} · seed {seed}"


if __name__ == "__main__":
    cli.run(main, leaves_at_once=True)
