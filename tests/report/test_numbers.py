"""How figures are written and where they lie on an axis."""

import math

import pytest

from tfm.report import numbers


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


def test_an_error_has_as_many_digits_as_are_asked_for() -> None:
    assert numbers.error(1.4345e-3, 3) == "1.43e−3"
    assert numbers.error(-1.4e-7) == "−1.4e−7"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.9843, "98.4 %"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (1e-5, "< 0.1 %"),
        (0.99996, "> 99.9 %"),
        (0.9994, "99.9 %"),
        (1.25, "125.0 %"),
        (None, "—"),
        (math.nan, "—"),
    ],
)
def test_a_share_is_not_rounded_to_none_or_all(share: float | None, text: str) -> None:
    assert numbers.percent(share) == text


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


def test_what_is_below_zero_has_no_place_among_decades() -> None:
    axis = numbers.decades([-1e-9, 1e-3, 2e-3], least=1)
    assert (axis.low, axis.high) == (-4, -2)
    assert axis.at(-1e-9) == 0


def test_an_even_axis_has_round_ends_around_all_values() -> None:
    axis = numbers.linear([0.29, 0.47, None, math.nan], zero=False, unit="×")
    assert [label for _, label in axis.ticks] == ["0.25×", "0.3×", "0.35×", "0.4×", "0.45×", "0.5×"]
    assert axis.at(0.3) == 20
    assert [place for place, _ in axis.ticks] == pytest.approx([0, 20, 40, 60, 80, 100])
    axis = numbers.linear([8e-4, -1e-5], zero=True)
    assert (axis.low, axis.high) == (0, pytest.approx(8e-4))
    assert axis.at(-1e-5) == 0


@pytest.mark.parametrize("values", [[], [0.0], [0.3], [1e20, 1e20], [-2.0], [5e-324], [1e300, -1e300]])
@pytest.mark.parametrize("zero", [True, False])
def test_an_even_axis_of_any_values_is_an_axis(values: list[float], zero: bool) -> None:
    axis = numbers.linear(values, zero=zero)
    assert axis.low < axis.high
    assert axis.steps == len(axis.ticks) - 1 >= 1
    assert all(0 <= axis.at(value) <= 100 for value in values)
