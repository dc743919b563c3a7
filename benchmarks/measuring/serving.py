"""A server under load: what is lost, what is wrong, how fast, and whether its memory grows.

    python -m benchmarks.measuring.serving [--requests 200] [--concurrency 1,4,16,64] [--model DIR]

Requests of mixed length, half of them streamed, each compared with what `q.generate` writes alone. Beside their tokens
a second stand those of `q.generate` itself, one text at a time and sixteen, over the same requests: what batches are
worth to the sampler is the most that they can be to the server.
"""

import argparse
import dataclasses
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qwen3llada_jax as q
from benchmarks.run_all import ON_THE_CPU
from qwen3llada_jax.writing import completions, requests
from qwen3llada_jax.writing.opening import open_folder

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"block_length": 8, "visibility": "block_causal", "temperature": 0.0}
TEXTS = (
    "ROMEO:\n",
    "What say you, my lord? ",
    "The king ",
    "Good 你好 🙂 ",
    "O, for a muse of fire, that would ascend ",
)
LENGTHS = (16, 64)  # tokens to write
SLOTS = 16


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request, and the text that it must have."""

    prompt: str
    tokens: int
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of it: None where nothing did."""

    text: str | None
    tokens: int
    first: float
    whole: float


def main() -> None:
    os.environ.update(ON_THE_CPU)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "tiny-qwen3")
    parser.add_argument("--requests", type=int, default=200, help="at each concurrency (default: %(default)s)")
    parser.add_argument("--concurrency", default="1,4,16,64", help="(default: %(default)s)")
    parser.add_argument(
        "--flood", type=int, default=2000, help="requests while memory is watched (default: %(default)s)"
    )
    flags = parser.parse_args()
    asks, alone = answered(flags.model, drawn(flags.requests))
    print(f"q.generate: {alone[1]:.1f} tokens/s one by one, {alone[SLOTS]:.1f} in batches of {SLOTS}: "
          f"{alone[SLOTS] / alone[1]:.2f} times")  # fmt: skip
    print("| at once | lost | wrong | tokens/s | first text, s: median, 95% | whole, s: median, 95% | programs |")
    print("|---|---|---|---|---|---|---|")
    speeds = {}
    with serving(flags.model) as (port, process):
        under_load(port, asks[:SLOTS], SLOTS)  # a first time for every program
        for at_once in map(int, flags.concurrency.split(",")):
            begin = time.perf_counter()
            found = under_load(port, asks, at_once)
            speeds[at_once] = sum(a.tokens for a in found) / (time.perf_counter() - begin)
            print(row(at_once, asks, found, speeds[at_once], number(port, "programs")), flush=True)
        if {1, SLOTS} <= speeds.keys():
            gain, most = speeds[SLOTS] / speeds[1], alone[SLOTS] / alone[1]
            print(f"{SLOTS} at once are {gain:.2f} times as fast: {gain / most:.0%} of what batches give generate")
        before = resident(process)
        for part in range(4):
            count = flags.flood // 4
            found = under_load(port, (asks * (count // len(asks) + 1))[:count], SLOTS)
            lost = sum(a.text is None for a in found)
            print(
                f"memory after {(part + 1) * count} more requests: {resident(process) / before:.3f} times, {lost} lost"
            )
    for kept in (0, 8):
        first, second = turns(flags.model, kept)
        print(f"--kept-turns {kept}: a turn's first text after {first:.3f} s, the next one's after {second:.3f} s")


def turns(model: Path, kept: int) -> tuple[float, float]:
    """Seconds to the first text of a long chat's first turn and of its second, medians of seven chats."""
    found: list[list[float]] = [[], []]
    with serving(model, f"--kept-turns={kept}") as (port, _):
        for number in range(8):
            said = [{"role": "user", "content": f"{number} " + "Good pilgrim, you do wrong your hand too much. " * 40}]
            for turn in found:
                body = {"messages": said, "max_tokens": 16, "seed": 0, "stream": True}
                answer = streamed(port, "/v1/chat/completions", body)
                assert answer.text is not None
                turn.append(answer.first)
                said += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And then?"}]
    first, second = (statistics.median(turn[1:]) for turn in found)  # the first chat may compile
    return first, second


def drawn(count: int) -> list[Ask]:
    draw = random.Random(0)
    return [Ask(draw.choice(TEXTS) * draw.randint(1, 4), draw.choice(LENGTHS)) for _ in range(count)]


def answered(path: Path, asks: Sequence[Ask]) -> tuple[list[Ask], dict[int, float]]:
    """(requests with their texts, tokens a second by the rows of a batch)."""
    folder = open_folder(path)
    model, found, speeds = folder.load("float32"), list[Ask](), dict[int, float]()

    def write(part: Sequence[Ask], rows: int) -> list[str]:
        settings = q.SamplerConfig(**SETTINGS, gen_length=max(ask.tokens for ask in part))
        rows_of = requests.from_rows([{"prompt": ask.prompt} for ask in part], folder.tokenizer, chat=False)
        batches = completions.write(model, folder, rows_of, folder.ending(settings), seed=0, rows=rows)
        return [c.text for batch in batches for c in batch.completions]

    found = [dataclasses.replace(ask, text=write([ask], 1)[0]) for ask in asks]
    by_length = sorted(asks, key=lambda ask: (ask.tokens, len(ask.prompt)))
    for rows in (1, SLOTS):
        parts = [by_length[i : i + rows] for i in range(0, len(by_length), rows)]
        for part in parts if rows > 1 else ():  # compiled before it is timed, as those of one text are by now
            write(part, rows)
        begin = time.perf_counter()
        for part in parts:
            write(part, rows)
        speeds[rows] = sum(ask.tokens for ask in asks) / (time.perf_counter() - begin)
    return found, speeds


@contextmanager
def serving(model: Path, *more: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """A server of the model, ready."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, "-m", "sample.serve", "--model", model, "--port", "0", "--dtype", "float32"]
    command += ["--slots", str(SLOTS), "--queue", "256", *flags, *more]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stderr is not None
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"http://\S+:(\d+)", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        while got(port, "/ready")[0] != 200:
            time.sleep(0.2)
        yield port, process
    finally:
        process.terminate()
        process.wait(60)


def got(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def under_load(port: int, asks: Sequence[Ask], at_once: int) -> list[Answer]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda one: ask_for(port, one[1], is_streamed=one[0] % 2 == 0), enumerate(asks)))


def ask_for(port: int, ask: Ask, *, is_streamed: bool) -> Answer:
    body: dict[str, Any] = {"prompt": ask.prompt, "max_tokens": ask.tokens, "stream": is_streamed, "seed": 0}
    if is_streamed:
        return streamed(port, "/v1/completions", body | {"stream_options": {"include_usage": True}})
    begin = time.perf_counter()
    answer = sent(port, "/v1/completions", body)
    value, took = json.loads(answer.read()), time.perf_counter() - begin
    if answer.status != 200:
        return Answer(None, 0, 0.0, took)
    return Answer(value["choices"][0]["text"], value["usage"]["completion_tokens"], took, took)


def sent(port: int, path: str, body: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", path, body=json.dumps(body))
    return connection.getresponse()


def streamed(port: int, path: str, body: Any) -> Answer:
    begin, text, tokens, first = time.perf_counter(), "", 0, 0.0
    answer = sent(port, path, body)
    if answer.status != 200:
        return Answer(None, 0, 0.0, time.perf_counter() - begin)
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        for choice in chunk["choices"]:
            text += choice["delta"]["content"] if "delta" in choice else choice["text"]
        first = first or (time.perf_counter() - begin if text else 0.0)
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return Answer(text, tokens, first, time.perf_counter() - begin)


def row(at_once: int, asks: Sequence[Ask], found: Sequence[Answer], speed: float, programs: float) -> str:
    lost = sum(answer.text is None for answer in found)
    wrong = sum(answer.text is not None and answer.text != ask.text for ask, answer in zip(asks, found, strict=True))
    first, whole = ([getattr(a, name) for a in found if a.text is not None] for name in ("first", "whole"))
    ends = [f"{statistics.median(x):.2f}, {statistics.quantiles(x, n=20)[-1]:.2f}" for x in (first, whole)]
    return f"| {at_once} | {lost} | {wrong} | {speed:.1f} | {ends[0]} | {ends[1]} | {programs:.0f} |"


def number(port: int, name: str) -> float:
    text = got(port, "/metrics")[1].decode()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"qwen3llada_{name} ")))


def resident(process: subprocess.Popen) -> int:
    """Bytes of memory that a process has."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


if __name__ == "__main__":
    main()
