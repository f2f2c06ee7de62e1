"""Figures against plain numpy in float64, and what may and may not count as equal."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfm.errors import VerificationError
from tfm.export.verify.compare import judge
from tfm.ops import FREE, KINDS, Tolerance
from tfm.runtime import ErrorStats

REL = 1e-12  # float64 sums of at most some hundred terms, in another order
NAN, INF = math.nan, math.inf

FLOATS = st.floats(-1e6, 1e6, width=32)
PAIRS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[arrays.arrays(np.float32, n, elements=FLOATS) for _ in range(2)])
)


def figures_of(actual: object, expected: object) -> ErrorStats:
    figures = ErrorStats()
    figures.add(np.array(actual, np.float32), np.array(expected, np.float32))
    return figures


@given(st.lists(PAIRS, min_size=1, max_size=4))
def test_figures_are_those_of_all_comparisons_joined(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    figures = ErrorStats()
    for actual, expected in pairs:
        figures.add(actual, expected)
    a, e = (np.concatenate([pair[side] for pair in pairs]).astype(np.float64) for side in (0, 1))
    noise, signal = ((a - e) ** 2).sum(), (e**2).sum()
    assert figures.count == a.size
    assert figures.max_abs == np.abs(a - e).max()
    assert figures.scale == np.abs(e).max()
    if noise == 0:
        assert (figures.nmse, figures.snr_db) == (0.0, INF)
    elif signal == 0:
        assert (figures.nmse, figures.snr_db) == (INF, -INF)
    else:
        assert figures.nmse == pytest.approx(noise / signal, rel=REL)
        assert figures.snr_db == pytest.approx(10 * np.log10(signal / noise), rel=REL, abs=1e-10)
    norms = np.linalg.norm(a) * np.linalg.norm(e)
    if norms > 1e-100:
        assert figures.cosine == pytest.approx(a @ e / norms, rel=REL, abs=1e-12)


def test_integers_and_booleans_are_compared_as_numbers() -> None:
    figures = ErrorStats()
    figures.add(np.array([1, 2, 2**40]), np.array([1, 2, 2**40 + 1]))
    figures.add(np.array([True, False]), np.array([True, True]))
    assert (figures.count, figures.max_abs) == (5, 1.0)


@pytest.mark.parametrize("values", [[NAN], [INF], [-INF], [1.0, NAN, INF, -INF]])
def test_the_same_special_values_at_the_same_places_are_equal(values: list[float]) -> None:
    figures = figures_of(values, values)
    assert (figures.count, figures.max_abs, figures.nmse, figures.snr_db) == (len(values), 0.0, 0.0, INF)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([NAN], [0.0]),
        ([0.0], [NAN]),
        ([INF], [-INF]),
        ([INF], [NAN]),
        ([NAN], [INF]),
        ([INF], [3e38]),
        ([3e38], [INF]),
        ([NAN, 1.0], [1.0, NAN]),
    ],
)
def test_any_other_pairing_of_special_values_is_infinitely_wrong(actual: list[float], expected: list[float]) -> None:
    figures = figures_of([*actual, 1.0], [*expected, 1.0])
    assert figures.max_abs == INF
    assert (figures.nmse, figures.snr_db) == (INF, -INF)
    assert math.isnan(figures.cosine)
    for tolerance in (FREE, Tolerance(1e30, 1e30), *(kind.tolerance for kind in KINDS.values())):
        assert judge(figures, tolerance.limit(figures), "off")
    assert [figures.to_dict()[name] for name in ("max_abs", "nmse", "snr_db", "cosine")] == [None] * 4


def test_a_special_value_is_not_forgotten_by_what_follows() -> None:
    figures = figures_of([NAN], [0.0])
    figures.add(np.zeros(1000), np.zeros(1000))
    assert figures.max_abs == INF


def test_nan_in_the_expectation_does_not_swell_the_tolerance() -> None:
    assert figures_of([INF, NAN, 2.0], [INF, NAN, 2.0]).scale == 2.0


@pytest.mark.parametrize(
    ("actual", "expected"), [((2, 3), (3, 2)), ((6,), (2, 3)), ((1,), (3,)), ((3, 1), (3,)), ((0,), ()), ((), (1,))]
)
def test_other_shapes_are_no_comparison(actual: tuple[int, ...], expected: tuple[int, ...]) -> None:
    figures = ErrorStats()
    with pytest.raises(VerificationError, match=r"shapes differ: \(.*\) was computed, \(.*\) expected"):
        figures.add(np.zeros(actual), np.zeros(expected))
    assert figures.count == 0


@pytest.mark.parametrize("tolerance", [Tolerance(INF, 0.0), FREE, *(kind.tolerance for kind in KINDS.values())])
def test_nothing_compared_never_passes(tolerance: Tolerance) -> None:
    figures = ErrorStats()
    assert judge(figures, tolerance.limit(figures), "off")
    figures.add(np.zeros((0, 4)), np.zeros((0, 4)))
    assert judge(figures, tolerance.limit(figures), "off")


def test_a_tolerance_scales_with_the_largest_magnitude() -> None:
    figures = figures_of([0.0, 100.0], [0.005, 100.0])
    assert not judge(figures, Tolerance(0.0, 1e-4).limit(figures), "off")
    assert judge(figures, Tolerance(0.0, 1e-5).limit(figures), "off")
    assert judge(figures, Tolerance(1e-3, 0.0).limit(figures), "off")


def test_all_zero() -> None:
    assert figures_of([0.0], [0.0]).cosine == 1.0
    assert figures_of([1.0], [0.0]).cosine == 0.0
    assert figures_of([1.0], [0.0]).nmse == INF


def test_json_has_no_infinity() -> None:
    values = figures_of([1.0, 2.0], [1.0, 2.0]).to_dict()
    assert values == {
        "count": 2,
        "max_abs": 0.0,
        "nmse": 0.0,
        "snr_db": None,
        "cosine": pytest.approx(1.0),
        "scale": 2.0,
    }
