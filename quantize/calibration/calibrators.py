"""Which range of its activations a product in static int8 gets: everything seen, or less, with finer steps.

- "minmax": from the lowest to the highest value seen.
- "entropy": the range whose 256 steps lose the least information, as Kullback-Leibler divergence of the rounded from
  the seen histogram (Migacz 2017, "8-bit inference with TensorRT", GTC).
- "percentile": what lies beyond it, on both sides together, is 0.01 % of the values (99.99 is the percentile that Wu et
  al. 2020, arXiv:2004.09602, found best with entropy).
- "mse": the range whose rounded and clipped values have the least squared error (Choukroun et al. 2019,
  arXiv:1902.06822; Banner et al. 2019, arXiv:1810.05723, derive it of a distribution that they assume, where this takes
  the values themselves).

Which is best has to be measured, per product. Where a few large values carry the result, as in the feed-forward layers
of encoders, "entropy" loses most of it, for it counts values and not how large they are. There "mse" too cuts off more
than is good for the product, unless it is told how much the weights make of each channel; told that, and after
smoothing, it gave the most exact products of MiniLM, on average, closely followed by "minmax".

`onnxruntime.quantization.calibrate` has the middle two, but its entropy moves both ends alike, which suits no
activations that are mostly of one sign (GELU's), tries only the whole range unless told to use more bins than steps,
and cuts the expected counts to whole numbers; NaN is passed over, and every call prints.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tfm.errors import QuantizeError
from tfm.runtime import nearest

from ..methods.static_nodes import fake_quantize

CALIBRATORS = ("minmax", "entropy", "percentile", "mse")

_OUTSIDE = 0.01e-2
"""Share of the values that "percentile" cuts off."""

_BINS, _LEVELS = 4096, 256
"""Bins of the histogram, and steps of uint8: as Migacz has 2048 and 128 for magnitudes, so here for both signs."""

_FLOOR = 1e-4
"""Count of a bin that has something only by clipping, as MXNet has it: by none at all the divergence is infinite."""

_BODY, _TAIL = 1 << 12, 1 << 11
"""Of many values "mse" looks at so many, evenly by rank, beside so many of the lowest and highest each: the error of
clipping is all theirs."""

_COARSE = 0.8 ** np.arange(24)
"""Shares of each end that are tried in all pairs; the smallest is 0.006, for values with outliers 150 times larger."""

_FINE = (0.9, 0.95, 0.98, 0.99)
"""Factors by which each end is then moved while that helps."""

Floats = npt.NDArray[np.float32]
Cost = Callable[[float, float], float]


def activation_range(
    values: Sequence[Floats], calibrator: str, importance_K: Floats | None = None
) -> tuple[float, float]:
    """Choose the range of a product's activations.

    Args:
        values: What goes into the product, float32 (…, K), without padding, after smoothing.
        calibrator: One of `CALIBRATORS`.
        importance_K: What "mse" multiplies the squared errors of each channel by. With the squared norms of the rows of
            the weights (after smoothing) it minimizes, but for correlations, the error of the product instead. The
            others do not look at it.

    Returns:
        The lowest and the highest value that are told apart from those beyond; 0 is always in between, or one of them.

    Raises:
        QuantizeError: There are no values, or one is NaN or infinite; or the calibrator is unknown.
    """
    if calibrator not in CALIBRATORS:
        raise QuantizeError(f"there is no calibrator {calibrator!r}; {nearest(str(calibrator), CALIBRATORS)}")
    flat = np.concatenate([np.ravel(array) for array in values]) if values else np.empty(0, np.float32)
    if not flat.size:
        raise QuantizeError("there are no activations to take a range of")
    low, high = min(float(flat.min()), 0.0), max(float(flat.max()), 0.0)
    if not np.isfinite(high - low):  # NaN is the lowest and the highest, where there is one
        raise QuantizeError("the activations to take a range of are NaN or infinite; integers have no such values")
    if calibrator == "minmax" or low == high:
        return low, high
    if calibrator == "percentile":
        ends = np.quantile(flat, [_OUTSIDE / 2, 1 - _OUTSIDE / 2])
        return min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)
    if calibrator == "entropy":
        return _search(_divergence(flat, low, high), low, high)
    importance_K = np.ones(1, np.float32) if importance_K is None else importance_K
    weights = np.concatenate([np.broadcast_to(importance_K, array.shape).ravel() for array in values])
    return _search(_squared_error(flat, weights), low, high)


def _search(cost: Cost, low: float, high: float) -> tuple[float, float]:
    """Find the range of least cost within [low, high]: of all pairs of some ends, and from there to both sides."""
    # From the widest range inwards: of equal costs, `min` takes the first.
    lows, highs = (np.unique(end * _COARSE)[:: 1 if end < 0 else -1].tolist() for end in (low, high))
    best = min(itertools.product(lows, highs), key=lambda ends: cost(*ends))
    least = cost(*best)
    # Downhill from the best of the grid, by ever smaller steps.
    for factor in _FINE:
        moved = True
        while moved:
            moved = False
            for a, b in ((factor, 1.0), (1 / factor, 1.0), (1.0, factor), (1.0, 1 / factor)):
                ends = max(best[0] * a, low), min(best[1] * b, high)
                if (found := cost(*ends)) < least:
                    best, least, moved = ends, found, True
    return best


def _squared_error(points: Floats, weights: Floats) -> Cost:
    """Squared error of the values within a range of 256 steps."""
    if len(points) > _BODY + 2 * _TAIL:
        # Each value of the body that is kept counts for all those that it stands for.
        order = np.argsort(points)
        body = order[_TAIL:-_TAIL]
        some = body[np.linspace(0, len(body) - 1, _BODY).round().astype(np.intp)]
        points = points[chosen := np.concatenate([order[:_TAIL], some, order[-_TAIL:]])]
        weights = weights[chosen] * np.repeat([1, len(body) / _BODY, 1], [_TAIL, _BODY, _TAIL])

    def cost(low: float, high: float) -> float:
        return float(weights @ np.square(fake_quantize(points, low, high) - points, dtype=np.float64))

    return cost


def _divergence(flat: Floats, low: float, high: float) -> Cost:
    """Kullback-Leibler divergence of a histogram from what is left of it by 256 steps, in nats."""
    counts = np.histogram(flat.astype(np.float64), _BINS, (low, high))[0].astype(np.float64)
    width = (high - low) / _BINS

    def cost(start: float, end: float) -> float:
        first, last = round((start - low) / width), round((end - low) / width)
        return _loss_of_information(counts, first, last)

    return cost


def _loss_of_information(counts: npt.NDArray[np.float64], first: int, last: int) -> float:
    """What rounding the bins [first, last) to `_LEVELS` loses, where those beyond join the two at its ends.

    Infinite where there are fewer bins than levels.
    """
    inside = counts[first:last]
    if len(inside) < _LEVELS:
        return float("inf")
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    # p has what is clipped in its end bins, q is made of what was inside alone: so clipping costs
    # something, as in Migacz's algorithm.
    level = np.arange(len(inside)) * _LEVELS // len(inside)
    some = clipped > 0
    # each level spreads what is its own evenly over those of its bins that are not empty
    of_level = np.bincount(level, inside, _LEVELS) / np.maximum(np.bincount(level, some, _LEVELS), 1)
    rounded = np.maximum(of_level[level][some], _FLOOR)
    p, q = clipped[some] / clipped.sum(), rounded / rounded.sum()
    return float(p @ np.log(p / q))
