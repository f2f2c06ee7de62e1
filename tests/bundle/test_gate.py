"""Gates: a verdict that machines read by its fields, and that passes only where there was something to pass."""

import json
import math
from typing import Any

import pytest

from tfm.bundle import Gate, Judged, all_passed, nothing_compared, precision_of


def gate(**values: Any) -> Gate:
    return Gate(**({"name": "int8 budget", "stage": "budget", "precision": "int8", "passed": True} | values))


def test_nothing_has_not_passed() -> None:
    assert not all_passed([])
    assert all_passed([gate()])
    assert not all_passed([gate(), gate(passed=False)])


class Report(Judged):
    def __init__(self, *gates: Gate) -> None:
        self._gates = list(gates)

    def gates(self) -> list[Gate]:
        return self._gates


def test_a_report_is_judged_by_its_gates_alone() -> None:
    assert (Report(gate()).passed, Report(gate()).faults()) == (True, [])
    wrong = Report(gate(), gate(passed=False, reason="b"), gate(passed=False, reason="a"), gate(passed=False))
    assert (wrong.passed, wrong.faults()) == (False, ["b", "a"])
    assert not Report().passed
    assert Report(nothing_compared("golden")).faults() == ["nothing was compared"]


def test_an_op_is_named_only_where_there_is_one() -> None:
    assert "op" not in gate().to_json()
    assert Gate(**gate(op="Gelu").to_json()) == gate(op="Gelu")


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf, None])
def test_json_has_neither_infinity_nor_nan(figure: float | None) -> None:
    values = json.loads(json.dumps(gate(figure=figure, limit=0.5).to_json(), allow_nan=False))
    assert (values["figure"], values["limit"]) == (None, 0.5)
    assert Gate(**values) == gate(limit=0.5)


@pytest.mark.parametrize(
    ("stage", "precision", "may"),
    [
        ("graph", "fp32", False),
        ("graph", "int8", False),
        ("task", "fp32", False),
        ("task", "int8", True),
        ("budget", "int8", True),
        ("speed", "int8", True),
    ],
)
def test_what_may_be_overruled(stage: str, precision: str, may: bool) -> None:
    assert gate(stage=stage, precision=precision).may_be_overruled is may


def test_the_precision_of_older_gates_is_in_their_name() -> None:
    assert precision_of({"name": "int8 not slower than fp32", "passed": True}) == "int8"
    assert precision_of(gate(name="anything", precision="int4").to_json()) == "int4"
    assert precision_of({}) == ""
