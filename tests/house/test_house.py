"""The structure does not get worse, by the numbers of `make house`; and each number counts what it says."""

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

spec = importlib.util.spec_from_file_location("house_measure", Path(__file__).with_name("measure.py"))
assert spec is not None
assert spec.loader is not None
house: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


def function(source: str) -> Any:
    return ast.parse(source).body[0]


def test_nothing_got_worse() -> None:
    limits = json.loads(house.LIMITS.read_text(encoding="utf-8"))
    now = house.measure()
    assert set(now) == set(limits), "run python tests/house/measure.py --renew"
    assert not house.worse(now, limits)


def test_worse_is_more_but_of_comments_fewer() -> None:
    limits = {"lines of a/": 1.0, "lines": 10.0, "own-line comments, %": 3.0}
    assert not house.worse({"lines of a/": 5.0, "lines": 10.0, "own-line comments, %": 3.0}, limits)
    said = house.worse({"lines of a/": 1.0, "lines": 11.0, "own-line comments, %": 2.0}, limits)
    assert said == ["lines: 11, and it was 10", "own-line comments, %: 2, and it was 3"]


@pytest.mark.parametrize(
    ("source", "lines", "parameters"),
    [
        ("def f(a, /, b, *, c): pass", 1, 3),
        ("def f(self, *a, **k):\n    '''x\n    y'''\n    return 1\n", 2, 2),
        ("def f(cls):\n    # why\n    return 1", 2, 0),
    ],
)
def test_lines_and_parameters(source: str, lines: int, parameters: int) -> None:
    assert house.length(function(source), source) == lines
    assert house.count(function(source)) == parameters


def test_comments_of_their_own_line() -> None:
    assert house.comments("# why\nx = 1  # what\n# noqa: E501\nif x:\n    # because\n    y = '# no'\n") == 2


def test_imports_of_other_rooms() -> None:
    source = "from tfm.errors import A\nfrom tfm.runtime import B\nfrom .x import C\n"
    source += "def f():\n    from tfm.runtime.golden import D"
    file = house.REPO / "latency" / "x.py"
    assert list(house.crossings(file, ast.parse(source))) == ["tfm.runtime", "tfm.runtime.golden"]
    assert list(house.crossings(house.REPO / "runtime" / "x.py", ast.parse(source))) == []


def test_branches_are_counted() -> None:
    branches = "".join(f"    if x == {number} and y:\n        return\n" for number in range(5))
    plain = f"def f(x, y):\n{branches}"
    assert house.branching(plain) == 1
    assert house.branching(plain.replace(" and y", "")) == 0
    assert house.branching(f"class A:\n    {plain.replace(chr(10), chr(10) + '    ')}") == 1
