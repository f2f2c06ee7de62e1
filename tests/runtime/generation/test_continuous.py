"""Texts that come and go at any time are what they are alone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_bundles import CHARACTERS
from tfm.errors import InputError
from tfm.runtime import Decoder, load
from tfm.runtime.generation.continuous import Row


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, generation_bundle: Callable[[str], tuple[Path, Any]]) -> Decoder:
    found = load(generation_bundle(request.param)[0], provider="cpu", threads=1)
    assert isinstance(found, Decoder)
    return found


WAYS: list[dict[str, Any]] = [
    {"max_new_tokens": 9},
    {"max_new_tokens": 1},
    {"max_new_tokens": 7, "do_sample": True, "seed": 4, "temperature": 1.5},
    {"max_new_tokens": 12, "repetition_penalty": 2.0},
    {"max_new_tokens": 5, "do_sample": True, "seed": 4, "top_k": 3},
    {"max_new_tokens": 10, "stop": ["a", "b", "7"]},
]


def test_rows_that_come_and_go(model: Decoder) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(CHARACTERS), rng.integers(1, 9))) for _ in range(18)]
    expected = ["".join(model.stream(text, **WAYS[n % len(WAYS)])) for n, text in enumerate(texts)]
    batch, waiting = model.continuous_batch(), list(enumerate(texts))
    found = [""] * len(texts)
    number: dict[Row, int] = {}
    most = 0
    while waiting or batch.rows:
        # In bursts, so that long and short ones stand beside each other in many ways.
        for _ in range(min(len(waiting), int(rng.integers(0, 4)))):
            place, text = waiting.pop(0)
            number[batch.add(text, **WAYS[place % len(WAYS)])] = place
        most = max(most, len(batch.rows))
        for row in batch.step():
            found[number[row]] += row.text
            assert (row.reason is None) == (row in batch.rows)
    assert most > 3
    assert found == expected
    assert {row.reason for row in number} >= {"length"}
    assert all(row.prompt_tokens == len(model.tokenize([texts[place]])[0]) for row, place in number.items())


def test_a_row_that_is_removed_leaves_the_others_as_they_are(model: Decoder) -> None:
    batch = model.continuous_batch()
    first, second, third = (batch.add(text, 8) for text in ("abcdefg", "h", "kl"))
    text = {first: "", third: ""}
    for step in range(8):
        if step == 3:
            batch.remove(second)
            batch.remove(second)
        for row in batch.step():
            if row in text:
                text[row] += row.text
    assert second.reason is None
    assert second.new_tokens == 3
    assert list(text.values()) == model.generate(["abcdefg", "kl"], 8)
    assert batch.rows == []
    assert batch.step() == []


def test_one_that_is_refused_leaves_the_others_as_they_are(model: Decoder) -> None:
    batch = model.continuous_batch()
    row = batch.add("abc", 4)
    text = batch.step()[0].text
    with pytest.raises(InputError):
        batch.add(["x"] * 3, 4)
    with pytest.raises(InputError):
        batch.add([10**6], 4)
    with pytest.raises(InputError, match=re.escape("num_beams")):
        batch.add("abc", 4, num_beams=2)
    while batch.rows:
        text += batch.step()[0].text
    assert [text] == model.generate(["abc"], 4)
    assert row.reason is not None


def test_one_that_cannot_go_on_leaves_the_others_as_they_are(model: Decoder) -> None:
    def fail(tokens: Any, logits_BV: Any) -> Any:
        if len(tokens[0]) > 6:
            raise InputError("no more")
        return logits_BV

    batch = model.continuous_batch()
    good, bad = batch.add("abc", 8), batch.add("abcd", 8, logits_processors=[fail])
    text = ""
    while batch.rows:
        text += "".join(row.text for row in batch.step() if row is good)
    assert [text] == model.generate(["abc"], 8)
    assert (bad.reason, str(bad.error)) == ("error", "no more")


def test_ids(model: Decoder) -> None:
    batch = model.continuous_batch()
    row = batch.add([5, 6, 7], 5)
    while batch.rows:
        batch.step()
    ended = row.reason == "stop_token"
    assert row.tokens[3 : len(row.tokens) - ended] == model.generate([[5, 6, 7]], 5)[0]
