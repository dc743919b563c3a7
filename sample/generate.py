"""Write text by unmasking.

    python -m sample.generate --model models/qwen3-0.6b --prompt "The capital of France is" --steps 64 --gen-length 64
    python -m sample.generate --model runs/chat --chat --prompt "What is a haiku?" --live --trace haiku.png
    python -m sample.generate --model runs/chat --prompts questions.jsonl --out answers.jsonl --batch-size 16
    python -m sample.generate --model models/qwen3-0.6b --infill "The capital of <mask:2> is Paris."

--model takes a model folder, a training run, or a Hugging Face folder of safetensors. Lengths, blocks and
steps must divide: --gen-length into blocks of --block-length, --steps among the blocks.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

import qwen3llada_jax as q
from qwen3llada_jax import command_line
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.sampler_config import SamplerConfig
from sample import prompts
from sample.flags import Opened, add_model_flags, add_setting_flags, open_model, say_if_approximate, settings_of
from sample.live import show_live
from sample.prompts import Request
from sample.trace import Trace, check_trace_path, write_trace


def main() -> None:
    flags = parse()
    settings = settings_of(flags)
    rows = asked(flags)
    infill = "infill" in rows[0]
    opened, settings = open_model(flags, settings, infill=infill)
    requests = [
        Request(number, sample, *encode(opened.tokenizer, row, flags))
        for number, row in enumerate(rows)
        for sample in range(flags.num_samples)
    ]
    if not infill:
        say_if_approximate(settings, opened.model.config)
    size = min(flags.batch_size, len(requests)) if flags.batch_size else len(requests)
    batches = [requests[i : i + size] for i in range(0, len(requests), size)]
    if flags.trace and len(batches) > 1:
        raise InputError(f"--trace shows one batch, here are {len(batches)}; ask fewer prompts")
    out = Answers(flags.out) if flags.out else None
    totals, nfe = np.zeros(4), 0
    for batch in track(batches, "writing", console=Console(stderr=True), disable=len(batches) == 1):
        begin, compiled = time.perf_counter(), q.compilations()
        result, trace = write(opened, batch, size, settings, infill, flags)
        seconds, compiled = time.perf_counter() - begin, q.compilations() - compiled
        count = (np.asarray(result.written_at)[: len(batch)] >= 0).sum()
        totals += (count, seconds, result.passes, compiled)
        for i, (request, text) in enumerate(zip(batch, texts(opened, batch, result, settings, infill), strict=True)):
            if out:
                out.add(line(request, text, result, i, seconds, flags.seed))
            else:
                print(text if infill or flags.chat or "messages" in rows[request.number] else request.text + text)
        if flags.trace:
            write_trace(flags.trace, trace, result, opened.tokenizer, settings, len(batch))
            print(f"{flags.trace}: when each token was written", file=sys.stderr)
        nfe = max(nfe, int(result.nfe.max()))
    if out:
        out.close()
    tokens, all_seconds, passes, compilations = totals
    print(
        f"NFE {nfe} · {int(tokens)} tokens, {tokens / passes:.1f} a pass, {tokens / all_seconds:.1f}/s · "
        f"{all_seconds:.1f} s {'with' if compilations else 'without'} compiling · seed {flags.seed}",
        file=sys.stderr,
    )


def parse() -> Any:
    """The command line."""
    parser = command_line.Parser(__doc__)
    add_model_flags(parser)
    parser.add_argument("--prompt", action="append", help="text to go on from; several make a batch")
    parser.add_argument("--prompts", type=Path, help="a file: lines, or .jsonl with prompt, messages or infill")
    parser.add_argument("--infill", action="append", help="text with holes to fill: <mask>, or <mask:N> for N tokens")
    parser.add_argument("--chat", action="store_true", help="put the prompt through the tokenizer's chat template")
    parser.add_argument("--system", help="the chat's system prompt")
    parser.add_argument("--history", type=Path, help="the chat so far: a JSON list of {role, content}")
    parser.add_argument("--num-samples", type=int, default=1, help="answers to each prompt (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="prompts written together (default: all)")
    parser.add_argument("--out", type=Path, help="write the answers to this .jsonl, one line each")
    add_setting_flags(parser)
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--live", action="store_true", help="show the text while it is unmasked")
    parser.add_argument("--trace", type=Path, help="when each token was written, and how surely: .png .gif .html .json")
    flags = parser.parse()
    if sum(bool(x) for x in (flags.prompt, flags.prompts, flags.infill)) != 1:
        raise InputError("give one of --prompt, --prompts and --infill")
    for name in ("num_samples", "batch_size"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(flags, name)}")
    if (flags.system or flags.history) and not flags.chat:
        raise InputError("--system and --history belong to a chat; add --chat")
    if flags.num_samples > 1 and not flags.temperature and flags.remasking not in ("random", "random_topk"):
        raise InputError("--num-samples: without randomness all samples are the same; set --temperature")
    if flags.out and not flags.out.absolute().parent.is_dir():
        raise InputError(f"--out {flags.out}: no such folder {flags.out.parent}")
    if flags.trace:
        check_trace_path(flags.trace)
    return flags


def asked(flags: Any) -> list[dict[str, Any]]:
    """What is asked, as the lines of a file would say it.

    Raises:
        InputError: prompts and holes mixed, or flags that mean nothing for them.
    """
    if flags.prompts:
        rows = prompts.from_file(flags.prompts)
    else:
        kind = "infill" if flags.infill else "prompt"
        rows = [{kind: text} for text in flags.infill or flags.prompt]
    if len({"infill" in row for row in rows}) > 1:
        raise InputError(f"{flags.prompts}: some lines have holes to fill and some go on from a prompt; use two files")
    if "infill" in rows[0]:
        for name in ("gen_length", "chat", "no_stop_at_eos", "parallel_blocks"):
            if getattr(flags, name):
                raise InputError(f"--{name.replace('_', '-')} means nothing when holes are filled; leave it out")
    return rows


def encode(tokenizer: Any, row: dict[str, Any], flags: Any) -> tuple[str, tuple[int | None, ...], dict[str, Any]]:
    """A line's text, its ids, and its other columns."""
    extra = {k: v for k, v in row.items() if k not in ("prompt", "messages", "infill")}
    if "infill" in row:
        return row["infill"], tuple(prompts.encode_holes(tokenizer, row["infill"])), extra
    if "messages" in row or flags.chat:
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        before = prompts.read_history(flags.history) if flags.history else []
        system = [{"role": "system", "content": flags.system}] if flags.system else []
        return messages[-1]["content"], tuple(prompts.encode_chat(tokenizer, [*system, *before, *messages])), extra
    return row["prompt"], tuple(prompts.encode(tokenizer, row["prompt"])), extra


