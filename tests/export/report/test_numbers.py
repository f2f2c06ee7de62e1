"""How figures are written and where they lie on an axis."""

import math

import pytest

from tfm.export.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.152e-7, "7.2e−7"),
        (4.7e-4, "4.7e−4"),
        (0.25, "2.5e−1"),
        (3.0, "3.0e0"),
        (1e12, "1.0e12"),
        (9.96e-8, "1.0e−7"),
        (0.0, "0"),
        (None, "∞"),
        (math.inf, "∞"),
        (math.nan, "∞"),
        (5e-324, "4.9e−324"),
    ],
)
def test_an_error_has_two_digits(value: float | None, text: str) -> None:
    assert numbers.error(value) == text


def test_prose_changes_the_figures_alone() -> None:
    assert (
        numbers.prose("output e-05 off by 4.7e-04, more than 1.6e+05") == "output e-05 off by 4.7e−4, more than 1.6e5"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.99244967, "0.9924"),
        (1.0, "1"),
        (0.9999999999997159, "1 − 2.8e−13"),
        (0.9998, "0.9998"),
        (-0.5, "−0.5"),
        (None, "∞"),
        (0.0, "0"),
    ],
)
def test_a_figure_near_one_does_not_become_one(value: float | None, text: str) -> None:
    assert numbers.plain(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (22892866, "22.9 MB"),
        (99960000, "100 MB"),
        (999_600_000, "1.0 GB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert numbers.size(count) == text


def test_decades_hold_all_values() -> None:
    axis = numbers.decades([3e-7, None, 2e-4, 0.0])
    assert (axis.low, axis.high, axis.steps) == (-7, -3, 4)
    assert axis.at(1e-7) == 0
    assert axis.at(1e-5) == 50
    assert axis.at(1e-3) == 100
    assert axis.at(math.sqrt(1e-5 * 1e-4)) == 62.5
    assert [label for _, label in axis.ticks] == ["1e−7", "1e−6", "1e−5", "1e−4", "1e−3"]


def test_what_is_off_the_axis_is_at_its_end_and_what_is_broken_is_long() -> None:
    axis = numbers.decades([1e-6])
    assert axis.at(0.0) == 0
    assert axis.at(1e30) == 100
    assert axis.at(None) == axis.at(math.inf) == axis.at(math.nan) == 100


def test_too_many_decades_keep_the_upper_ones() -> None:
    axis = numbers.decades([5e-324, 1.0])
    assert (axis.low, axis.high) == (-12, 0)


def test_an_axis_of_nothing_is_an_axis() -> None:
    assert numbers.decades([]).at(1e-6) == 100
    assert numbers.decibels([None]).at(20.0) == 50


def test_decibels() -> None:
    axis = numbers.decibels([141.0, 38.0, -5.0])
    assert axis.high == 160
    assert axis.at(40.0) == 25
    assert axis.at(-5.0) == 0
