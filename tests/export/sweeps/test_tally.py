"""How a result is judged, element by element: NaN, infinities, limits, and what is not compared."""

import math
from typing import Any

import numpy as np
import pytest

from tfm.export.sweeps.subjects import Check
from tfm.export.sweeps.tally import Tally
from tfm.ops.tolerances import Tolerance

NAN, INF = math.nan, math.inf


def judged(
    actual: list[float], expected: list[float], eager: list[float] | None = None, dtype: str = "float32", **options: Any
) -> Tally:
    tally = Tally(Tolerance(1e-3, 1e-3))
    check = Check(form="", output="y", expected=np.array(expected), **{"where": "here"} | options)
    with np.errstate(over="ignore"):
        results = [np.array(values, dtype) for values in (actual, expected if eager is None else eager)]
    tally.add(check, results[0], "all", results[1])
    tally.judge()
    return tally


@pytest.mark.parametrize(
    ("actual", "expected"),
    [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (-INF, INF), (INF, NAN), (NAN, INF), (3e38, 1e39), (INF, 3e38), (1.003, 1.0)],
)
def test_what_is_not_the_same_fails(actual: float, expected: float) -> None:
    assert judged([0.0, actual], [0.0, expected]).fault


@pytest.mark.parametrize(
    ("actual", "expected"), [(NAN, NAN), (INF, INF), (-INF, -INF), (INF, 1e39), (-0.0, 0.0), (1.0019, 1.0), (0.0009, 0)]
)
def test_what_is_the_same_or_within_its_limit_passes(actual: float, expected: float) -> None:
    assert judged([0.0, actual], [0.0, expected]).fault == ""


def test_the_dtype_says_what_overflows() -> None:
    assert judged([0.0, INF], [0.0, 7e4], dtype="float16").fault == ""
    assert judged([0.0, INF], [0.0, 7e4]).fault == "it gives inf where 70000 is expected, at here (all)"


def test_eager_is_right_at_infinite_x_alone() -> None:
    x = np.array([0.0, -INF])
    tally = judged([0.0, NAN], [0.0, 0.0], [0.0, NAN], where=x)
    assert tally.fault == ""
    assert list(tally.notes) == ["gives nan, as eager PyTorch does, at x = -inf, where the limit is 0"]
    assert judged([0.0, NAN], [0.0, 0.0], [0.0, 0.0], where=x).fault
    assert judged([0.0, NAN], [0.0, 0.0], [0.0, NAN], where=np.array([0.0, 1.0])).fault
    better = judged([0.0, 0.0], [0.0, 0.0], [0.0, NAN], where=x)
    assert list(better.notes) == ["eager PyTorch gives nan at x = -inf, where the limit is 0"]


def test_the_largest_error_is_shown_up_to_20_and_judged_everywhere() -> None:
    x = np.array([1.0, 30.0])
    tally = judged([1.0005, 30.1], [1.0, 30.0], where=x)
    assert (tally.largest.where, tally.nearest.where) == ("x = 1", "x = 30")
    assert tally.largest.error == pytest.approx(5e-4, rel=1e-3)
    assert tally.fault == "off by 1.0e-01, more than 3.1e-02, at x = 30 (all)"
    assert judged([1.0005, 30.1], [1.0, 30.0], where=x, unit=x * 10).fault == ""


def test_units_in_the_last_place_are_of_large_results() -> None:
    one = 2.0**-23  # the last place of a float32 from 1 on
    assert judged([1.0 + 3 * one, 1e-3], [1.0, 0.0], where=np.array([1.0, 2.0])).max_ulp == pytest.approx(3.0)
    assert judged([1.0 + 3 * one, 1e-3], [1.0, 0.0]).max_ulp is None


def test_what_was_not_compared_fails() -> None:
    assert judged([], []).fault == "no number was compared"
    assert judged([NAN], [NAN]).fault == "no number was compared"
    assert judged([1.0, 2.0], [1.0]).fault.startswith("its shape is (2,), eager's is (1,), (1,) was expected")
    assert judged([1.0], [1.0], unit=NAN).fault == "a number has no limit to be judged by"
    assert judged([1.0], [0.0], unit=-1.0).fault == "a number has no limit to be judged by"
