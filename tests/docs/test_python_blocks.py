"""Every block of Python is run, page by page, from top to bottom; one that is marked has at least names that exist."""

import ast
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def run(page: str, blocks: list[Any]) -> dict[str, Any]:
    """Run a page's blocks one after the other, in one namespace, as a reader would in a notebook."""
    module = types.ModuleType("__page__")
    for block in blocks:
        if block.language == "python" and block.not_run is None:
            code = compile("\n" * (block.line - 1) + block.source, page, "exec")
            exec(code, module.__dict__)
    return module.__dict__


def close_all(names: dict[str, Any]) -> None:
    for value in names.values():
        if hasattr(value, "close") and not isinstance(value, type):
            value.close()


def test_every_block_of_a_page_runs(page: str, blocks: list[Any], workplace: Path) -> None:
    close_all(run(page, blocks))


def problems(source: str) -> Iterator[str]:
    """What does not exist of what a block imports, reads of that, and passes to it by name."""
    nodes = list(ast.walk(ast.parse(source)))
    names: dict[str, Any] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= imported(node)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.import_module(node.module)
            yield from (f"{node.module} has no {alias.name}" for alias in node.names if not hasattr(module, alias.name))
            names |= {alias.asname or alias.name: getattr(module, alias.name, None) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            owner = resolve(node.value, names)
            if isinstance(owner, types.ModuleType | type) and not hasattr(owner, node.attr):
                yield f"{ast.unparse(node.value)} has no {node.attr}"
        elif isinstance(node, ast.Call) and callable(function := resolve(node.func, names)):
            yield from wrong_keywords(node, function)


def imported(node: ast.Import) -> dict[str, Any]:
    """The names that an import binds: of `import a.b` that is a."""
    found = {}
    for alias in node.names:
        module = importlib.import_module(alias.name)
        top = alias.name.partition(".")[0]
        found[alias.asname or top] = module if alias.asname else importlib.import_module(top)
    return found


def resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """What `name` or `name.attribute…` stands for; None: nothing that was imported."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := resolve(node.value, names)) is not None:
        return getattr(owner, node.attr, None)
    return None


def wrong_keywords(call: ast.Call, function: Callable[..., Any]) -> Iterator[str]:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of what is written in C nothing is known
        return
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for keyword in call.keywords:
            if keyword.arg is not None and keyword.arg not in parameters:
                yield f"{ast.unparse(call.func)} has no parameter {keyword.arg}"


def test_a_block_that_is_not_run_says_why(blocks: list[Any]) -> None:
    for block in blocks:
        if block.not_run is not None:
            assert len(block.not_run.split()) >= 4, f"{block.place}: why is it not run? One sentence in the comment"
            assert block.language == "python", f"{block.place}: only blocks of Python are run at all"


def test_every_block_names_what_exists(blocks: list[Any]) -> None:
    """Also in one that is not run, and in functions that a block defines and nobody calls."""
    for block in blocks:
        if block.language == "python":
            assert not list(problems(block.source)), block.place


def test_most_blocks_are_run(find_blocks: Any) -> None:
    root = Path(__file__).resolve().parents[2]
    pages = [root / "README.md", *root.glob("docs/**/*.md")]
    found = [block for page in pages for block in find_blocks(page.name, page.read_text(encoding="utf-8"))]
    python = [block for block in found if block.language == "python"]
    assert len([block for block in python if block.not_run is None]) >= 20
    assert len([block for block in python if block.not_run is not None]) <= 3


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from tfm.runtime import lode", ["tfm.runtime has no lode"]),
        ("import tfm\ntfm.lode('x')", ["tfm has no lode"]),
        ("import tfm\ntfm.load('x', thread=1)", ["tfm.load has no parameter thread"]),
        ("from tfm.runtime import Model as M\nM.opened", ["M has no opened"]),
        ("import tfm\nmodel = tfm.load('x', threads=1)\nmodel.embed(1)", []),
    ],
)
def test_a_name_that_is_wrong_is_found(source: str, found: list[str]) -> None:
    assert list(problems(source)) == found


def test_marks_are_read(find_blocks: Any) -> None:
    marked = "<!-- not run: it takes an hour -->\n```python\n1\n```\n"
    unexplained = "<!-- not run: -->\n\n~~~python\n3\n~~~\n"
    text = f"a\n\n{marked}\n```python\n2\n```\n{unexplained}"
    found = [(block.line, block.source, block.not_run) for block in find_blocks("x.md", text)]
    assert found == [(5, "1\n", "it takes an hour"), (9, "2\n", None), (14, "3\n", "")]


def test_an_error_has_the_line_of_the_page(find_blocks: Any) -> None:
    blocks = find_blocks("x.md", "a\n\n```python\nhere = 1\n```\n\n```python\nhere / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run("x.md", blocks)
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == ("x.md", 8)
