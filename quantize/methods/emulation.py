"""What int8 makes of a product, computed in numpy: so are smoothing, and the range of static activations, chosen."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..calibration.calibrators import CALIBRATORS, activation_range
from ..calibration.observe import Observed
from .method import Dynamic, Static
from .rounding import round_symmetric
from .static import emulate_static

Floats = npt.NDArray[np.float32]

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Exponents of smoothing to choose from (Xiao et al. 2023, arXiv:2211.10438, found 0.5 to 0.9 best)."""

EPSILON = 1e-12
"""Added to the mean square of a row, which may be all zeros."""

_GAIN_DB = 0.5
"""How much better a result must get, in dB, to be worth a pass over the activations."""


def smoothing(largest_K: Floats, weight_KN: Floats, alpha: float) -> Floats:
    """The divisor of each input channel.

    Args:
        largest_K: Largest magnitude of each input channel, over calibration data.
        weight_KN: The weights.
        alpha: How much of the range goes from the activations to the weights: 0 nothing, 1 all.

    Returns:
        Divisors (K,), float32, of mean 1.
    """
    # Neither a channel that was always zero nor one without weights may be divided by.
    tiny = np.float32(1e-5)
    scale: Floats = np.maximum(largest_K, tiny) ** alpha / np.maximum(np.abs(weight_KN).max(axis=1), tiny) ** (
        1 - alpha
    )
    return (scale / scale.mean()).astype(np.float32)


def emulate(x_RK: Floats, weight_KN: Floats, method: Dynamic, largest_K: Floats) -> Floats:
    """Compute a product as the quantized graph does, up to the order of sums.

    Args:
        x_RK: Rows of activations.
        weight_KN: Weights.
        method: How.
        largest_K: As in `smoothing`.

    Returns:
        The product (R, N), float32.
    """
    ones = np.ones(1, np.float32)
    rms_R1 = np.sqrt(np.square(x_RK).mean(axis=1, keepdims=True) + EPSILON) if method.by_row else ones
    scale_K = smoothing(largest_K, weight_KN, method.alpha) if method.alpha is not None else ones
    x_RK = (x_RK / rms_R1 / scale_K).astype(np.float32)
    rounded_KN, scale_1N = round_symmetric(weight_KN * scale_K[:, None], axis=0)
    # As DynamicQuantizeLinear has it: one range for all rows, with 0 in it.
    low, high = min(float(x_RK.min()), 0.0), max(float(x_RK.max()), 0.0)
    step = (high - low) / 255 or 1.0
    zero = round(-low / step)
    x_RK = ((np.clip(np.rint(x_RK / step) + zero, 0, 255) - zero) * step).astype(np.float32)
    result: Floats = ((x_RK @ (rounded_KN * scale_1N)) * rms_R1).astype(np.float32)
    return result


def snr_db(exact: Floats, found: Floats) -> float:
    """Signal-to-noise ratio in dB."""
    noise = float(np.square(exact - found).sum(dtype=np.float64))
    signal = float(np.square(exact).sum(dtype=np.float64))
    return 10 * math.log10(signal / noise) if noise and signal else math.inf if not noise else -math.inf


def measure(seen: Observed, weight_KN: Floats, methods: Sequence[Dynamic]) -> list[float]:
    """Signal-to-noise ratio, in dB, of a product's result by each method on what was observed, padding left out."""
    exact = np.concatenate([(rows_RK @ weight_KN)[real_R] for rows_RK, real_R in seen.batches])
    ratios = []
    for method in methods:
        # Padding counts in the shared range, as it does in the graph, and is left out of the result
        # only.
        found = [emulate(rows_RK, weight_KN, method, seen.largest_K)[real_R] for rows_RK, real_R in seen.batches]
        ratios.append(snr_db(exact, np.concatenate(found)))
    return ratios


def choose(weight_KN: Floats, seen: Observed, *, by_row: bool | None = None) -> Dynamic:
    """Choose the smoothing of a product: as is most exact on what was seen, where that is cheap.

    Smoothing must win `_GAIN_DB` for its pass over the input.

    Args:
        weight_KN: Its weights.
        seen: What goes into it.
        by_row: Whether rows get scales of their own; None: as is better, where the result is narrower than the input
            and multiplying it costs little.
    """
    narrower = weight_KN.shape[0] > weight_KN.shape[1]
    rows = ((False, True) if narrower else (False,)) if by_row is None else (by_row,)
    methods = [Dynamic(alpha=alpha, by_row=row) for row in rows for alpha in (None, *ALPHAS)]
    ratios = dict(zip(methods, measure(seen, weight_KN, methods), strict=True))
    return max(methods, key=lambda method: ratios[method] - _GAIN_DB * bool(method.passes))


def static_range(weight_KN: Floats, seen: Observed, method: Static) -> tuple[Floats, float, float]:
    """The divisors of a static product's inputs (K,), and then their range.

    Args:
        weight_KN: Its weights.
        seen: What goes into it.
        method: How.
    """
    scale_K = np.ones(len(weight_KN), np.float32)
    if method.alpha is not None:
        scale_K = smoothing(seen.largest_K, weight_KN, method.alpha)
    # A fixed range need not leave room for padding.
    values = [rows_RK[real_R] / scale_K for rows_RK, real_R in seen.batches if real_R.any()]
    importance_K = np.square(weight_KN * scale_K[:, None]).sum(axis=1)
    return (scale_K, *activation_range(values, method.calibrator, importance_K))


def choose_static(weight_KN: Floats, seen: Observed, alpha: float | None) -> Static:
    """Choose the calibrator of a static product: as is most exact on what was seen.

    Args:
        weight_KN: Its weights.
        seen: What goes into it.
        alpha: Exponent of smoothing.
    """
    rows_RK = np.concatenate([rows_RK[real_R] for rows_RK, real_R in seen.batches])
    exact = rows_RK @ weight_KN

    def ratio(calibrator: str) -> float:
        scale_K, low, high = static_range(weight_KN, seen, Static(calibrator=calibrator, alpha=alpha))
        return snr_db(exact, emulate_static(rows_RK, weight_KN, low, high, scale_K))

    return Static(calibrator=max(CALIBRATORS, key=ratio), alpha=alpha)
