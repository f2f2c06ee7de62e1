"""Ranges of activations: against searches by brute force, quantiles, and the divergence by its definition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfm.errors import QuantizeError
from tfm.quantize.calibration import calibrators as module
from tfm.quantize.calibration.calibrators import CALIBRATORS, activation_range

Array = np.ndarray


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def spiky(rows: int = 64, channels: int = 48, outlier: float = 30.0) -> Array:
    """Values of a normal distribution, and a channel that rarely is far out."""
    x = rng().standard_normal((rows, channels)).astype(np.float32)
    x[:: rows // 4, 3] = outlier
    return x


def rounded(x: Array, low: float, high: float) -> Array:
    """What is left of values in uint8, in float64."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    return (np.clip(np.rint(x.astype(np.float64) / scale) + zero, 0, 255) - zero) * scale


# ------------------------------------------------ every calibrator


@given(
    st.lists(
        arrays.arrays(
            np.float32,
            arrays.array_shapes(min_dims=1, max_dims=3, max_side=7),
            elements=st.floats(-1e5, 1e5, width=32, allow_subnormal=False),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(CALIBRATORS),
)
@settings(max_examples=60, deadline=None)
def test_a_range_contains_0_and_nothing_that_was_not_seen(values: list[Array], calibrator: str) -> None:
    low, high = activation_range(values, calibrator)
    assert type(low) is type(high) is float
    assert min(min(x.min() for x in values), 0) <= low <= 0 <= high <= max(max(x.max() for x in values), 0)
    assert activation_range([np.concatenate([x.ravel() for x in values])], calibrator) == (low, high)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_all_zero_and_constant_inputs(calibrator: str) -> None:
    assert activation_range([np.zeros((3, 4), np.float32)], calibrator) == (0, 0)
    for value in (5.0, -5.0):
        low, high = activation_range([np.full((3, 4), value, np.float32)], calibrator)
        assert (low, high) == (min(value, 0), max(value, 0))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("sign", [1, -1])
def test_values_of_one_sign_have_a_range_of_one_sign(calibrator: str, sign: int) -> None:
    low, high = activation_range([sign * np.abs(spiky())], calibrator)
    assert (low if sign > 0 else high) == 0
    assert (high if sign > 0 else low) * sign > 0


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(calibrator: str, bad: float) -> None:
    x = spiky()
    x[5, 6] = bad
    with pytest.raises(QuantizeError, match="to take a range of are NaN or infinite"):
        activation_range([spiky(), x], calibrator)


def test_no_values_and_unknown_names_are_refused() -> None:
    for empty in ([], [np.empty((0, 4), np.float32)]):
        with pytest.raises(QuantizeError, match="there are no activations to take a range of"):
            activation_range(empty, "mse")
    with pytest.raises(QuantizeError, match=r"there is no calibrator 'entropie'; .*'entropy'"):
        activation_range([spiky()], "entropie")


# ------------------------------------------------ minmax, percentile


def test_minmax_is_what_was_seen() -> None:
    a, b = spiky(), spiky(outlier=40) - 2
    assert activation_range([a, b], "minmax") == (min(a.min(), b.min()), np.float32(40) - 2)


def test_percentile_cuts_a_hundredth_of_a_percent_off() -> None:
    x = rng().standard_normal((400, 500)).astype(np.float32)
    low, high = activation_range([x[:100], x[100:]], "percentile")
    ordered = np.sort(x.ravel())
    # 10 of 200,000 at either end: the quantile lies between two of them
    assert ordered[9] <= low <= ordered[11]
    assert ordered[-12] <= high <= ordered[-10]
    assert (low, high) == pytest.approx(tuple(np.quantile(x, [0.00005, 0.99995])), rel=1e-6)


# ------------------------------------------------ mse


@pytest.mark.parametrize("outlier", [0.0, 8.0, 30.0, 400.0])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_mse_finds_the_least_error_there_is(outlier: float, shift: float) -> None:
    x = spiky(outlier=outlier) + np.float32(shift)
    low, high = activation_range([x], "mse")

    def error(ends: tuple[float, float]) -> float:
        return float(np.square(rounded(x, *ends) - x).sum())

    shares = np.linspace(0.01, 1, 60)
    least = min(map(error, itertools.product(x.min() * shares, x.max() * shares)))
    assert error((low, high)) <= least * MSE_SLACK
    assert error((low, high)) <= error((float(x.min()), float(x.max())))


MSE_SLACK = 1.01
"""Neither the search nor the grid tries every range; the most measured here is 1.0000."""


def test_mse_of_the_mirrored_values_is_the_mirrored_range() -> None:
    low, high = activation_range([spiky()], "mse")
    # a step: zero points are rounded to one side
    assert activation_range([-spiky()], "mse") == pytest.approx((-high, -low), abs=(high - low) / 255)


def test_mse_cuts_rare_values_off_only_where_it_pays() -> None:
    """10,000 small values gain more by finer steps than one at 2 times their range loses, but not at 40 times."""
    x = rng().uniform(-1, 1, 100_000).astype(np.float32)
    near, far = (activation_range([np.append(x, np.float32(end))], "mse")[1] for end in (1.1, 40.0))
    assert near < 1.09
    assert far > 30


def test_mse_of_many_values_is_that_of_all() -> None:
    """Few of the body are looked at, and all of the tails."""
    x = rng().standard_t(4, (500, 400)).astype(np.float32)
    assert x.size > 10 * (module._BODY + 2 * module._TAIL)
    low, high = activation_range([x], "mse")
    found = np.square(rounded(x, low, high) - x).sum()
    shares = 0.9 ** np.arange(30)
    grid = [np.square(rounded(x, a, b) - x).sum() for a, b in itertools.product(x.min() * shares, x.max() * shares)]
    assert found <= min(grid) * MSE_SLACK
    assert found < np.square(rounded(x, x.min(), x.max()) - x).sum() * 0.8


def test_importance_weighs_channels() -> None:
    """A channel that nothing reads is cut off; and the range is that of its own where all the rest are not read."""
    x = spiky(outlier=30)
    unread = np.ones(48, np.float32)
    unread[3] = 0
    alone = activation_range([np.delete(x, 3, axis=1)], "mse")
    assert activation_range([x[:20], x[20:]], "mse", unread) == pytest.approx(alone, rel=0.1)
    assert activation_range([x], "mse", np.ones(48, np.float32)) == activation_range([x], "mse")
    assert activation_range([x], "mse", 1 - unread)[1] > 29.8


def test_importance_by_the_weights_gives_a_better_product() -> None:
    x, weight = spiky(rows=4096), rng().standard_normal((48, 32)).astype(np.float32)
    weight[3] *= 20
    exact = x.astype(np.float64) @ weight
    errors = []
    for importance in (None, np.square(weight).sum(axis=1)):
        low, high = activation_range([x], "mse", importance)
        errors.append(np.square(rounded(x, low, high) @ weight - exact).sum())
    assert errors[1] < errors[0] / 2


# ------------------------------------------------ entropy


def divergence(counts: list[int], first: int, last: int, levels: int) -> float:
    """Migacz 2017, slides 36 and 37, with two ends, by loops over bins."""
    inside = [float(count) for count in counts[first:last]]
    reference = inside.copy()
    reference[0] += sum(counts[:first])
    reference[-1] += sum(counts[last:])
    candidate = [0.0] * len(inside)
    for level in range(levels):
        bins = [k for k in range(len(inside)) if k * levels // len(inside) == level]
        filled = [k for k in bins if reference[k]]
        for k in filled:
            candidate[k] = max(sum(inside[j] for j in bins) / len(filled), 0.0001)
    total, kept = sum(reference), sum(candidate)
    return sum(p / total * math.log(p / total / (q / kept)) for p, q in zip(reference, candidate, strict=True) if p)


@given(st.lists(st.integers(0, 20) | st.sampled_from([0, 1000]), min_size=12, max_size=40), st.data())
@settings(max_examples=200)
def test_divergence_is_that_of_the_definition(counts: list[int], data: st.DataObject) -> None:
    counts[len(counts) // 2] += 1
    first = data.draw(st.integers(0, len(counts) // 2))
    last = data.draw(st.integers(len(counts) // 2 + 1, len(counts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LEVELS", 4)
        found = module._loss_of_information(np.array(counts, float), first, last)
    wanted = divergence(counts, first, last, 4) if last - first >= 4 else math.inf
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_entropy_finds_the_least_divergence_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a histogram so small that all ranges can be tried."""
    monkeypatch.setattr(module, "_BINS", 96)
    monkeypatch.setattr(module, "_LEVELS", 8)
    for outlier in (10, 15, 18):
        x = rng().laplace(0.5, 1, 5000).astype(np.float32).clip(-6, None)
        x = np.append(x, np.float32([outlier] * 3))
        low, high = activation_range([x], "entropy")
        edges = np.linspace(x.min(), x.max(), 97)
        counts = np.histogram(x.astype(float), edges)[0].tolist()
        middle = int(np.searchsorted(edges, 0))
        ranges = itertools.product(range(middle), range(middle + 1, 97))
        best = min(divergence(counts, first, last, 8) for first, last in ranges if last - first >= 8)
        ends = [round((end - x.min()) / (edges[1] - edges[0])) for end in (low, high)]
        found = divergence(counts, *ends, 8)
        whole = divergence(counts, 0, 96, 8)
        # not all ranges are tried: of what can be gained over the whole range, so much is; the least here is 0.906
        assert whole - found >= 0.9 * (whole - best) > 0


def test_entropy_moves_each_end_by_itself() -> None:
    """As GELU's results: a lowest value that many come near to, and rare high ones."""
    x = np.append(rng().uniform(-0.17, 1.5, 50_000), np.linspace(2, 6, 6)).astype(np.float32)
    low, high = activation_range([x], "entropy")
    assert low < -0.15
    assert 1.4 < high < 2