def write(
    opened: Opened, batch: list[Request], size: int, settings: SamplerConfig, infill: bool, flags: Any
) -> tuple[q.Generation, Trace]:
    """One batch, filled up to `size` rows and to what the mesh divides, so that no batch compiles anew."""
    size += -size % opened.rows
    full = batch + batch[-1:] * (size - len(batch))
    seed = jax.random.key(flags.seed)
    numbers = jnp.asarray([(request.number, request.sample) for request in full])
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(seed, n[0]), n[1]))(numbers)
    texts: Any = [request.ids for request in full]
    trace = Trace()
    with opened.on_mesh():
        if not (flags.live or (flags.trace and settings.revise)):
            run = q.infill if infill else q.generate
            return jax.block_until_ready(run(opened.model, texts, settings, key=keys)), trace
        watch = q.watch_infill if infill else q.watch
        canvases: Iterator[q.Canvas] = trace.recording(watch(opened.model, texts, settings, key=keys))
        last = show_live(canvases, opened.tokenizer) if flags.live else [*canvases][-1]
        return q.finish(last), trace


def texts(
    opened: Opened, batch: list[Request], result: q.Generation, settings: SamplerConfig, infill: bool
) -> Iterator[str]:
    """What was written: each answer before its end, or each whole text with its holes filled."""
    for i, (request, answer) in enumerate(zip(batch, result.answers(), strict=False)):
        if infill:
            yield opened.tokenizer.decode(np.asarray(result.tokens)[i, : len(request.ids)])
        else:
            ids = prompts.up_to_stop(answer, settings.eos_token_ids or ())
            yield opened.tokenizer.decode(ids, skip_special_tokens=True)


def line(request: Request, text: str, result: q.Generation, row: int, seconds: float, seed: int) -> dict[str, Any]:
    """One line of --out. `seconds` are those of its batch, with compiling if it was the first."""
    written = np.asarray(result.written_at)[row] >= 0
    return {
        **request.extra,
        "prompt": request.text,
        "text": text,
        "tokens": result.answers()[row],
        "nfe": int(result.nfe[row]),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(float(written.sum() / seconds), 2),
        "seed": seed,
        "number": request.number,
        "sample": request.sample,
    }


class Answers:
    """A .jsonl that grows line by line beside its place, and takes it when complete."""

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_name(f".{path.name}.part")
        try:
            self.stream = self.part.open("w", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    def add(self, record: dict[str, Any]) -> None:
        """Write one line at once."""
        try:
            self.stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.stream.flush()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); {self.part} has the rest") from error

    def close(self) -> None:
        """Give the file its name."""
        self.stream.close()
        self.part.replace(self.path)


if __name__ == "__main__":
    command_line.run(main)
