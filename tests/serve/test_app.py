"""What each path answers, and refuses; the app in this process, asked without a network."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tfm.errors import InputError
from tfm.runtime import Decoder, Encoder, EncoderDecoder, load
from tfm.runtime.generation.continuous import ContinuousBatch
from tfm.serve import ServeOptions, create_app

Ask = Callable[..., httpx.Response]


def talk(options: ServeOptions, work: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
    """Do something with an app that runs meanwhile."""

    async def run() -> Any:
        app = create_app(options)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
        ):
            return await work(client)

    return asyncio.run(run())


@pytest.fixture
def ask(every_bundle: list[Path]) -> Ask:
    """Ask a path once."""

    def once(path: str, body: Any = None, content: bytes | None = None, **headers: str) -> httpx.Response:
        async def work(client: httpx.AsyncClient) -> httpx.Response:
            if body is None and content is None:
                return await client.get(path, headers=headers)
            sent = {"content": content} if content is not None else {"json": body}
            return await client.post(path, headers=headers, **sent)

        found: httpx.Response = talk(ServeOptions(bundles=every_bundle, threads=1), work)
        return found

    return once


def test_embeddings(ask: Ask, bundles: Path) -> None:
    model = load(bundles / "embedder.tfm", provider="cpu", threads=1)
    assert isinstance(model, Encoder)
    texts = ["a b", "c", "h g f"]
    expected = model.embed(texts)
    found = ask("/v1/embeddings", {"model": "embedder", "input": texts}).json()
    assert [item["index"] for item in found["data"]] == [0, 1, 2]
    assert np.array_equal(np.array([item["embedding"] for item in found["data"]], np.float32), expected)
    assert found["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    found = ask("/v1/embeddings", {"model": "embedder", "input": "c", "encoding_format": "base64", "user": "me"}).json()
    vector = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
    assert np.array_equal(vector, expected[1])
    ids = model.tokenize(["c"])[0]
    for given in (ids, [ids]):
        found = ask("/v1/embeddings", {"model": "embedder", "input": given, "dimensions": 2}).json()
        assert np.allclose(found["data"][0]["embedding"], model.embed(["c"], dimensions=2)[0])


def test_reranking(ask: Ask, bundles: Path) -> None:
    model = load(bundles / "reranker.tfm", provider="cpu", threads=1)
    assert isinstance(model, Encoder)
    query, texts = "who lives there", ["the capital of france", "it is paris", "a small town"]
    expected = model.rank(query, texts)
    body = {"model": "reranker", "query": query, "documents": [texts[0], {"text": texts[1]}, texts[2]], "top_n": 2}
    found = ask("/v1/rerank", {**body, "return_documents": True}).json()["results"]
    assert [(one["index"], one["document"]["text"]) for one in found] == [(e["index"], e["text"]) for e in expected[:2]]
    assert [one["relevance_score"] for one in found] == pytest.approx([one["score"] for one in expected[:2]], abs=1e-6)
    found = ask("/rerank", {"model": "reranker", "query": query, "texts": texts}).json()
    assert [one["index"] for one in found] == [one["index"] for one in expected]
    assert set(found[0]) == {"index", "score"}


def test_labels(ask: Ask, bundles: Path) -> None:
    model = load(bundles / "labels.tfm", provider="cpu", threads=1)
    assert isinstance(model, Encoder)
    inputs: list[Any] = ["paris is small", ["who lives", "a town"]]
    found = ask("/v1/classify", {"model": "labels", "input": inputs, "top_k": 2}).json()["data"]
    for item, given in zip(found, ["paris is small", ("who lives", "a town")], strict=True):
        expected = model.classify([given], top_k=2)[0]
        assert [one["label"] for one in item["labels"]] == [one["label"] for one in expected]
        assert [one["score"] for one in item["labels"]] == pytest.approx([one["score"] for one in expected], abs=1e-6)


def test_completions(ask: Ask, bundles: Path) -> None:
    model = load(bundles / "chat.tfm", provider="cpu", threads=1)
    assert isinstance(model, Decoder)
    body = {"model": "chat", "prompt": ["abc", "1"], "max_tokens": 6}
    found = ask("/v1/completions", body).json()
    assert [one["text"] for one in found["choices"]] == model.generate(["abc", "1"], 6)
    assert all(one["finish_reason"] in ("stop", "length") for one in found["choices"])
    assert found["usage"]["prompt_tokens"] == 6
    drawn = {**body, "prompt": "abc", "temperature": 1.5, "seed": 7, "n": 3}
    first, second = (ask("/v1/completions", drawn).json()["choices"] for _ in range(2))
    assert [one["text"] for one in first] == [one["text"] for one in second]
    assert len({one["text"] for one in first}) > 1
    expected = model.generate(["abc"], 6, do_sample=True, temperature=1.5, seed=7)[0]
    assert first[0]["text"] == expected
    formed = ask("/v1/completions", {**body, "prompt": "a", "regex": "[ab]{3}"}).json()["choices"][0]
    assert re.fullmatch("[ab]{3}", formed["text"])
    assert formed["finish_reason"] == "stop"


def test_an_encoder_decoder(ask: Ask, bundles: Path) -> None:
    model = load(bundles / "copier.tfm", provider="cpu", threads=1)
    assert isinstance(model, EncoderDecoder)
    found = ask("/v1/completions", {"model": "copier", "prompt": ["abc", "b"]}).json()
    assert [one["text"] for one in found["choices"]] == model.generate(["abc", "b"])


def test_chats(ask: Ask, bundles: Path) -> None:
    model = load(bundles / "chat.tfm", provider="cpu", threads=1)
    assert isinstance(model, Decoder)
    messages = [{"role": "user", "content": "abc"}]
    [expected] = model.generate(messages, 8)
    parts = [{"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]}]
    for given in (messages, parts):
        found = ask("/v1/chat/completions", {"model": "chat", "messages": given, "max_completion_tokens": 8}).json()
        assert found["choices"][0]["message"] == {"role": "assistant", "content": expected}
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = ask("/v1/chat/completions", {"model": "chat", "messages": messages, "response_format": form}).json()
    assert json.loads(found["choices"][0]["message"]["content"])["a"] in (1, 2)


def test_a_stream(ask: Ask, bundles: Path) -> None:
    model = load(bundles / "chat.tfm", provider="cpu", threads=1)
    assert isinstance(model, Decoder)
    messages = [{"role": "user", "content": "abc"}]
    body = {"model": "chat", "messages": messages, "max_tokens": 8, "stream": True}
    answer = ask("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, usage, end = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert end == "[DONE]"
    told = [json.loads(event) for event in events]
    assert "".join(one["choices"][0]["delta"]["content"] for one in told) == model.generate(messages, 8)[0]
    assert told[0]["choices"][0]["delta"]["role"] == "assistant"
    assert told[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    counts = json.loads(usage)["usage"]
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("/v1/embeddings", {"model": "nix", "input": "a"}, 404, "model_not_found", "there is no model 'nix'"),
        ("/v1/embeddings", {"input": "a"}, 400, "invalid_request", "model is missing; there are: chat, "),
        ("/v1/embeddings", {"model": "embedder"}, 400, "invalid_field", "input must be a text"),
        ("/v1/embeddings", {"model": "embedder", "input": []}, 400, "invalid_field", "1 to 2048 inputs"),
        ("/v1/embeddings", {"model": "embedder", "input": ["a", 1]}, 400, "invalid_field", "a text, a list of texts"),
        ("/v1/embeddings", {"model": "embedder", "input": [[1, 10**9]]}, 400, "invalid_request", r"10\*\*9|1000000000"),
        (
            "/v1/embeddings",
            {"model": "chat", "input": "a"},
            400,
            "wrong_model",
            "chat does not embed; it has: generate",
        ),
        ("/v1/embeddings", {"model": "embedder", "input": "a", "x": 1}, 400, "unsupported_field", "x is not supported"),
        ("/v1/embeddings", {"model": "embedder", "input": "a " * 99}, 400, "invalid_request", "more tokens than"),
        ("/v1/rerank", {"model": "reranker", "query": "a", "documents": []}, 400, "invalid_field", "a list of 1 to"),
        ("/v1/rerank", {"model": "labels", "query": "a", "documents": ["b"]}, 400, "wrong_model", "does not rank"),
        ("/v1/classify", {"model": "labels", "input": [["a", "b", "c"]]}, 400, "invalid_field", "pairs of texts"),
        ("/v1/completions", {"model": "embedder", "prompt": "a"}, 400, "wrong_model", "does not generate"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "logprobs": 3}, 400, "unsupported_field", "logprobs"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "temperature": 9}, 400, "invalid_field", "from 0 to 2"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": 0}, 400, "invalid_field", "max_tokens must"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "regex": "(a"}, 400, "invalid_request", "regex: "),
        (
            "/v1/completions",
            {"model": "chat", "prompt": "a" * 999},
            400,
            "invalid_request",
            "takes at most|more tokens",
        ),
        ("/v1/chat/completions", {"model": "chat", "messages": "a"}, 400, "invalid_field", "messages must be"),
        (
            "/v1/chat/completions",
            {"model": "chat", "messages": [{"role": "system", "content": "a"}]},
            400,
            "invalid_request",
            "chat template refuses the messages: no system",
        ),
        (
            "/v1/chat/completions",
            {"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "unsupported_field",
            "only parts of type text",
        ),
        ("/v1/chat/completions", {"model": "chat", "messages": [], "tools": [{}]}, 400, "unsupported_field", "tools"),
    ],
)
def test_what_is_refused(ask: Ask, bundles: Path, path: str, body: Any, status: int, code: str, words: str) -> None:
    for streams in [{}, {"stream": True}] if "completions" in path else [{}]:
        answer = ask(path, {**body, **streams})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), error
        assert re.search(words, error["message"]), error["message"]
        assert str(bundles) not in answer.text  # where it lies is nobody's business


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"input": NaN}'])
def test_a_body_that_is_no_object(ask: Ask, content: bytes) -> None:
    answer = ask("/v1/embeddings", content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_one_that_is_refused_does_not_spoil_what_came_with_it(every_bundle: list[Path]) -> None:
    bodies = [{"model": "embedder", "input": text} for text in ("a", "b " * 99, "c", "d e")]

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in bodies))

    found = talk(ServeOptions(bundles=every_bundle, threads=1), work)
    assert [answer.status_code for answer in found] == [200, 400, 200, 200]


def test_texts_side_by_side_are_what_they_are_alone(every_bundle: list[Path], bundles: Path) -> None:
    model = load(bundles / "chat.tfm", provider="cpu", threads=1)
    assert isinstance(model, Decoder)
    prompts = ["abc", "1", "{}", "a:b", "0,0,0", "q", "--", "p1"]

    async def work(client: httpx.AsyncClient) -> list[str]:
        async def one(place: int, prompt: str) -> str:
            await asyncio.sleep(0.01 * (place % 3))
            body = {"model": "chat", "prompt": prompt, "max_tokens": 3 + place}
            return str((await client.post("/v1/completions", json=body)).json()["choices"][0]["text"])

        return await asyncio.gather(*(one(place, prompt) for place, prompt in enumerate(prompts)))

    found = talk(ServeOptions(bundles=every_bundle, threads=1, most_rows=3), work)
    assert found == [model.generate([prompt], 3 + place)[0] for place, prompt in enumerate(prompts)]


def test_too_much_at_once_is_told_when_to_come_again(every_bundle: list[Path]) -> None:
    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = [{"model": "embedder", "input": ["a b c d"] * 20} for _ in range(12)]
        return await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in bodies))

    found = talk(ServeOptions(bundles=every_bundle, threads=1, most_waiting=100), work)
    assert {answer.status_code for answer in found} == {200, 429}
    late = next(answer for answer in found if answer.status_code == 429)
    assert int(late.headers["retry-after"]) >= 1
    assert late.json()["error"]["type"] == "rate_limit_error"


def test_keys(every_bundle: list[Path]) -> None:
    async def work(client: httpx.AsyncClient) -> list[tuple[str, str | None, int]]:
        tried: list[tuple[str, str | None, int]] = []
        for path in ("/v1/models", "/metrics", "/health", "/"):
            for key in (None, "Bearer wrong", "Bearer one", "Bearer two", "one"):
                answer = await client.get(path, headers={"Authorization": key} if key else {})
                tried.append((path, key, answer.status_code))
        return tried

    for path, key, status in talk(ServeOptions(bundles=every_bundle, threads=1, api_keys=("one", "two")), work):
        fine = path in ("/health", "/") or key in ("Bearer one", "Bearer two")
        assert status == (200 if fine else 401), (path, key)


def test_limits_of_a_body(every_bundle: list[Path]) -> None:
    async def much() -> Any:
        for _ in range(100):
            yield b" " * 1000

    async def work(client: httpx.AsyncClient) -> list[int]:
        told = await client.post("/v1/embeddings", content=b" " * 50_001)
        untold = await client.post("/v1/embeddings", content=much())
        fine = await client.post("/v1/embeddings", json={"model": "embedder", "input": "a"})
        return [told.status_code, untold.status_code, fine.status_code]

    assert talk(ServeOptions(bundles=every_bundle, threads=1, most_body=50_000), work) == [413, 413, 200]


def test_other_names_and_origins(every_bundle: list[Path]) -> None:
    async def work(client: httpx.AsyncClient) -> list[Any]:
        hosts = ("127.0.0.1:80", "localhost", "[::1]:8080", "evil.example", "127.0.0.1.evil.example")
        statuses = [(await client.get("/health", headers={"Host": host})).status_code for host in hosts]
        origin = {"Origin": "https://app.example"}
        return [statuses, "access-control-allow-origin" in (await client.get("/health", headers=origin)).headers]

    plain = ServeOptions(bundles=every_bundle, threads=1, hosts=("127.0.0.1", "localhost", "::1"))
    assert talk(plain, work) == [[200, 200, 200, 421, 421], False]
    shared = ServeOptions(bundles=every_bundle, threads=1, hosts=plain.hosts, allow_origins=["https://app.example"])
    assert talk(shared, work)[1] is True


def test_what_takes_too_long_is_ended(every_bundle: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    fast = ContinuousBatch.step

    def slow(self: ContinuousBatch) -> Any:
        time.sleep(0.05)
        steps.append(len(self.rows))
        return fast(self)

    monkeypatch.setattr(ContinuousBatch, "step", slow)

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(
            "/v1/completions", json={"model": "chat", "prompt": "a", "max_tokens": 999, "regex": "a*"}
        )

    answer = talk(ServeOptions(bundles=every_bundle, threads=1, timeout=0.3), work)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert sum(steps) < 20  # nobody waits for the rest, so that it is not made


def test_what_there_is(ask: Ask) -> None:
    cards = {card["id"]: card for card in ask("/v1/models").json()["data"]}
    assert set(cards) == {"chat", "copier", "embedder", "labels", "reranker"}
    assert cards["embedder"]["tasks"] == ["embed"]
    assert ask("/v1/models/chat").json()["id"] == "chat"
    assert ask("/v1/models/nix").status_code == 404
    assert ask("/v1/embeddings").status_code == 405
    assert ask("/nix").json()["error"]["code"] == "not_found"
    described = ask("/openapi.json").json()
    assert {"/v1/embeddings", "/v1/chat/completions", "/v1/rerank", "/metrics"} <= set(described["paths"])
    measured = ask("/metrics").text
    assert 'tfm_waiting{model="embedder"} 0.0' in measured


def test_options() -> None:
    with pytest.raises(InputError, match="there is no bundle to serve"):
        ServeOptions(bundles=[])
    with pytest.raises(InputError, match="two bundles have the name a; rename one"):
        ServeOptions(bundles=[Path("x/a.tfm"), Path("y/a.zip")])
    with pytest.raises(InputError, match="timeout must be greater than 0, but is 0"):
        ServeOptions(bundles=[Path("a")], timeout=0)
