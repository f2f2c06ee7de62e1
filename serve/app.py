"""The routes: OpenAI's for embeddings, completions and chats; to rank, Cohere's and text-embeddings-inference's."""

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .guard import Guard
from .metrics import Metrics
from .models import Models, Served
from .openapi import describe
from .refusals import RefusedError, error_body
from .requests import CHAT_FIELDS, COMPLETION_FIELDS, Body, Wanted, wanted
from .serve_options import ServeOptions

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(options: ServeOptions) -> Starlette:
    """Open bundles and make an ASGI app of them, to be run by any server of ASGI.

    Raises:
        TfmError: A bundle does not open.
    """
    models, metrics = Models(options), Metrics()
    routes = _Routes(models, options)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        # What runs is finished, and only then the process ends.
        await models.close()

    middleware = [Middleware(Guard, options=options, metrics=metrics)]
    if options.allow_origins:
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=list(options.allow_origins), allow_headers=["*"]))

    async def measured(_: Request) -> Response:
        return Response(metrics.text({name: one.load for name, one in models.served.items()}), media_type=metrics.media)

    return Starlette(
        routes=[
            Route("/v1/embeddings", routes.embeddings, methods=["POST"]),
            Route("/v1/rerank", routes.rerank, methods=["POST"]),
            Route("/rerank", routes.rerank_tei, methods=["POST"]),
            Route("/v1/classify", routes.classify, methods=["POST"]),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/health", routes.health),
            Route("/metrics", measured),
            Route("/openapi.json", routes.openapi),
            Route("/docs", _page("docs.html")),
            Route("/", _page("page.html")),
        ],
        middleware=middleware,
        exception_handlers={RefusedError: _refuse, 404: _not_found, 405: _not_found},
        lifespan=lifespan,
    )


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error_body(error), error.status, headers=headers)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    what = "no such path" if status == 404 else f"{request.method} is not for this path"
    return JSONResponse(error_body(RefusedError(status, f"{what}: {request.url.path}; see /docs", "not_found")), status)


def _page(name: str) -> Endpoint:
    content = (Path(__file__).parent / name).read_text(encoding="utf-8")

    async def show(_: Request) -> Response:
        return HTMLResponse(content)

    return show


class _Routes:
    """What each path does."""

    def __init__(self, models: Models, options: ServeOptions) -> None:
        self._models, self._options = models, options

    async def embeddings(self, request: Request) -> Response:
        known = {"model", "input", "encoding_format", "dimensions", "prompt", "truncate"}
        body = Body(await request.body(), known)
        served = self._models[body.optional_text("model")]
        settings: dict[str, Any] = {"long_texts": _long_texts(body)}
        if (dimensions := body.integer("dimensions", 1, 1 << 16)) is not None:
            settings["dimensions"] = dimensions
        if (prompt := body.optional_text("prompt")) is not None:
            settings["prompt"] = prompt
        as_base64 = body.choice("encoding_format", ("float", "base64")) == "base64"
        found = await served.call("embed", body.inputs("input", self._options.most_inputs), **settings)
        # A base64 of float32 is what OpenAI's clients ask for: half of the bytes, and nothing to parse.
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector.tolist()}
            for index, (vector, _) in enumerate(found)
        ]
        return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": _usage(found)})

    async def rerank(self, request: Request) -> Response:
        known = {"model", "query", "documents", "top_n", "return_documents", "max_chunks_per_doc"}
        body = Body(await request.body(), known)
        served, texts = self._models[body.optional_text("model")], body.texts("documents", self._options.most_inputs)
        ranked, count = await _ranked(served, body.text("query"), texts)
        results = [
            {"index": one["index"], "relevance_score": one["score"]}
            | ({"document": {"text": one["text"]}} if body.flag("return_documents") else {})
            for one in ranked[: body.integer("top_n", 1, 1 << 30)]
        ]
        meta = {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}, "tokens": {"input_tokens": count}}
        return JSONResponse({"id": _id("rerank"), "model": served.name, "results": results, "meta": meta})

    async def rerank_tei(self, request: Request) -> Response:
        body = Body(await request.body(), {"model", "query", "texts", "return_text", "raw_scores", "truncate"})
        served, texts = self._models[body.optional_text("model")], body.texts("texts", self._options.most_inputs)
        if body.flag("raw_scores"):
            raise RefusedError(400, "raw_scores is not supported here", "unsupported_field", parameter="raw_scores")
        ranked, _ = await _ranked(served, body.text("query"), texts)
        kept = ("index", "score", "text") if body.flag("return_text") else ("index", "score")
        return JSONResponse([{name: one[name] for name in kept} for one in ranked])

    async def classify(self, request: Request) -> Response:
        body = Body(await request.body(), {"model", "input", "top_k", "truncate"})
        served = self._models[body.optional_text("model")]
        texts = _texts_or_pairs(body, self._options.most_inputs)
        settings = {"top_k": body.integer("top_k", 1, 1 << 20), "long_texts": _long_texts(body)}
        found = await served.call("classify", texts, **settings)
        data = [
            {"index": index, "labels": labels if isinstance(labels, list) else [labels]}
            for index, (labels, _) in enumerate(found)
        ]
        return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": _usage(found)})

    async def completions(self, request: Request) -> Response:
        body = Body(await request.body(), COMPLETION_FIELDS)
        served = self._models[body.optional_text("model")]
        asked = wanted(body, self._options.most_new_tokens, draws=served.draws)
        # As OpenAI orders them: the texts of the first prompt, then those of the second.
        prompts = [prompt for prompt in body.inputs("prompt", 64) for _ in range(asked.count)]
        return await _Answer(served, asked, "text_completion").give(prompts)

    async def chat(self, request: Request) -> Response:
        body = Body(await request.body(), COMPLETION_FIELDS - {"prompt"} | CHAT_FIELDS)
        served = self._models[body.optional_text("model")]
        asked = wanted(body, self._options.most_new_tokens, draws=served.draws)
        messages = [_plain(message) for message in _list(body.any("messages"))]
        if not messages or not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages):
            raise body.wrong("messages", "a list of objects with role and content")
        told = body.any("chat_template_kwargs") or {}
        if not isinstance(told, dict):
            raise body.wrong("chat_template_kwargs", "an object")
        text = served.written(messages, told)
        return await _Answer(served, asked, "chat.completion").give([text] * asked.count)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_card(one) for one in self._models.served.values()]})

    async def model(self, request: Request) -> Response:
        return JSONResponse(_card(self._models[request.path_params["name"]]))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "models": list(self._models.served)})

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(describe())


