"""What the server answers, as OpenAPI 3.1 describes it."""

from typing import Any

_TEXT = {"type": "string"}
_TEXTS = {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_NUMBER, _COUNT, _FLAG = {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
_MESSAGES = {
    "type": "array",
    "items": {"type": "object", "properties": {"role": _TEXT, "content": _TEXT}, "required": ["role", "content"]},
}
_GENERATING = {
    **dict.fromkeys(("max_tokens", "top_k", "seed", "n"), _COUNT),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), _NUMBER),
    "stop": _TEXTS,
    "stream": _FLAG,
    "regex": _TEXT,
    "json_schema": {"type": "object"},
    "stream_options": {"type": "object", "properties": {"include_usage": _FLAG}},
}
_BODIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "/v1/embeddings": (
        "Embed texts, or rows of token ids.",
        {
            "input": _TEXTS,
            "encoding_format": {"enum": ["float", "base64"]},
            "dimensions": _COUNT,
            "prompt": _TEXT,
            "truncate": _FLAG,
        },
        ["input"],
    ),
    "/v1/rerank": (
        "Put documents in the order in which they answer a query, as Cohere has it.",
        {"query": _TEXT, "documents": {"type": "array", "items": _TEXT}, "top_n": _COUNT, "return_documents": _FLAG},
        ["query", "documents"],
    ),
    "/rerank": (
        "The same, as text-embeddings-inference has it.",
        {"query": _TEXT, "texts": {"type": "array", "items": _TEXT}, "return_text": _FLAG},
        ["query", "texts"],
    ),
    "/v1/classify": (
        "Label texts, or pairs of texts.",
        {"input": _TEXTS, "top_k": _COUNT, "truncate": _FLAG},
        ["input"],
    ),
    "/v1/completions": ("Go on with texts.", {"prompt": _TEXTS, **_GENERATING}, ["prompt"]),
    "/v1/chat/completions": (
        "Answer a chat.",
        {"messages": _MESSAGES, "response_format": {"type": "object"}, **_GENERATING},
        ["messages"],
    ),
}
_PAGES = {
    "/v1/models": "List the models.",
    "/health": "Tell that the server runs.",
    "/metrics": "Counts, as Prometheus reads them.",
}


def describe() -> dict[str, Any]:
    """Describe all paths."""
    answers = {
        "200": {"description": "The answer."},
        "400": {"description": "A field is wrong; the message says which."},
        "401": {"description": "The key is missing or wrong."},
        "413": {"description": "The body is too large."},
        "429": {"description": "Too much waits; Retry-After says when to come again."},
    }
    paths: dict[str, Any] = {}
    for path, (summary, fields, required) in _BODIES.items():
        schema = {"type": "object", "properties": {"model": _TEXT, **fields}, "required": required}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {"summary": summary, "requestBody": body, "responses": answers}}
    for path, summary in _PAGES.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": answers["200"]}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tfm serve", "version": "1", "description": "Verified bundles behind a port."},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }
