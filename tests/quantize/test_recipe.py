"""Recipes and methods as JSON: all come back as they were, and what is no recipe is refused by its place."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfm.errors import QuantizeError
from tfm.quantize import Recipe, read_recipe
from tfm.quantize.calibration.calibrators import CALIBRATORS
from tfm.quantize.methods.method import Method, method_to_json
from tfm.quantize.methods.registry import Blocks, Dynamic, Float32, Rotated, Static, method_from_json

SHARES = st.floats(0, 1)
METHODS: st.SearchStrategy[Method] = st.one_of(
    st.just(Float32()),
    st.builds(Dynamic, alpha=st.none() | SHARES, by_row=st.booleans()),
    st.builds(Static, calibrator=st.sampled_from(CALIBRATORS), alpha=st.none() | SHARES),
    st.builds(Rotated, block=st.sampled_from([16, 32, 64])),
    st.builds(
        Blocks,
        bits=st.sampled_from([8, 4]),
        block=st.sampled_from([16, 32, 64, 128]),
        calibrated=st.booleans(),
        smoothing=SHARES,
    ),
)
RECIPE = {"schema": 1, "precision": "int8", "graphs": {"model": {"a": {"form": "float32"}, "b": {"form": "dynamic"}}}}


@given(METHODS)
def test_every_method_comes_back(method: Method) -> None:
    values = json.loads(json.dumps(method_to_json(method)))
    assert set(values) == {"form", *(field.name for field in dataclasses.fields(method))}
    assert method_from_json(values, "here") == method


@given(st.dictionaries(st.sampled_from(["encoder", "decoder"]), st.dictionaries(st.text(), METHODS)))
def test_every_recipe_comes_back(
    tmp_path_factory: pytest.TempPathFactory, methods: dict[str, dict[str, Method]]
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "r.json"
    recipe = Recipe(precision="int8", methods=methods)
    path.write_text(json.dumps(recipe.to_json()))
    assert read_recipe(path) == recipe


def test_what_is_left_out_is_the_default() -> None:
    assert method_from_json({"form": "blocks", "bits": 4}, "here") == Blocks(bits=4)
    assert method_from_json({"form": "dynamic", "alpha": 1}, "here") == Dynamic(alpha=1)


BAD: list[tuple[Any, str]] = [
    (None, "here must have a form of float32, dynamic, rotated, static, blocks, but is None"),
    ("dynamic", "here must have a form of"),
    ({}, "here must have a form of"),
    ({"form": "fp8"}, "here must have a form of .*'fp8'"),
    ({"form": ["dynamic"]}, "here must have a form of"),
    ({"form": {}}, "here must have a form of"),
    ({"form": None}, "here must have a form of"),
    ({"form": "float32", "bits": 8}, "here: float32 has no 'bits'; known: nothing"),
    ({"form": "dynamic", "calibrator": "mse"}, "here: dynamic has no 'calibrator'; known: alpha, by_row"),
    ({"form": "dynamic", "form ": 1}, "here: dynamic has no 'form '"),
    ({"form": "dynamic", "alpha": 1.5}, "here: alpha cannot be 1.5"),
    ({"form": "dynamic", "alpha": float("nan")}, "here: alpha cannot be nan"),
    ({"form": "dynamic", "alpha": True}, "here: alpha cannot be True"),
    ({"form": "dynamic", "alpha": "0.5"}, "here: alpha cannot be '0.5'"),
    ({"form": "dynamic", "by_row": 1}, "here: by_row cannot be 1"),
    ({"form": "dynamic", "by_row": None}, "here: by_row cannot be None"),
    ({"form": "static", "calibrator": "max"}, "here: calibrator cannot be 'max'"),
    ({"form": "static", "calibrator": []}, "here: calibrator cannot be"),
    ({"form": "blocks", "bits": 2}, "here: bits cannot be 2"),
    ({"form": "blocks", "bits": 8.0}, "here: bits cannot be 8.0"),
    ({"form": "blocks", "bits": [8]}, "here: bits cannot be"),
    ({"form": "blocks", "block": 48}, "here: block cannot be 48"),
    ({"form": "blocks", "block": 8}, "here: block cannot be 8"),
    ({"form": "blocks", "block": 32.0}, "here: block cannot be 32.0"),
    ({"form": "blocks", "smoothing": None}, "here: smoothing cannot be None"),
    ({"form": "blocks", "products": "float32"}, "here: blocks has no 'products'; known: bits, block, calibrated"),
    ({"form": "rotated", "block": 24}, "here: block cannot be 24"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[str(values) for values, _ in BAD])
def test_what_is_no_method_is_refused_by_its_place(values: Any, message: str) -> None:
    with pytest.raises(QuantizeError, match=message):
        method_from_json(values, "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["alpha", "by_row", "bits", "block", "calibrated", "smoothing", "outliers", "calibrator"])


@given(JSON | st.fixed_dictionaries({"form": st.sampled_from(["dynamic", "static", "blocks"])}) | JSON, NAMES, JSON)
def test_no_json_gives_another_error(values: Any, name: str, value: Any) -> None:
    if isinstance(values, dict):
        values[name] = value
    with contextlib.suppress(QuantizeError):
        method = method_from_json(values, "here")
        assert method_from_json(method_to_json(method), "here") == method


BAD_FILES: list[tuple[str, str]] = [
    ("{", "is not JSON"),
    ("\ufeff{}", "is not JSON"),
    ("[]", r"its schema must be 1, but is \[\]"),
    ("{}", "its schema must be 1, but is None"),
    (json.dumps(RECIPE | {"schema": 2}), "its schema must be 1, but is 2"),
    (json.dumps(RECIPE | {"schema": "1"}), "its schema must be 1, but is '1'"),
    (json.dumps(RECIPE | {"precision": None}), "must name a precision and graphs"),
    (json.dumps(RECIPE | {"precision": "int3"}), "precision 'int3'; known: int8, int4"),
    (json.dumps(RECIPE | {"graphs": []}), "must name a precision and graphs"),
    (json.dumps(RECIPE | {"graphs": {"model": []}}), r"graphs\.model must map ops to methods"),
    (json.dumps(RECIPE | {"graphs": {"model": {"a": {"form": "q"}}}}), r"graphs\.model\.'a' must have a form of"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_what_is_no_recipe_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(QuantizeError, match=message) as caught:
        read_recipe(tmp_path / "r.json")
    assert "r.json" in str(caught.value)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"no recipe to read at .*r\.json \(No such file"):
        read_recipe(tmp_path / "r.json")
    with pytest.raises(QuantizeError, match="no recipe to read"):
        read_recipe(tmp_path)
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QuantizeError, match="is not JSON"):
        read_recipe(tmp_path / "r.json")


def test_another_models_recipe_is_refused() -> None:
    recipe = Recipe(precision="int8", methods={"model": {"a": Float32(), "b": Dynamic()}})
    assert recipe.of("model", ["b", "a"]) == {"b": Dynamic(), "a": Float32()}
    assert list(recipe.of("model", ["b", "a"])) == ["b", "a"]
    with pytest.raises(QuantizeError, match="for another model: the model has no op 'a'; the nearest is 'a1'"):
        recipe.of("model", ["a1", "b"])
    with pytest.raises(QuantizeError, match="for another model: it does not say how to quantize 'c' of the model"):
        recipe.of("model", ["a", "b", "c"])
    with pytest.raises(QuantizeError, match="for another model: it does not say how to quantize 'a' of the decoder"):
        recipe.of("decoder", ["a"])


def test_older_recipes_are_read() -> None:
    """Blocks once said how their products are computed; those of integers are computed so still."""
    assert method_from_json({"form": "blocks", "bits": 4, "products": "int8"}, "here") == Blocks(bits=4)


def test_methods_of_one_speed_are_of_one_class() -> None:
    classes = [method.speed_class for method in (Dynamic(), Dynamic(alpha=0.5), Dynamic(alpha=0.9))]
    assert classes[0] != classes[1] == classes[2]
    assert len({*classes, Dynamic(by_row=True).speed_class, Dynamic(by_row=True, alpha=0.5).speed_class}) == 4
    assert Static(calibrator="mse").speed_class == Static().speed_class != Static(alpha=0.5).speed_class
    blocks = [Blocks(), Blocks(bits=4), Blocks(block=32), Rotated(block=16), Rotated(), Blocks(calibrated=False)]
    assert len({method.speed_class for method in blocks}) == len(blocks)


@given(METHODS, METHODS)
def test_methods_that_compute_otherwise_have_other_names(one: Method, other: Method) -> None:
    """Names go into the certificate; what does not count without calibration is left out of them."""
    if str(one) == str(other):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert a == b or f"{a:g}" == f"{b:g}" or not getattr(one, "calibrated", True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema": 1, "schema": 1}', "it names 'schema' twice"),
        (b'{"schema": true, "precision": "int8", "graphs": {}}', "its schema must be 1, but is True"),
        (b'{"schema": 1.0, "precision": "int8", "graphs": {}}', "its schema must be 1, but is 1.0"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff", "is not JSON"),
        (json.dumps({"schema": "x" * 10**6}).encode(), "its schema must be 1, but is 'xxx"),
        (json.dumps({"schema": 1, "precision": "int8", "graphs": {"m": {"a" * 10**6: 3}}}).encode(), "a form of"),
        (json.dumps(RECIPE | {"graphs": {"m": {"a": {"form": "blocks", "block": 2**40}}}}).encode(), "block cannot be"),
    ],
    ids=range(9),
)
def test_odd_recipes_are_refused_in_a_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(QuantizeError, match=told) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 800


def test_a_recipe_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "r.json", "wb") as stream:
        stream.truncate(1 << 40)  # a hole of a terabyte
    with pytest.raises(QuantizeError, match=r"no recipe to read at .* bytes, more than 33554432\)"):
        read_recipe(tmp_path / "r.json")
