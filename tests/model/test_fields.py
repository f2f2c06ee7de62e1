"""Every field of a configuration is read as what it must be, or refused by its file, its name and what it is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfm.errors import CheckpointError, ConfigError
from tfm.model.fields import Fields, shown
from tfm.model.json_file import read_json, read_object

Read = Callable[[Fields], Any]

READS: dict[str, tuple[Read, list[Any], list[Any], str]] = {
    "size": (
        lambda f: f.size("k"),
        [1, 2**24],
        [0, -1, 2**24 + 1, 2**63, 10**400, True, 2.0, "2", None, [2], {}],
        "an in",
    ),
    "size with a default": (lambda f: f.size("k", 7), [1], [None, 0, "7"], "an integer from 1"),
    "optional size": (lambda f: f.optional_size("k"), [1, None], [0, False, 1.0, ""], "an integer from 1"),
    "nullable size": (lambda f: f.nullable_size("k"), [1, None], [0, False, 1.0, ""], "an integer from 1"),
    "layers": (lambda f: f.layers("k"), [1, 10_000], [10_001, 2**31, None], "an integer from 1 to 10000"),
    "vocabulary": (lambda f: f.vocabulary("k"), [2**31 - 1], [2**31, 0], "an integer from 1 to 2147483647"),
    "number": (
        lambda f: f.number("k"),
        [1, 1.5, 1e-5],
        [0, -1, math.nan, math.inf, -math.inf, 1e308, 10**400, 1e-320, True, "1", None, [1.0]],
        "a number from 1e-30 to 1e+30",
    ),
    "optional number": (lambda f: f.optional_number("k", most=2), [None, 2], [2.5, math.nan, ""], "a number from"),
    "share": (lambda f: f.share("k", 0.1), [0, 0.5], [1, 1.0, -0.1, math.nan, None, "0"], "a number "),
    "flag": (lambda f: f.flag("k"), [True, False, None], [0, 1, "false", "", [], 2.0], "true or false"),
    "flag that is true": (lambda f: f.flag("k", True), [True, False], [None, 1, "true"], "true or false"),
    "text": (lambda f: f.text("k"), ["", "x"], [None, 1, ["x"], True], "a string"),
    "texts": (lambda f: f.texts("k"), [None, [], ["a"]], ["a", [1], [[]], {"a": "b"}, 3], "a list of strings"),
    "flags": (
        lambda f: f.flags("k"),
        [None, [0, 1], [True, False]],
        [[2], [0, True], "01", [None], 1],
        "a list of true and",
    ),
    "token": (lambda f: f.token("k"), [None, 0, -1, 2**63], [True, 1.0, "1", [1]], "the id of a token"),
    "tokens": (lambda f: f.tokens("k"), [None, 1, [1, 2]], [[], [True], "1", [[1]], [1.0], {}], "the id of a token"),
    "inner": (lambda f: f.inner("k"), [None, {}, {"a": 1}], [[], "x", 1, False], "an object of names"),
}


@pytest.mark.parametrize("name", READS)
def test_a_field_is_read_as_one_type(name: str) -> None:
    read, fine, odd, expected = READS[name]
    for value in fine:
        read(Fields("c.json", "X", {"k": value}))
    for value in odd:
        with pytest.raises(ConfigError, match=r"^c\.json: k must be ") as caught:
            read(Fields("c.json", "X", {"k": value}))
        assert expected in str(caught.value)
        assert str(caught.value).endswith(f"but is {shown(value)}")


def test_a_missing_field_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^c: a BERT configuration needs 'hidden_size', which this one lacks$"):
        Fields("c", "BERT", {"vocab": 1}).size("hidden_size")
    with pytest.raises(ConfigError, match=r"'hidden_size', which this one lacks; it has 'hiden_size' instead$"):
        Fields("c", "BERT", {"hiden_size": 1}).size("hidden_size")
    with pytest.raises(ConfigError, match=r"^c: a X configuration needs 'factor' in rope, which"):
        Fields("c", "X", {"rope": {}}).inner("rope").number("factor")
    with pytest.raises(ConfigError, match=r"^c: rope\.factor must be a number"):
        Fields("c", "X", {"rope": {"factor": "2"}}).inner("rope").number("factor")


def test_what_is_supported_is_of_the_same_type() -> None:
    Fields("c", "X", {"k": True}).supports("k", [True])
    Fields("c", "X", {"k": None}).supports("k", [True])
    Fields("c", "X", {}).supports("k", [True])
    for value in (1, 1.0, "True", [True]):
        with pytest.raises(ConfigError, match=r"^c: X with k = .* is not supported; expected True"):
            Fields("c", "X", {"k": value}).supports("k", [True])


def test_choices_tell_the_nearest() -> None:
    assert Fields("c", "X", {"k": "mean"}).choice("k", ["mean", "cls"]) == "mean"
    with pytest.raises(
        ConfigError, match=r"X with k = 'meen' is not supported; known: mean, cls; the nearest is 'mean'"
    ):
        Fields("c", "X", {"k": "meen"}).choice("k", ["mean", "cls"])


def test_unknown_fields_are_refused_unless_they_say_nothing() -> None:
    Fields("c", "X", {"a": 1, "b": 0, "c": None, "d": [], "e": {}, "f": False}).refuse_unknown("a")
    for value in (1, "", "x", True, [0], math.nan):
        with pytest.raises(ConfigError, match=r"^c: X with b1 = .* is not supported; the nearest known field is 'b'$"):
            Fields("c", "X", {"b1": value}).refuse_unknown("a b")


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, list(range(10**5)), deep(10**5), 10**6000, -(10**6000), {"k": deep(900)}, {10**6000: 1}],
    ids=range(7),
)
def test_values_are_shown_in_a_line(value: object) -> None:
    assert len(shown(value)) < 400
    with pytest.raises(ConfigError) as caught:
        Fields("c", "X", {"k": value}).flag("k")
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=9
)


@given(VALUES, st.sampled_from(list(READS)))
def test_no_value_raises_anything_else(value: Any, name: str) -> None:
    try:
        READS[name][0](Fields("c", "X", {"k": value}))
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": 1, "b": 2, "a": 3}', "it names 'a' twice"),
        (b"\xef\xbb\xbf{}", "missing or not JSON"),
        ('{"a": 1}'.encode("utf-16"), "missing or not JSON"),
        (b'{"a": "\xff"}', "missing or not JSON"),
        (b"", "missing or not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "missing or not JSON"),
    ],
    ids=range(8),
)
def test_json_that_is_none(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=told) as caught:
        read_json(tmp_path / "c.json")
    assert str(tmp_path / "c.json") in str(caught.value)


def test_json_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "c.json", "wb") as stream:
        stream.truncate(1 << 40)  # a hole of a terabyte
    with pytest.raises(CheckpointError, match=r"c\.json is larger than 32 MiB, which no part of a checkpoint is"):
        read_json(tmp_path / "c.json")


def test_json_that_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(CheckpointError, match="is not a plain file"):
        read_json(tmp_path / "c.json")


def test_json_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps([1]))
    assert read_json(tmp_path / "c.json") == [1]
    with pytest.raises(CheckpointError, match="holds a list, not a dict"):
        read_object(tmp_path / "c.json")
