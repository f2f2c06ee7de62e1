import math

import numpy as np
import pytest
from activation_study.statistics import BETTER, SAME, WORSE, Estimate, differences, mean_of

from tfm.errors import InputError


def test_the_mean_of_three() -> None:
    found = mean_of([1.0, 2.0, 4.0])
    half = 4.302652729911275 * math.sqrt(7 / 3) / math.sqrt(3)  # the table's t for two degrees of freedom
    assert (found.mean, found.low, found.high) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half))


def test_one_value_has_no_interval() -> None:
    assert mean_of([3.0]) == Estimate(mean=3.0, low=-math.inf, high=math.inf)
    assert differences({"a": [1.0], "b": [9.0]}, "a")["b"].verdict == SAME


@pytest.mark.parametrize(("low", "high", "verdict"), [(-2, -1, BETTER), (-1, 1, SAME), (1, 2, WORSE), (0, 1, SAME)])
def test_verdicts(low: float, high: float, verdict: str) -> None:
    assert Estimate(mean=(low + high) / 2, low=low, high=high).verdict == verdict


def test_the_luck_of_a_seed_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    luck, noise = 10 * rng.standard_normal(4), 0.01 * rng.standard_normal((3, 4))
    found = differences(
        {name: list(luck + gain + noise[i]) for i, (name, gain) in enumerate([("a", 0), ("b", 1), ("c", -1)])}, "a"
    )
    assert found["b"].mean == pytest.approx(1, abs=0.03)
    assert (found["b"].verdict, found["c"].verdict) == (WORSE, BETTER)
    assert found["b"].high - found["b"].low < 0.1  # beside seeds that lie 10 apart


def test_intervals_hold_for_all_comparisons_at_once() -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(400):
        values = {str(name): list(rng.standard_normal(3)) for name in range(11)}
        missed += any(one.verdict != SAME for one in differences(values, "0").values())
    # Bonferroni: at most 5 % of 400, which is 20, give or take 4.4; each by itself at 95 % would miss in about 120
    assert 4 <= missed <= 33


def test_all_have_as_many_values() -> None:
    with pytest.raises(InputError, match=r"treatments have \[1, 2\] values"):
        differences({"a": [1.0, 2.0], "b": [1.0]}, "a")
