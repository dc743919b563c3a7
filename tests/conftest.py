"""Shared ground of the tests: eight simulated devices, caches of their own, and what several files of tests use."""

import os
import tempfile

# Most of a test is compiling, which without LLVM's optimizations takes a sixth of the time; what is computed stays the
# same. The programs that tests start are compiled so too, but for those of soak tests and those that ask for it
# (`run_program(…, as_users=True)`).
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=2"
)
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # to note where each operation was called is a seventh of tracing
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tests and the programs they start compile the same steps again and again: share them for this session.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share what the first process made
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import dataclasses
import gc
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx
from no_skips import (  # noqa: F401 (hooks)
    pytest_collection_modifyitems,
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.text.tokens import load_tokenizer

SOON_COMPILED = " ".join(x for x in os.environ["XLA_FLAGS"].split() if "device_count" not in x)
ROOT = Path(__file__).parent.parent
TINY = ROOT / "examples" / "tiny-qwen3"
DATA = ROOT / "examples" / "data"
QWEN3_TEMPLATE = ROOT / "tests" / "data" / "qwen3_chat_template.jinja"

# What JAX has traced is millions of objects, which live as long as the tests do: to look through them less often saves
# a twentieth of the time.
gc.set_threshold(50_000, 20, 100)
# Behind `nohup` or `&` these are ignored, and would be by every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def trained(model: Qwen3LLaDA, mask_token_id: int, **facts) -> Qwen3LLaDA:
    """The same weights of a model that was trained so, its mask token the first id that no token has."""
    other = nnx.merge(*nnx.split(model))
    other.config = dataclasses.replace(
        model.config, mask_token_id=mask_token_id, live_vocab_size=mask_token_id, **facts
    )
    return other


def rule(kind: str, i: int, j: int, prompt: int, block: int) -> bool:
    """The visibility rules, read off their definition: may i see j?"""

    def block_of(k: int) -> int:
        return -1 if k < prompt else (k - prompt) // block

    if kind == "full":
        return True
    if kind == "block_bias":
        return block_of(j) == -1 or block_of(i) == block_of(j)
    assert kind == "block_causal"
    return block_of(j) <= block_of(i)


@pytest.fixture(autouse=True, scope="session")
def _threads_of_torch():
    """Few, beside as many workers as there are cores. Whoever runs no tests has no need of torch, which loads long."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file():
    """What is compiled in a file is seldom asked for in another, and all of it together fills the machine's memory."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _programs_of_soak_as_users(request, monkeypatch):
    if request.node.get_closest_marker("soak"):
        monkeypatch.setitem(_FLAGS, "programs", "")


_FLAGS = {"programs": SOON_COMPILED}


def run_program(
    *arguments: str | Path, check: int | None = 0, as_users: bool = False, **options
) -> subprocess.CompletedProcess:
    """Run `python -m …` from the repository's root, as a user would."""
    command = [sys.executable, "-m", *map(str, arguments)]
    flags = "" if as_users else _FLAGS["programs"]
    environment = {**os.environ, "XLA_FLAGS": flags, **options.pop("env", {})}
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, **options
    )
    assert check is None or done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def train_in_two_processes(flags: list[str], *, second: int = 0) -> list[tuple[str, str]]:
    """Run train.run as two processes of four devices each, joined by jax.distributed; (output, errors) of each.

    `second` is the exit code of the second; where it is none of success, the first fails too, however it may.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    join = ["--coordinator_address", f"localhost:{port}", "--num_processes", "2", "--timeout", "120"]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {SOON_COMPILED}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "train.run", *flags, *join, "--process_id", str(number)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    ends = [process.communicate(timeout=600) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[1] == second, ends
    assert (codes[0] == 0) == (second == 0), ends
    return ends


def assert_one_line_error(done: subprocess.CompletedProcess, *parts: str) -> None:
    """Exit code 2, one `error:` line naming the thing, no traceback."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert len(errors) == 1, done.stderr
    for part in parts:
        assert part in errors[0], f"{part!r} not in {errors[0]!r}"


def refuses(call: Callable[[], object], *parts: str) -> str:
    """The line of the InputError that a call ends with: short, and with these parts."""
    with pytest.raises(InputError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 500
    assert all(part in line for part in parts), line
    return line


def write(path: Path, rows: list[dict]) -> str:
    """The rows as a .jsonl file; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def length_of_exchange(tokenizer, question: str, answer: str) -> int:
    """Tokens of a question and its answer under the tiny model's chat template."""
    texts = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", f"{answer}<|im_end|>"
    return sum(len(tokenizer(text).input_ids) for text in texts)


@contextmanager
def on_devices(count: int) -> Iterator[None]:
    """Only the first `count` of the simulated devices: one compiles sooner than eight."""
    with pytest.MonkeyPatch.context() as patch:
        some = jax.devices()[:count]
        patch.setattr(jax, "device_count", lambda: count)
        patch.setattr(jax, "devices", lambda: some)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    """The bundled tokenizer."""
    return load_tokenizer(TINY)


@pytest.fixture(scope="session")
def qwen3_tokenizer():
    """The bundled vocabulary with Qwen3's real chat template."""
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = QWEN3_TEMPLATE.read_text()
    return tokenizer


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """A very small model with the bundled tokenizer and Qwen3's chat template, and a small text."""
    from torch_twins import save_torch, torch_model

    folder = tmp_path_factory.mktemp("start")
    save_torch(torch_model(0, vocab_size=1088, hidden_size=32, num_hidden_layers=2, intermediate_size=48), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    shutil.copy(QWEN3_TEMPLATE, folder / "chat_template.jinja")
    (folder / "text.txt").write_text((DATA / "shakespeare" / "valid.txt").read_text()[:20_000])
    return folder


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The bundled tiny Qwen3."""
    return TINY


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    """A server of the bundled model, which writes blocks of 8: one for all the tests of a file."""
    import servers

    with servers.server(*servers.BLOCKS, "--slots", "4", "--gen-length", "16") as made:
        yield made


@pytest.fixture
def client(served: Any) -> Iterator[Any]:
    """OpenAI's own client of it."""
    import openai

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made
