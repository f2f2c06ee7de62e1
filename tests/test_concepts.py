"""docs/concepts.md names files, classes and ONNX operators as they are."""

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from tfm.export import OPSET
from tfm.export.passes import OP_KEY
from tfm.ops import OpId

ExportTiny = Callable[..., dict[str, Any]]

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")

KINDS = {"sinusoidal_positions": "embedding", "make_activation": "activation", "make_norm": "norm"}
"""What the functions among the names give the model, as `OpId.kind` has it."""


def rows(table: str) -> dict[str, list[str]]:
    """The first cell of each row of a table, the header aside → the others."""
    text = PAGE.split(f"<!-- {table} -->")[1].split(f"<!-- /{table} -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: rest for first, *rest in cells}


def quoted(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


CONCEPTS, OPTIONS = rows("concepts"), rows("options")
CLASSES = {name for _, code, _ in [*CONCEPTS.values(), *OPTIONS.values()] for name in quoted(code) if name[0].isupper()}
PLUMBING = set(re.findall(r"`(\w+)`", PAGE.split("moves axes:")[1].split(".")[0]))


def file_of(code: str) -> Path:
    """The file that a cell of code links to."""
    shown, linked = re.findall(r"\[`(\S+)`\]\((\S+)\)", code)[0]
    assert linked == f"../{shown}"
    return ROOT / shown


def owner(op: OpId, model: Any) -> str:
    """The class, of those that the page names, that an op of a model is in; the innermost."""
    modules, path = dict(model.named_modules()), op.path
    while path and type(modules[path]).__name__ not in CLASSES:
        path = path.rpartition(".")[0]
    return type(modules[path]).__name__


def nodes_of(exported: Iterable[Any]) -> list[tuple[str, OpId | None, str]]:
    """The operator of every node of some graphs, the op that it belongs to, and that op's class."""
    found = []
    for one in exported:
        for node in ir.load(one.path).graph:
            label = node.metadata_props.get(OP_KEY)
            op = None if label is None else OpId.parse(label)
            found.append((node.op_type, op, "" if op is None else owner(op, one.graph.model)))
    return found


def check_operators(row: list[str], nodes: list[tuple[str, OpId | None, str]]) -> None:
    """The row has all that its code became, and beyond that only what belongs to no op by name."""
    _, code, cell = row
    names, said = quoted(code), set(quoted(cell))
    kinds = [KINDS[name] for name in names if name in KINDS]
    own = {became for became, op, name in nodes if op is not None and (name in names or op.kind in kinds)}
    assert said
    assert own <= said
    assert said - own <= {became for became, op, _ in nodes if op is None}


def test_the_page_has_what_it_is_for() -> None:
    asked = ("Self-attention", "Positions", "Feed-forward", "Residual", "Activation")
    assert set(asked) <= set(CONCEPTS)
    assert f"default opset, {OPSET}." in PAGE
    assert "docs/concepts.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", [*CONCEPTS.values(), *OPTIONS.values()], ids=[*CONCEPTS, *OPTIONS])
def test_the_code_is_where_the_page_says(row: list[str]) -> None:
    body = ast.parse(file_of(row[1]).read_text(encoding="utf-8")).body
    defined = {part.name for part in body if isinstance(part, ast.ClassDef | ast.FunctionDef)}
    assert quoted(row[1])
    assert set(quoted(row[1])) <= defined


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_concept_is_exported_as_the_page_says(export_tiny: ExportTiny, concept: str) -> None:
    check_operators(CONCEPTS[concept], nodes_of(export_tiny().values()))


def test_nothing_else_is_in_the_graphs(export_tiny: ExportTiny) -> None:
    named = {op for row in CONCEPTS.values() for op in quoted(row[-1])}
    assert not named & PLUMBING
    assert {became for became, *_ in nodes_of(export_tiny().values())} == named | PLUMBING


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_exported_as_the_page_says(export_tiny: ExportTiny, option: str) -> None:
    call = ast.parse(f"dict({option.strip('`')})", mode="eval").body
    assert isinstance(call, ast.Call)
    values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    plain, changed = (nodes_of(export_tiny(kind="encoder", **given).values()) for given in ({}, values))
    before, after = ([became for became, *_ in nodes] for nodes in (plain, changed))
    if OPTIONS[option][-1] == "nothing more":
        assert after == before
        return
    check_operators(OPTIONS[option], changed)
    assert after != before
    assert set(after) - set(before) - PLUMBING - {"Constant"} <= set(quoted(OPTIONS[option][-1]))