class _Answer:
    """An answer of what generates: whole, or as events."""

    def __init__(self, served: Served, asked: Wanted, kind: str) -> None:
        self._served, self._asked, self._kind = served, asked, kind
        self._chat = kind == "chat.completion"
        name = _id("chatcmpl" if self._chat else "cmpl")
        self._head = {"id": name, "created": int(time.time()), "model": served.name}

    async def give(self, prompts: list[Any]) -> Response:
        if not self._asked.stream:
            return await self._whole(prompts)
        events = self._events(prompts)
        # The first is waited for here, so that what is refused has a status of its own.
        first = await anext(events)
        return StreamingResponse(_chained(first, events), media_type="text/event-stream")

    async def _whole(self, prompts: list[Any]) -> Response:
        found = await asyncio.gather(*(self._text(prompt, place) for place, prompt in enumerate(prompts)))
        choices = [
            {"index": index, "finish_reason": reason, "logprobs": None}
            | ({"message": {"role": "assistant", "content": text}} if self._chat else {"text": text})
            for index, (text, reason, _, _) in enumerate(found)
        ]
        usage = _counted(sum(one[2] for one in found), sum(one[3] for one in found))
        return JSONResponse({**self._head, "object": self._kind, "choices": choices, "usage": usage})

    async def _text(self, prompt: Any, place: int) -> tuple[str, str | None, int, int]:
        texts, last = [], None
        async with contextlib.aclosing(self._served.generate(prompt, self._asked.most, self._settings(place))) as parts:
            async for part in parts:
                texts.append(part.text)
                last = part
        assert last is not None
        return "".join(texts), last.reason, last.prompt_tokens, last.new_tokens

    def _settings(self, place: int) -> dict[str, Any]:
        """Settings of one of several texts: each is drawn by a seed of its own."""
        settings = dict(self._asked.settings)
        return settings | {"seed": settings["seed"] + place} if "seed" in settings else settings

    async def _events(self, prompts: list[Any]) -> AsyncGenerator[str]:
        read = made = 0
        # One behind the other: what a client reads of a stream in turns it could not show either.
        for index, prompt in enumerate(prompts):
            parts = self._served.generate(prompt, self._asked.most, self._settings(index))
            async with contextlib.aclosing(parts):
                begun = False
                async for part in parts:
                    role = {} if begun or not self._chat else {"role": "assistant"}
                    begun = True
                    text = {"delta": {**role, "content": part.text}} if self._chat else {"text": part.text}
                    yield self._event([{"index": index, **text, "finish_reason": part.reason, "logprobs": None}])
                    if part.reason is not None:
                        read, made = read + part.prompt_tokens, made + part.new_tokens
        if self._asked.usage:
            yield self._event([], usage=_counted(read, made))
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[Any], **more: Any) -> str:
        kind = "chat.completion.chunk" if self._chat else self._kind
        return f"data: {json.dumps({**self._head, 'object': kind, 'choices': choices, **more}, ensure_ascii=False)}\n\n"


async def _chained(first: str, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    try:
        yield first
        async for event in events:
            yield event
    except RefusedError as error:  # the status is sent already: the stream ends by an event that says why
        yield f"data: {json.dumps(error_body(error))}\n\n"
    finally:
        # Its text is ended with it.
        await events.aclose()


async def _ranked(served: Served, query: str, texts: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Rank documents; requests of several clients share batches, as pairs that are scored."""
    found = await served.call("rank", [(query, text) for text in texts])
    scored = [{"index": index, "score": score, "text": texts[index]} for index, (score, _) in enumerate(found)]
    return sorted(scored, key=lambda one: -one["score"]), sum(count for _, count in found)


def _texts_or_pairs(body: Body, most: int) -> list[Any]:
    items = [tuple(item) if isinstance(item, list) else (item,) for item in _list(body.any("input"))]
    fine = all(len(item) in (1, 2) and all(isinstance(part, str) for part in item) for item in items)
    if not 0 < len(items) <= most or not fine:
        raise body.wrong("input", f"1 to {most} texts, or pairs of texts")
    return [item if len(item) == 2 else item[0] for item in items]


def _long_texts(body: Body) -> str:
    return "cut" if body.flag("truncate") else "refuse"


def _plain(message: Any) -> Any:
    """Write content that is a list of parts as one text; anything but text is refused."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise RefusedError(400, "only parts of type text are read here", "unsupported_field", parameter="messages")
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _base64(vector: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _usage(found: list[tuple[Any, int]]) -> dict[str, int]:
    count = sum(count for _, count in found)
    return {"prompt_tokens": count, "total_tokens": count}


def _counted(read: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _card(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "tfm",
        "tasks": list(served.model.tasks),
        "precision": served.model.precision,
    }


def _id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"
