"""What make test-versions calls a fault: each planted one is found, and nothing else is."""

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REFUSED = "BundleError: decoder.onnx needs onnxruntime >= 1.25.0, and this is 1.24.1: pip install -U onnxruntime"
SENTENCE = "pip install -U onnxruntime"


@pytest.fixture(scope="module")
def matrix() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(Path(__file__).parent))
        before = set(sys.modules)
        yield importlib.import_module("matrix")
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path(__file__).parent:
                del sys.modules[name]


MANIFEST = {"requires": {"onnxruntime": {"fp32": {"model": "1.25.0"}}}}


def found(version: str) -> dict[str, Any]:
    """What an environment without fault did with a decoder."""
    steps = {"load": "ok", "run": "ok", "generate": "ok"}
    answers = {"run": {"logits": [[1.0, -2.0]]}, "generate": ["a", "b"]}
    did: dict[str, Any] = {"steps": steps, "answers": answers}
    commands = {name: {"code": 0, "said": "✓"} for name in ("parity", "doctor", "tfm run")}
    if version == "1.24.1":
        did = {"steps": {"load": REFUSED}, "answers": {}}
        commands = {name: {"code": 1, "said": SENTENCE} for name in ("parity", "doctor")}
        commands["tfm run"] = {"code": 2, "said": SENTENCE}
    decoder = {"precisions": {"fp32": did}, "commands": commands}
    return {"versions": {"onnxruntime": version}, "kinds": {"decoder": decoder}}


def faults(matrix: Any, report: dict[str, Any]) -> list[str]:
    return list(matrix.judge("decoder", report, MANIFEST, found("1.32.0")))


@pytest.mark.parametrize("version", ["1.24.1", "1.25.0", "1.32.0"])
def test_what_runs_and_what_is_refused_as_it_should_be_is_no_fault(matrix: Any, version: str) -> None:
    assert faults(matrix, found(version)) == []


def edit(version: str, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    report = copy.deepcopy(found(version))
    change(report["kinds"]["decoder"])
    return report


def fp32(decoder: dict[str, Any]) -> Any:
    return decoder["precisions"]["fp32"]


@pytest.mark.parametrize(
    ("version", "change", "words"),
    [
        ("1.24.1", lambda d: fp32(d)["steps"].update(load="ok"), "was not refused as it should be"),
        ("1.24.1", lambda d: fp32(d)["steps"].update(load="BundleError: no kernel"), "was not refused"),
        ("1.24.1", lambda d: fp32(d)["steps"].update(run="ok"), "was not refused as it should be"),
        ("1.24.1", lambda d: d["commands"]["parity"].update(code=0), "parity is to end with 1"),
        (
            "1.24.1",
            lambda d: d["commands"]["tfm run"].update(said="no kernel"),
            "but did with 2: no kernel",
        ),
        ("1.25.0", lambda d: fp32(d)["steps"].update(load=REFUSED), "load said BundleError: decoder.onnx needs"),
        ("1.25.0", lambda d: fp32(d)["steps"].update(generate="TypeError: no"), "generate said TypeError: no"),
        ("1.25.0", lambda d: fp32(d)["steps"].pop("generate"), "only load, run were tried"),
        ("1.25.0", lambda d: fp32(d)["answers"].update(generate=["a", "c"]), "generate gives something else"),
        ("1.25.0", lambda d: fp32(d)["answers"].update(run={"logits": [[1.0, -2.001]]}), "run gives something else"),
        ("1.25.0", lambda d: fp32(d)["answers"].update(run={"logits": [[1.0, float("nan")]]}), "run gives something"),
        ("1.25.0", lambda d: fp32(d)["answers"].update(run={"logits": [[1.0]]}), "run gives something else"),
        ("1.25.0", lambda d: fp32(d)["answers"].update(run={}), "run gives something else"),
        ("1.25.0", lambda d: d["commands"]["doctor"].update(code=1), "doctor is to end with 0"),
        (
            "1.25.0",
            lambda d: d["commands"]["doctor"].update(said="Traceback ("),
            "but did with 0",
        ),
    ],
)
def test_a_planted_fault_is_found(
    matrix: Any, version: str, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    (fault,) = faults(matrix, edit(version, change))
    assert words in fault


def test_what_is_as_close_as_versions_are_is_the_same(matrix: Any) -> None:
    report = edit("1.25.0", lambda d: fp32(d)["answers"].update(run={"logits": [[1.0, -2.0001]]}))
    assert faults(matrix, report) == []


def test_the_boundary_of_what_opens(matrix: Any) -> None:
    engines = matrix.ENGINES
    assert matrix._boundary(engines[3:]) == (engines[2], engines[3])
    assert matrix._boundary([]) == (engines[-1], "")


def test_the_oldest_combination_is_what_is_declared(matrix: Any) -> None:
    combinations = importlib.import_module("combinations")
    assert set(combinations.OLDEST) == {"click", "numpy", "onnxruntime", "tokenizers"}
    assert {"onnx", "onnx-ir", "rich", "jinja2"} <= set(combinations._QUANTIZE)
    assert {"onnxscript", "safetensors", "gguf"} <= set(combinations.EXPORTING.pins)
    assert "torch" not in combinations.EXPORTING.pins
