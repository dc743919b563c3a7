"""Servers as users start them, on free ports of this machine."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
from conftest import ROOT, SOON_COMPILED, TINY

BLOCKS = ("--block-length", "8", "--visibility", "block_causal", "--dtype", "float32", "--temperature", "0")


@dataclass
class Server:
    """A running server.

    Attributes:
        log: what it has printed on standard error.
    """

    url: str
    process: subprocess.Popen
    log: list[str]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", content=json.dumps(body), timeout=120)

    @property
    def is_ready(self) -> bool:
        """Whether requests are written at once."""
        try:
            return httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            assert self.process.poll() is None, "".join(self.log)
            return False

    def number(self, name: str, **labels: str) -> float:
        """A number of /metrics, summed over the labels that are not named."""
        text, total = httpx.get(f"{self.url}/metrics").text, 0.0
        for line in text.splitlines():
            if re.match(rf"qwen3llada_{name}(\{{|\s)", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.split()[-1])
        return total

    def wait_until_free(self, seconds: float = 30) -> None:
        """Until nothing is written and nothing waits."""
        end = time.monotonic() + seconds
        while self.number("slots_taken") + self.number("waiting"):
            assert time.monotonic() < end, "a slot is still taken"
            time.sleep(0.05)


@contextmanager
def server(*flags: str, model: Path = TINY, wait: bool = True, **environment: str) -> Iterator[Server]:
    """A server of the model; it is stopped at the end, and must then end with 0."""
    command = [
        sys.executable,
        *os.environ.get("SHIM", "-m sample.serve").split(),
        "--model",
        str(model),
        "--port",
        "0",
        *flags,
    ]
    environment = {**os.environ, "XLA_FLAGS": SOON_COMPILED, **environment}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    log, url = list[str](), None
    assert process.stderr is not None
    for line in process.stderr:
        log.append(line)
        if found := re.search(r"http://\S+", line):
            url = found[0]
            break
    assert url, "".join(log)
    threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True).start()
    made = Server(url, process, log)
    try:
        while wait and not made.is_ready:
            time.sleep(0.1)
        yield made
        if process.poll() is None:
            process.terminate()
        assert process.wait(60) == 0, "".join(log)
    finally:
        process.kill()
        process.wait()
