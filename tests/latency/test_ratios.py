"""Statistics on made-up data with known answers."""

import numpy as np
import pytest
from scipy.stats import binom

from tfm.latency.ratios import (
    FASTER,
    LEAST_ROUNDS,
    NOISE_LIMIT,
    NOISY,
    SAME,
    SLOWER,
    Ratio,
    bootstrap_median,
    noise_of,
    ratio_of,
    spread_of,
)


@pytest.mark.parametrize("count", [6, 7, 15, 16])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_covers_the_median(count: int, skewed: bool) -> None:
    """In 400 trials: of a true coverage of 95 % as few as 93 % are found once in 40 times; the seed is fixed.

    The bootstrap by itself covered 88 to 96 % of as many trials.
    """
    rng = np.random.default_rng(count)
    truth = np.log(2) if skewed else 0.0
    covered = 0
    for _ in range(400):
        values = rng.exponential(size=count) if skewed else rng.standard_normal(count)
        low, high = bootstrap_median(values.tolist())
        covered += low <= truth <= high
    assert covered >= 0.93 * 400


def test_the_interval_of_fifteen_reaches_from_the_fourth_to_the_twelfth() -> None:
    """P(X ≤ 3) of 15 fair coins is 0.0176, P(X ≤ 4) is 0.0592: three may be left out on either side at 2.5 %."""
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0]
    low, high = bootstrap_median(values[::-1])
    assert low <= 8.0
    assert high >= 2048.0
    assert low >= 4.0
    assert high <= 4096.0


@pytest.mark.parametrize("count", range(6, 40))
def test_the_interval_is_never_narrower_than_the_binomial_one(count: int) -> None:
    outside = max(k for k in range(count) if binom.cdf(k, count, 0.5) <= 0.025)
    values = [2.0**power for power in range(count)]
    low, high = bootstrap_median(values)
    assert low <= values[outside]
    assert high >= values[-1 - outside]


def test_the_interval_of_the_fewest_is_all_of_them() -> None:
    assert bootstrap_median([3.0, 1.0, 6.0, 2.0, 5.0, 4.0]) == (1.0, 6.0)
    assert LEAST_ROUNDS == 6
    assert 1 - 2 * 0.5**6 > 0.95 > 1 - 2 * 0.5**5


def test_the_interval_narrows_with_more_rounds() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (10, 100, 1000):
        low, high = bootstrap_median(rng.standard_normal(count).tolist())
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that grows slower from round to round changes both engines, and no ratio."""
    slower = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06]
    ratio = ratio_of([2.0 * x for x in slower], slower)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio.verdict == FASTER
    assert str(ratio) == "faster 2.0× (2.0–2.0)"


def test_slower_is_told_the_other_way_round() -> None:
    ratio = ratio_of([1.0] * 8, [1.5, 1.6, 1.5, 1.6, 1.5, 1.6, 1.5, 1.6])
    assert ratio.verdict == SLOWER
    assert str(ratio) == "slower 1.5× (1.5–1.6)"
    assert ratio.low == pytest.approx(1 / 1.6)
    assert ratio.high == pytest.approx(1 / 1.5)


def test_an_interval_with_1_in_it_shows_nothing() -> None:
    ratio = ratio_of([1.0] * 8, [0.5, 0.5, 0.5, 0.5, 0.5, 1.1, 1.1, 1.1])
    assert ratio.value > 1.5
    assert (ratio.verdict, str(ratio)) == (SAME, SAME)


def test_an_interval_that_touches_1_shows_nothing() -> None:
    assert ratio_of([1.0] * 8, [1.0] * 8).verdict == SAME


def test_noise_forbids_a_conclusion() -> None:
    quiet = [1.0, 1.0 + NOISE_LIMIT / 2] * 8
    noisy = [1.0, 1.0 + 4 * NOISE_LIMIT] * 8
    assert ratio_of(quiet, [x / 3 for x in quiet]).verdict == FASTER
    ratio = ratio_of(noisy, [x / 3 for x in noisy])
    assert ratio.value == pytest.approx(3.0)
    assert (ratio.verdict, str(ratio)) == (NOISY, NOISY)


def test_noise_is_the_share_between_the_quartiles() -> None:
    assert noise_of([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((4 - 2) / 3)
    assert noise_of([7.0] * 5) == 0.0


def test_percentiles_of_known_runs() -> None:
    spread = spread_of([float(x) for x in range(1, 102)])
    assert (spread.runs, spread.median, spread.p90, spread.p99) == (101, 51.0, 91.0, 100.0)


@pytest.mark.parametrize(("count", "has"), [(9, (False, False)), (10, (True, False)), (99, (True, False))])
def test_too_few_runs_have_no_percentiles(count: int, has: tuple[bool, bool]) -> None:
    spread = spread_of([1.0] * count)
    assert (spread.p90 is not None, spread.p99 is not None) == has


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.8, 1.7, 1.9), "faster 1.8× (1.7–1.9)"),
        ((1.04, 1.01, 1.08), "faster 1.04× (1.01–1.08)"),
        ((1.196, 1.1, 1.25), "faster 1.2× (1.10–1.2)"),
        ((120.0, 110.4, 130.6), "faster 120× (110–131)"),
        ((0.5, 0.4, 0.625), "slower 2.0× (1.6–2.5)"),
        ((2.0, 0.9, 3.0), SAME),
        ((0.8, 0.7, 1.0), SAME),
        ((float("nan"), float("nan"), float("nan")), SAME),
    ],
)
def test_in_words(values: tuple[float, float, float], text: str) -> None:
    value, low, high = values
    assert str(Ratio(value=value, low=low, high=high, noisy=False)) == text
    assert str(Ratio(value=value, low=low, high=high, noisy=True)) == NOISY
