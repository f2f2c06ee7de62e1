"""The server as a process: OpenAI's own client, clients that behave badly, signals, and the page."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tfm.runtime import Decoder, Encoder, load

PATIENCE = 120  # seconds, for what takes less than 5 on an idle machine
SERVE = "from tfm.cli import main; main(['serve', *__import__('sys').argv[1:]])"


class Server:
    """`tfm serve` in a process of its own."""

    def __init__(self, bundles: list[Path], *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-c", SERVE, *map(str, bundles), "--port", str(self.port), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{self.url}/health")
                return
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.05)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(iter(self.process.stderr.readline, ""))

    def memory(self) -> int:
        """Bytes that it holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture(scope="module")
def server(every_bundle: list[Path]) -> Iterator[Server]:
    one = Server(every_bundle, "--threads", "1")
    yield one
    one.close()


def test_openais_own_client(server: Server, bundles: Path) -> None:
    openai = pytest.importorskip("openai", reason="pip install openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    embedder, decoder = (load(bundles / name, provider="cpu", threads=1) for name in ("embedder.tfm", "chat.tfm"))
    assert isinstance(embedder, Encoder)
    assert isinstance(decoder, Decoder)
    found = client.embeddings.create(model="embedder", input=["a b", "c"])
    assert np.allclose([item.embedding for item in found.data], embedder.embed(["a b", "c"]))
    messages = [{"role": "user", "content": "abc"}]
    [expected] = decoder.generate(messages, 8)
    whole = client.chat.completions.create(model="chat", messages=messages, max_tokens=8)
    assert whole.choices[0].message.content == expected
    parts = client.chat.completions.create(model="chat", messages=messages, max_tokens=8, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    assert (
        client.completions.create(model="chat", prompt="1", max_tokens=3).choices[0].text == decoder.generate("1", 3)[0]
    )
    assert {model.id for model in client.models.list()} >= {"embedder", "chat"}
    with pytest.raises(openai.NotFoundError, match="there is no model 'nix'"):
        client.embeddings.create(model="nix", input="a")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="tools is not supported here"):
        client.chat.completions.create(model="chat", messages=messages, tools=[tool])


@pytest.mark.skipif(not Path("/proc").exists(), reason="memory is told by /proc")
def test_clients_that_behave_badly(server: Server) -> None:
    """They vanish, send garbage, send too much, or never read; the rest is served, and memory stays bounded."""
    body = json.dumps({"model": "chat", "prompt": "abc", "max_tokens": 40, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    held: list[socket.socket] = []
    before = server.memory()
    for number in range(120):
        one = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        kind = number % 6
        with contextlib.suppress(ConnectionError):
            if kind == 0:  # asks, and is gone
                one.sendall(whole)
                one.close()
            elif kind == 1:  # never ends its head
                one.sendall(head)
                held.append(one)
            elif kind == 2:  # no HTTP
                one.sendall(os.urandom(2000))
                one.close()
            elif kind == 3:  # a body of 100 MB, or so it says
                one.sendall(head + b"Content-Length: 104857600\r\n\r\n" + b" " * 100_000)
                one.close()
            elif kind == 4:  # asks, and never reads
                one.sendall(whole)
                held.append(one)
            else:  # half of a body
                one.sendall(whole[:-5])
                held.append(one)
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "embedder", "input": "a"}, timeout=PATIENCE)
    assert answer.status_code == 200
    answer = httpx.post(f"{server.url}/v1/completions", json={"model": "chat", "prompt": "1"}, timeout=PATIENCE)
    assert answer.status_code == 200
    assert server.memory() - before < 100 << 20
    for one in held:
        one.close()
    end = time.monotonic() + PATIENCE
    while 'tfm_running{model="chat"} 0.0' not in httpx.get(f"{server.url}/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not [line for line in server.log if "Traceback" in line]


def test_lines_of_the_log(server: Server) -> None:
    httpx.post(f"{server.url}/v1/embeddings", json={"model": "embedder", "input": "secret"})
    end = time.monotonic() + PATIENCE
    while not (lines := [json.loads(line) for line in server.log if '"/v1/embeddings"' in line]):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert set(lines[-1]) == {"time", "method", "path", "status", "whole", "ms", "bytes"}
    assert "secret" not in "".join(server.log)


def test_a_signal_ends_it_when_what_runs_is_finished(every_bundle: list[Path]) -> None:
    server = Server(every_bundle, "--threads", "1")
    try:
        found: list[Any] = []
        body = {"model": "chat", "prompt": "a", "max_tokens": 30, "stream": True, "json_schema": {"type": "string"}}
        began = threading.Event()

        def ask() -> None:
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=PATIENCE) as answer:
                for line in answer.iter_lines():
                    began.set()
                    found.append(line)

        asking = threading.Thread(target=ask)
        asking.start()
        assert began.wait(PATIENCE)
        server.process.send_signal(signal.SIGTERM)
        asking.join(PATIENCE)
        assert "data: [DONE]" in found
        assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM  # as of every command that a signal ends
    finally:
        server.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere.tfm"], "nowhere.tfm"),
        ([], "Missing argument 'BUNDLE...'"),
        (["a.tfm", "x/a.tfm"], "two bundles have the name a; rename one"),
    ],
)
def test_what_cannot_begin(tmp_path: Path, options: list[str], words: str) -> None:
    command = [sys.executable, "-c", SERVE, *options]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE, check=False)
    assert ended.returncode == 2
    assert words in ended.stderr


def test_several_processes(every_bundle: list[Path]) -> None:
    server = Server([path for path in every_bundle if path.name == "embedder.tfm"], "--workers", "2", "--api-key", "k")
    try:
        headers = {"Authorization": "Bearer k"}
        for _ in range(4):
            body = {"input": "a b"}
            answer = httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers, timeout=PATIENCE)
            assert answer.status_code == 200
        assert httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=PATIENCE).status_code == 401
        arguments = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if arguments.exists():  # a key is in no command line but the one that was typed
            for child in arguments.read_text().split():
                assert b"\0k\0" not in Path(f"/proc/{child}/cmdline").read_bytes()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(PATIENCE)
    finally:
        server.close()
