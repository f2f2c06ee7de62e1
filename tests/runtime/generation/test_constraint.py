"""Text of a form that is asked for: JSON of a schema, or what a regular expression matches."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_bundles import BYTE_LETTERS, by_byte
from tfm.bundle import read_manifest, renew_manifest
from tfm.errors import InputError
from tfm.runtime import Decoder, EncoderDecoder, load

pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["mad", "glad"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


Bundle = Callable[[str], Decoder | EncoderDecoder]


@pytest.fixture
def opened(tmp_path: Path, generation_bundle: Callable[[str], tuple[Path, Any]]) -> Bundle:
    """A bundle of random weights that reads bytes."""

    def of(kind: str) -> Decoder | EncoderDecoder:
        bundle, _ = generation_bundle(kind)
        shutil.copytree(bundle, tmp_path / kind)
        by_byte().save(str(tmp_path / kind / "tokenizer.json"))
        renew_manifest(read_manifest(bundle), tmp_path / kind, {})
        found = load(tmp_path / kind, provider="cpu", threads=1)
        assert isinstance(found, Decoder | EncoderDecoder)
        return found

    return of


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"do_sample": True, "seed": 3, "temperature": 2.0},
    "top-k": {"do_sample": True, "seed": 3, "top_k": 2},
    "several": {"do_sample": True, "seed": 1, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "repetitions": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize(
    ("kind", "way"), [(kind, way) for kind in ("llama", "t5") for way in WAYS if (kind, way) != ("t5", "lookup")]
)
def test_json_of_a_schema(opened: Bundle, kind: str, way: str) -> None:
    model = opened(kind)
    for text in ("abc", "1"):
        found = model.generate(text, 30, json_schema=SCHEMA, **WAYS[way])[0]
        for one in found if isinstance(found, list) else [found]:
            value = json.loads(one)
            assert set(value) == {"a", "b"}
            assert isinstance(value["a"], int)
            assert value["b"] in ("mad", "glad")


def test_rows_of_a_batch_end_at_other_steps(opened: Bundle) -> None:
    model = opened("llama")
    texts = ["a", "bb1", "{}", "0,0", "q"]
    drawn: dict[str, Any] = {"do_sample": True, "seed": 5, "temperature": 3.0}
    found = model.generate(texts, 24, regex="[ab]{1,12}|c[0-9]*d", **drawn)
    assert len({len(one) for one in found}) > 1
    for one in found:
        assert re.fullmatch("[ab]{1,12}|c[0-9]*d?", one)
    # Row by row it is the same, as without a form.
    again = [list(model.stream(text, 24, regex="[ab]{1,12}|c[0-9]*d", **drawn)) for text in texts[:1]]
    assert "".join(again[0]) == found[0]


def test_what_is_left_keeps_its_order(opened: Bundle) -> None:
    """The likeliest of what is allowed is taken, as it would be of all."""
    model = opened("llama")
    seen: list[np.ndarray[Any, Any]] = []

    def note(_: Any, logits_BV: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        seen.append(logits_BV[0].copy())
        return logits_BV

    [row] = model.generate([model.tokenize(["abc"])[0]], 4, regex="[a-f]{4}", logits_processors=[note])
    allowed = [4 + BYTE_LETTERS.index(letter) for letter in "abcdef"]
    assert row == [allowed[int(logits_V[allowed].argmax())] for logits_V in seen[:4]]


def test_a_text_ends_where_its_form_does_whatever_else_is_asked_for(opened: Bundle) -> None:
    model = opened("llama")
    assert len(model.generate("a", 20, regex="[0-9]{3}", min_new_tokens=8)[0]) == 3


def test_any_json_and_a_schema_that_is_a_text(opened: Bundle) -> None:
    model = opened("gpt2")
    json.loads(model.generate("a", 40, json_schema={"type": ["number", "boolean"], "maximum": 9, "minimum": 0})[0])
    assert json.loads(model.generate("a", 30, json_schema=json.dumps(SCHEMA))[0])["b"] in ("mad", "glad")


def test_a_conversation(opened: Bundle) -> None:
    model = opened("llama")
    assert isinstance(model, Decoder)
    chat = model.conversation()
    for text in ("abc", "0"):
        assert re.fullmatch("[a-c]{2}[0-9]", "".join(chat.reply(text, 9, regex="[a-c]{2}[0-9]")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regex": "(a"}, "regex: .*unclosed group"),
        ({"regex": ""}, "regex must be a string that is not empty, but is ''"),
        ({"regex": 3}, "regex must be a string that is not empty, but is 3"),
        ({"json_schema": "{"}, "json_schema must be a JSON Schema, a mapping or its text: "),
        ({"json_schema": [1]}, "json_schema must be a JSON Schema, a mapping or its text: "),
        ({"json_schema": {"a": object()}}, "json_schema must be a JSON Schema, a mapping or its text: "),
        ({"json_schema": "3"}, "json_schema must be an object, but is 3"),
        ({"json_schema": {"type": "objct"}}, "json_schema: Invalid type: objct"),
        ({"json_schema": {"propertyNames": {"x": 1}}}, "json_schema: Unimplemented keys: .*propertyNames"),
        ({"json_schema": {}, "regex": "a"}, "json_schema and regex exclude each other; leave one of them out"),
    ],
)
def test_what_cannot_be_read(opened: Bundle, settings: dict[str, Any], words: str) -> None:
    model = opened("llama")
    with pytest.raises(InputError, match=words):
        model.generate("a", 4, **settings)
    with pytest.raises(InputError, match=words):
        model.stream("a", 4, **settings)


def test_a_tokenizer_that_is_not_of_bytes(generation_bundle: Callable[[str], tuple[Path, Any]]) -> None:
    model = load(generation_bundle("llama")[0], provider="cpu", threads=1)
    assert isinstance(model, Decoder)
    with pytest.raises(InputError, match="need a tokenizer whose tokens are bytes, and this bundle's is another"):
        model.stream("a", 4, regex="a")


def test_without_llguidance(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InputError, match=r"need the package llguidance.*pip install 'tfm-export\[structured\]'"):
        opened("llama").generate("a", 4, regex="ab?")
