import numpy as np
import pytest

from tfm.errors import VerificationError
from tfm.study.inspect import UnitStatistics, measure_units


def test_relu_counted_by_hand() -> None:
    x = np.array([[-1.0, 2.0, -3.0, 1e-9], [-2.0, -1.0, -0.5, 4.0]])
    found = measure_units((x > 0).astype(float), np.maximum(x, 0))
    # units 0 and 2 never open; five of eight pairs are closed; 1e-9 is as good as zero, but not zero
    assert found == UnitStatistics(dead=0.5, saturated=5 / 8, near_zero=6 / 8, zero=5 / 8)


def test_sigmoid_saturates_at_both_ends_and_is_never_zero() -> None:
    x = np.array([[-9.0, 9.0, 0.0], [-8.0, -8.0, 9.0]])
    y = 1 / (1 + np.exp(-x))
    found = measure_units(y * (1 - y), y)
    assert found.dead == pytest.approx(2 / 3)
    assert found.saturated == pytest.approx(5 / 6)
    assert found.zero == 0
    assert found.near_zero == pytest.approx(3 / 6)  # the three of -8 and less


@pytest.mark.parametrize(
    ("derivative", "hidden"),
    [
        (np.ones((2, 3)), np.ones((3, 2))),
        (np.ones((0, 3)), np.ones((0, 3))),
        (np.ones(3), np.ones(3)),
        (np.full((1, 2), np.nan), np.ones((1, 2))),
        (np.ones((1, 2)), np.array([[np.inf, 1.0]])),
    ],
)
def test_what_cannot_be_counted_is_refused(derivative: np.ndarray, hidden: np.ndarray) -> None:
    with pytest.raises(VerificationError, match="counted"):
        measure_units(derivative, hidden)
