"""What goes wrong around a server: readers that leave or dawdle, too many, too large, broken weights, its own end."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
from conftest import ROOT, TINY, run_program
from safetensors.numpy import load_file, save_file
from servers import BLOCKS, server

pytestmark = pytest.mark.soak
ASK = {"prompt": "ROMEO:\nMy", "max_tokens": 64, "seed": 7, "temperature": 0.8}


def text_of(found: httpx.Response) -> str:
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["text"]


def leave(url: str, body: dict, seconds: float) -> None:
    """Ask, and hang up after so long, whatever has come."""
    at = urlsplit(url)
    raw = json.dumps(body).encode()
    with socket.create_connection((at.hostname, at.port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {at.hostname}\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        time.sleep(seconds)


def test_who_leaves_frees_a_slot_and_disturbs_nobody(served):
    readers, draw = 50, random.Random(0)
    expected = text_of(served.post("completions", **ASK))
    with ThreadPoolExecutor(6) as pool:
        long = [
            ASK | {"stream": draw.random() < 0.6, "max_tokens": 400, "n": draw.randint(1, 3)} for _ in range(readers)
        ]
        leaving = [pool.submit(leave, served.url, ask, draw.random() * 0.6) for ask in long]
        staying = [served.post("completions", **ASK) for _ in range(8)]
        for one in leaving:
            one.result()
    assert {text_of(found) for found in staying if found.status_code != 429} == {expected}
    served.wait_until_free()
    assert served.number("cancelled_total") > 0
    assert text_of(served.post("completions", **ASK)) == expected


def test_a_slow_reader_holds_no_slot(served):
    at = urlsplit(served.url)
    body = ASK | {"stream": True, "max_tokens": 128, "logprobs": 0, "stream_options": {"drafts": True}}
    raw = json.dumps(body).encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect((at.hostname, at.port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {at.hostname}\r\nContent-Length: {len(raw)}\r\n\r\n"
        slow.sendall(head.encode() + raw)
        while not served.number("slots_taken"):
            time.sleep(0.01)
        served.wait_until_free(60)  # nothing was read
        received = b""
        slow.settimeout(30)
        while b"[DONE]" not in received:
            part = slow.recv(1 << 16)
            assert part, received[-1000:]
            received += part


def test_a_sender_that_dawdles_holds_nobody_up(served):
    at = urlsplit(served.url)
    with socket.create_connection((at.hostname, at.port)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert text_of(served.post("completions", **ASK))
        assert served.number("slots_taken") == 0


@pytest.mark.parametrize("is_said", [True, False])
def test_a_body_that_is_too_large_is_refused(served, is_said):
    raw = b'{"prompt": "' + b"a" * (1 << 21) + b'"}'
    found = httpx.post(f"{served.url}/v1/completions", content=raw if is_said else iter([raw[:1000], raw[1000:]]))
    assert found.status_code == 413
    assert "bytes" in found.json()["error"]["message"]


NO_REQUESTS = [b"", b"[]", b"null", b"7", b'"a"', b"{", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000]


@pytest.mark.parametrize("raw", [*NO_REQUESTS, b'{"prompt": "a", "seed": 1e999}'])
def test_what_is_no_request_is_refused(served, raw):
    found = httpx.post(f"{served.url}/v1/completions", content=raw)
    assert found.status_code == 400, found.text
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_nothing_of_a_prompt_is_in_the_log(served):
    served.post("completions", prompt="Xyzzy plugh", max_tokens=8)
    served.post("completions", prompt="Xyzzy plugh", threshold=9)
    assert "Xyzzy" not in "".join(served.log)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_is_refused_when_its_turn_comes_has_a_status_too(is_streamed):
    with server(*BLOCKS, "--slots", "1", "--programs", "1") as made:
        ask = {"prompt": "ROMEO:", "max_tokens": 64, "stream": is_streamed}
        with ThreadPoolExecutor(2) as pool:
            usual = pool.submit(made.post, "completions", **ask)
            refused = made.post("completions", **ask, block_length=4)
            assert refused.status_code == 400, refused.text
            assert "--programs" in refused.json()["error"]["message"]
            assert usual.result().status_code == 200
        made.wait_until_free()
        assert made.number("cancelled_total") == 0


def test_who_leaves_before_all_is_sent_is_counted(served):
    before, at = served.number("cancelled_total"), urlsplit(served.url)
    with socket.create_connection((at.hostname, at.port)) as gone:
        gone.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.5)
    for _ in range(100):
        if served.number("cancelled_total") == before + 1:
            break
        time.sleep(0.05)
    assert served.number("cancelled_total") == before + 1


def test_a_full_queue_is_said_and_what_was_accepted_is_answered():
    with server(*BLOCKS, "--slots", "1", "--queue", "3", "--api-key", "secret", "--cors", "http://a.example") as made:
        key = {"Authorization": "Bearer secret"}

        def ask(_: int) -> httpx.Response:
            return httpx.post(f"{made.url}/v1/completions", json=ASK, headers=key, timeout=120)

        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(ask, range(12)))
        full = [one for one in found if one.status_code == 429]
        assert full
        assert all(int(one.headers["Retry-After"]) > 0 for one in full)
        assert full[0].json()["error"]["code"] == "queue_full"
        assert len({text_of(one) for one in found if one.status_code != 429}) == 1
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
            refused = httpx.post(f"{made.url}/v1/completions", json=ASK, headers=headers)
            assert refused.status_code == (200 if headers.get("Authorization") == "secret" else 401)
        assert httpx.get(f"{made.url}/v1/models").status_code == 401
        asked = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
        found = httpx.options(f"{made.url}/v1/completions", headers=asked)
        assert found.headers["access-control-allow-origin"] == "http://a.example"


def test_a_text_whose_logits_are_not_finite_fails_alone(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, tmp_path / name)
    weights = load_file(TINY / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"].copy()
    embedding[77] = np.nan
    save_file(weights | {"model.embed_tokens.weight": embedding}, tmp_path / "model.safetensors")
    with server(*BLOCKS, "--slots", "4", "--forbid", "77", model=tmp_path) as made, ThreadPoolExecutor(4) as pool:
        asks = [{"prompt": [5, 77, 9]}, {"prompt": [5, 76, 9]}, {"prompt": [6]}, {"prompt": [77], "stream": True}]
        found = list(pool.map(lambda ask: made.post("completions", max_tokens=16, **ask), asks))
        assert found[0].status_code == 500
        assert "not finite" in found[0].json()["error"]["message"]
        assert text_of(found[1])
        assert text_of(found[2])
        assert "not finite" in found[3].text


def test_at_sigterm_what_was_accepted_is_finished():
    for number in range(2):
        with server(*BLOCKS, "--slots", "4") as made, ThreadPoolExecutor(8) as pool:
            asks = [
                pool.submit(made.post, "completions", **(ASK | {"max_tokens": 128, "stream": i % 2 == 0}))
                for i in range(8)
            ]
            while made.number("slots_taken") + made.number("waiting") < 8:
                time.sleep(0.01)
            time.sleep(random.Random(number).random() * 0.3)
            made.process.send_signal(signal.SIGTERM)
            texts = [one.result() for one in asks]
            assert made.process.wait(60) == 0
        assert all(found.status_code == 200 for found in texts)
        assert all(found.text.endswith("data: [DONE]\n\n") for found in texts[::2])
        assert len({text_of(found) for found in texts[1::2]}) == 1


def test_prompts_are_logged_where_that_is_asked_and_a_port_is_taken_once():
    with server(*BLOCKS, "--slots", "1", "--log-prompts", QWEN3LLADA_API_KEY="k") as made:
        headers = {"Authorization": "Bearer k"}
        assert httpx.post(f"{made.url}/v1/completions", json=ASK, headers=headers, timeout=60).status_code == 200
        time.sleep(0.2)
        assert json.dumps("ROMEO:\nMy") in "".join(made.log)
        port = str(urlsplit(made.url).port)
        done = run_program("sample.serve", "--model", TINY, "--port", port, check=2)
        assert f"--port {port}: cannot listen there" in done.stderr


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--slots", "0"], "--slots"),
        (["--max-length", "9999"], "--max-length"),
        (["--gen-length", "2000"], "--gen-length"),
        (["--queue", "0"], "--queue"),
        (["--host", "no.such.host"], "--host"),
    ],
)
def test_impossible_flags_are_refused_in_a_line(flags, part):
    done = run_program("sample.serve", "--model", TINY, *flags, check=2)
    assert part in done.stderr
    assert done.stderr.count("error:") == 1


def test_without_its_extra_it_says_what_to_install(tmp_path):
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('No module named uvicorn', name='uvicorn')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "sample.serve", "--model", str(TINY)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "pip install fastapi" in done.stderr


def test_no_case_that_its_own_schema_allows_or_forbids_is_an_error_of_the_servers(tmp_path):
    flags = (*BLOCKS, "--slots", "4", "--gen-length", "16", "--max-length", "128", "--programs", "4")
    with server(*flags) as made:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        options = "--phases examples,coverage,fuzzing --max-examples 100 --continue-on-failure --no-color"
        program = [Path(sys.executable).with_name("st"), "run", f"{made.url}/openapi.json"]
        command = [*program, *options.split(), "--checks", checks]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1200)
        assert done.returncode == 0, done.stdout[-5000:]
        assert int(re.search(r"([\d,]+) generated", done.stdout)[1].replace(",", "")) >= 1000
        made.wait_until_free()
