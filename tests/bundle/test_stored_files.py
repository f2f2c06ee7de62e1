"""The JSON files of a bundle: each has one module that reads and writes it, and what was written is read as it was."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tfm.bundle import GoldenLimits, RecipeFile, parse_once, read_certificate, read_recipe_file, renew_certificate
from tfm.errors import BundleError

REPO = Path(__file__).resolve().parents[2]
FILES = re.compile(r"(manifest|parity|golden)\.json|golden\.npz|recipe_.*\.json")


def named(source: str) -> list[str]:
    """The strings of a module that are the name of a bundle's file; of an f-string what is fixed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return [text for text in found if FILES.fullmatch(text)]


def test_no_other_room_names_them() -> None:
    rooms = [face.parent for face in REPO.glob("*/__init__.py") if face.parent.name not in ("bundle", "tfm")]
    files = [file for room in rooms for file in room.rglob("*.py")]
    assert len(files) > 100
    found = {str(file.relative_to(REPO)): named(file.read_text(encoding="utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == {}
    planted = named("x = f'recipe_{p}.json'; y = folder / 'parity.json'; z = 'see parity.json'")
    assert sorted(planted) == ["parity.json", "recipe_….json"]


CERTIFICATE: dict[str, Any] = {
    "schema": 3,
    "passed": True,
    "files": {"onnx/model.onnx": 1},
    "graphs": [{"precision": "fp32"}, {"precision": "int8"}],
    "fidelity": [{"precision": "int8"}],
    "latency": [
        {"work": "a", "milliseconds": {"fp32": 2, "int8": 1}, "ratios": {"int8": 2}},
        {"work": "b", "milliseconds": {"fp32": 2, "int8": 1}},
    ],
    "speed": [{"precision": "int4", "baseline": "fp32"}, {"precision": "int8", "baseline": "fp32"}],
    "sizes": {"fp32": 4, "int8": 1},
}


def renewed(old: dict[str, Any]) -> dict[str, Any]:
    line = {"work": "a", "milliseconds": {"fp32": 3, "int8": 2}, "ratios": {}}
    return renew_certificate(
        old,
        "int8",
        passed=False,
        quantization={"int8": {"drop": 0}},
        latency=[line],
        speed=[{"precision": "int8", "baseline": "fp32", "ratio": 1.5}],
        size=2,
        files={"onnx/model_int8.onnx": 2},
    )


@pytest.mark.parametrize("schema", [2, 3])
def test_a_certificate_is_renewed_in_what_is_of_the_precision(schema: int) -> None:
    made = renewed(CERTIFICATE | {"schema": schema})
    assert list(made) == [*CERTIFICATE, "quantization"]  # in its order
    assert (made["schema"], made["passed"], made["sizes"]) == (3, False, {"fp32": 4, "int8": 2})
    assert (made["graphs"], made["fidelity"]) == ([{"precision": "fp32"}], [])
    assert made["latency"][1:] == [{"work": "b", "milliseconds": {"fp32": 2}}]
    # That of int4 has no times any more that it could be drawn with.
    assert made["speed"] == [{"precision": "int8", "baseline": "fp32", "ratio": 1.5}]
    assert set(made["files"]) == {"onnx/model.onnx", "onnx/model_int8.onnx"}


@pytest.mark.parametrize("schema", [1, 4, "3", None])
def test_a_certificate_of_another_schema_is_not_taken_for_one_of_ours(tmp_path: Path, schema: Any) -> None:
    """It would be renewed in part, and called one of the newest."""
    assert read_certificate(tmp_path) is None
    (tmp_path / "parity.json").write_text(json.dumps({"schema": schema}))
    with pytest.raises(
        BundleError, match=r"parity\.json is written anew from one of schema 2 or 3, and this one is of"
    ):
        read_certificate(tmp_path)
    (tmp_path / "parity.json").write_text("[3]")
    with pytest.raises(BundleError, match=r"it must be an object, but is \[3\]"):
        read_certificate(tmp_path)


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = RecipeFile(precision="int8", graphs={"model": {"a": {"form": "float32"}, "b": 3}})
    recipe.write(tmp_path)
    assert read_recipe_file(tmp_path / "recipe_int8.json") == recipe


def test_the_limit_of_an_output() -> None:
    nmse = {"model": {"y": 1e-3, "ids": None}}
    exact = GoldenLimits(measure="max_abs", factor=1e-4, floor=1e-5, nmse=nmse)
    assert exact.limit("model", "ids", 2.0) == 1e-5 + 1e-4 * 2.0
    assert list(exact.to_json().items())[:2] == [("atol", 1e-5), ("rtol", 1e-4)]
    rounded = GoldenLimits(measure="nmse", factor=2.0, floor=1e-9, nmse=nmse)
    assert (rounded.limit("model", "y", 2.0), rounded.limit("model", "ids", 2.0)) == (2.0 * 1e-3 + 1e-9, None)
    assert rounded.to_json() == {"nmse_factor": 2.0, "nmse_floor": 1e-9, "nmse": nmse}


def test_each_key_is_named_once() -> None:
    assert parse_once(b'{"a": {"b": 1}, "b": [2]}') == {"a": {"b": 1}, "b": [2]}
    with pytest.raises(ValueError, match="it names 'b' twice"):
        parse_once(b'{"a": {"b": 1, "c": 0, "b": 2}}')
