"""Who may import whom. Read from the source, so that imports inside functions count as well."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
ROOMS = sorted(file.parent.name for file in REPO.glob("*/__init__.py") if file.parent.name != "tfm")
ALL_MAY = {"errors", "lazy"}
MAY_IMPORT = {
    "ops": set(),
    "bundle": {"ops"},
    "model": {"bundle", "ops"},
    "runtime": {"bundle", "ops"},
    "report": {"bundle", "ops"},
    "latency": {"bundle", "ops", "report", "runtime"},
    "quantize": {"bundle", "latency", "ops", "report", "runtime"},
    "export": {"bundle", "latency", "model", "ops", "quantize", "report", "runtime"},
    "study": {"bundle", "export", "latency", "model", "ops", "quantize", "report", "runtime"},
    "serve": {"bundle", "runtime"},
    "batch": {"bundle", "runtime"},
    "cli": set(ROOMS) - {"cli"},
}
HEAVY = {"torch", "onnx", "onnxscript", "onnx_ir", "safetensors"}
NO_HEAVY = {"batch", "bundle", "latency", "ops", "report", "runtime", "serve"}
NO_TORCH = {"quantize"}


def imported(source: str, package: str) -> set[str]:
    """Absolute names of everything that a module of `package` imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                names.add(str(node.args[0].value))
    return names


def violations(source: str, package: str) -> list[str]:
    """The imports that a module of `package` ("tfm.room" or "tfm.room.folder") must not make."""
    room = package.split(".")[1]
    wrong = []
    for name in sorted(imported(source, package)):
        top, *rest = name.split(".")
        if top == "tfm":
            target = rest[0] if rest else "*"
            if target != room and target not in MAY_IMPORT[room] | ALL_MAY:
                wrong.append(name)
        elif (top in HEAVY and room in NO_HEAVY) or (top == "torch" and room in NO_TORCH):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((REPO / room).rglob("*.py"))
    assert files
    wrong = {}
    for file in files:
        package = ".".join(["tfm", *file.parent.relative_to(REPO).parts])
        if found := violations(file.read_text(encoding="utf-8"), package):
            wrong[str(file.relative_to(REPO))] = found
    assert not wrong


@pytest.mark.parametrize(
    ("source", "package", "caught"),
    [
        ("import torch", "tfm.runtime", ["torch"]),
        ("import onnx.helper", "tfm.runtime", ["onnx.helper"]),
        ("def f():\n    from safetensors import numpy", "tfm.runtime", ["safetensors.numpy"]),
        ("if True:\n    from tfm import model", "tfm.runtime", ["tfm.model"]),
        ("from ..model import config", "tfm.runtime", ["tfm.model.config"]),
        ("from .. import quantize", "tfm.runtime", ["tfm.quantize"]),
        ("from ...export import graphs", "tfm.runtime.folder", ["tfm.export.graphs"]),
        ("import importlib\nimportlib.import_module('torch')", "tfm.runtime", ["torch"]),
        ("import tfm.cli", "tfm.export", ["tfm.cli"]),
        ("from tfm.runtime import load", "tfm.model", ["tfm.runtime.load"]),
        ("import torch", "tfm.quantize", ["torch"]),
        ("from tfm.quantize.text import words\nimport onnx", "tfm.latency", ["onnx", "tfm.quantize.text.words"]),
        ("from tfm.model import Transformer", "tfm.quantize", ["tfm.model.Transformer"]),
        ("import onnxruntime\nimport numpy\nfrom tfm.errors import TfmError\nfrom .a import b", "tfm.runtime", []),
        ("import onnx\nfrom tfm.runtime import load", "tfm.quantize", []),
        ("from ..graphs import build\nfrom tfm.model import Transformer", "tfm.export.passes", []),
    ],
)
def test_the_checker_sees_planted_violations(source: str, package: str, caught: list[str]) -> None:
    assert violations(source, package) == caught
