"""What requests ask for: the fields of OpenAI's, Cohere's and text-embeddings-inference's bodies, checked.

A field that would change the answer and that is not supported is refused by name; one that changes none, such as
"user", is passed over.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .refusals import RefusedError

_WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}

_NEUTRAL: Mapping[str, Collection[Any]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "logit_bias": ({}, None),
    "echo": (False, None),
    "best_of": (1, None),
    "suffix": (None,),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "parallel_tool_calls": (True, False, None),
    "modalities": (["text"], None),
}
"""Fields that clients send though they ask for nothing by them, and the values by which they do not."""


class Body:
    """The object in a request."""

    def __init__(self, content: bytes, known: Collection[str]) -> None:
        """Read it.

        Raises:
            RefusedError: It is no JSON object, or has a field that is not known.
        """
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, f"the body is not JSON: {error}", "invalid_json") from error
        if not isinstance(value, dict):
            raise RefusedError(400, f"the body must be a JSON object, but is {type(value).__name__}", "invalid_json")
        for name, given in value.items():
            if name in known or name in _WITHOUT_EFFECT:
                continue
            if name not in _NEUTRAL or given not in _NEUTRAL[name]:
                raise RefusedError(400, f"{name} is not supported here", "unsupported_field", parameter=name)
        self._fields = value

    def text(self, name: str, default: str | None = None) -> str:
        """Give a text that has to be there, unless there is a default."""
        value = self._fields.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def optional_text(self, name: str) -> str | None:
        """Give a text; None: there is none."""
        return None if self._fields.get(name) is None else self.text(name)

    def number(self, name: str, low: float, high: float) -> float | None:
        """Give a number within limits; None: there is none."""
        value = self._fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Give an integer within limits; None: there is none."""
        value = self._fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Give true or false."""
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def choice(self, name: str, known: Sequence[str]) -> str:
        """Give one of several texts, the first where nothing is said."""
        value = self._fields.get(name)
        if value is None:
            return known[0]
        if value not in known:
            raise self.wrong(name, f"one of {', '.join(known)}")
        return str(value)

    def any(self, name: str) -> Any:
        """Give a value as it is; None: there is none."""
        return self._fields.get(name)

    def wrong(self, name: str, wanted: str) -> RefusedError:
        """Say what a field should have been."""
        return RefusedError(400, f"{name} must be {wanted}", "invalid_field", parameter=name)

    def inputs(self, name: str, most: int) -> list[Any]:
        """Give texts, or rows of token ids: one, or a list of them.

        Raises:
            RefusedError: They are neither, none or too many.
        """
        value: Any = self._fields.get(name)
        if isinstance(value, str) or (_is_list(value, int) and value):
            value = [value]
        if not (_is_list(value, str) or (_is_list(value, list) and all(_is_list(row, int) for row in value))):
            raise self.wrong(name, "a text, a list of texts, or lists of token ids")
        if not 0 < len(value) <= most:
            raise self.wrong(name, f"1 to {most} inputs")
        return list(value)

    def texts(self, name: str, most: int) -> list[str]:
        """Give texts, each perhaps as the "text" of an object, as Cohere has documents."""
        value = self._fields.get(name)
        given: list[Any] = value if isinstance(value, list) else []
        items: list[Any] = [item.get("text") if isinstance(item, dict) else item for item in given]
        if not items or len(items) > most or not _is_list(items, str):
            raise self.wrong(name, f"a list of 1 to {most} texts")
        return items


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)


CHAT_FIELDS = {"messages", "max_completion_tokens", "response_format", "reasoning_effort", "chat_template_kwargs"}
COMPLETION_FIELDS = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream"),
    *("stream_options", "n", "repetition_penalty", "json_schema", "regex"),
}


@dataclass(frozen=True)
class Wanted:
    """What a text is to be generated by.

    Attributes:
        most: New tokens at most.
        settings: As for `Decoder.stream`.
        count: How many texts.
        stream: Whether parts are given out as they are made.
        usage: Whether a stream ends with a count of tokens.
    """

    most: int
    settings: Mapping[str, Any]
    count: int
    stream: bool
    usage: bool


def wanted(body: Body, most_new_tokens: int, *, draws: bool) -> Wanted:
    """Read how to generate. What is not said is as the checkpoint's generation_config.json has it.

    Args:
        body: The request's.
        most_new_tokens: What nobody may ask more than.
        draws: Whether the bundle draws tokens where nothing is said.

    Raises:
        RefusedError: A field is malformed.
    """
    options = body.any("stream_options")
    if options is not None and not isinstance(options, dict):
        raise body.wrong("stream_options", "an object")
    most = body.integer("max_completion_tokens", 1, 1 << 30) or body.integer("max_tokens", 1, 1 << 30)
    return Wanted(
        most=min(most or most_new_tokens, most_new_tokens),
        settings={**_drawing(body, draws), **_stopping(body), **_form(body)},
        count=body.integer("n", 1, 16) or 1,
        stream=body.flag("stream"),
        usage=bool(options and options.get("include_usage")),
    )


def _drawing(body: Body, draws: bool) -> dict[str, Any]:
    """How tokens are chosen."""
    settings: dict[str, Any] = {}
    temperature = body.number("temperature", 0.0, 2.0)
    # Nought means the likeliest token, as with OpenAI.
    if temperature is not None:
        settings |= {"do_sample": True, "temperature": max(temperature, 1e-3)} if temperature else {"do_sample": False}
    asked = {
        "top_p": body.number("top_p", 0.0, 1.0),
        "min_p": body.number("min_p", 0.0, 1.0),
        "top_k": body.integer("top_k", 0, 1 << 20),
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    # Where the likeliest is taken, nothing of drawing has an effect, and the runtime would refuse it. Clients send it
    # all the same: OpenAI passes over it.
    if asked and settings.get("do_sample") is not False:
        settings |= {"do_sample": True, **asked}
    seed = body.integer("seed", -(1 << 63), (1 << 63) - 1)
    if seed is not None and settings.get("do_sample", draws):
        settings["seed"] = abs(seed)
    if (penalty := body.number("repetition_penalty", 0.01, 100.0)) is not None:
        settings["repetition_penalty"] = penalty
    return settings


def _stopping(body: Body) -> dict[str, Any]:
    """Where a text ends."""
    stop = body.any("stop")
    if stop is None:
        return {}
    if not (isinstance(stop, str) and stop) and not (_is_list(stop, str) and all(stop) and len(stop) <= 16):
        raise body.wrong("stop", "a text, or a list of at most 16 of them")
    return {"stop": stop}


def _form(body: Body) -> dict[str, Any]:
    """What form the text is to have, as OpenAI asks for it or as `generate` does."""
    found = {name: body.any(name) for name in ("json_schema", "regex") if body.any(name) is not None}
    asked = body.any("response_format")
    if asked is None:
        return found
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "text":
        return found
    if kind == "json_object":
        return {**found, "json_schema": {"type": "object"}}
    schema = asked.get("json_schema") if kind == "json_schema" else None
    if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        raise body.wrong("response_format", "of type text, json_object, or json_schema with its schema")
    return {**found, "json_schema": schema["schema"]}
