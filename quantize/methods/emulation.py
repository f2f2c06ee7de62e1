"""What dynamic int8 makes of a product, computed in numpy: so its smoothing is chosen."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..calibration.observe import Observed
from .dynamic import LEAST_NORM, Dynamic
from .rounding import round_symmetric, snr_db
from .smoothing import smoothing

Floats = npt.NDArray[np.float32]

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Exponents of smoothing to choose from (Xiao et al. 2023, arXiv:2211.10438, found 0.5 to 0.9 best)."""

_GAIN_DB = 0.5
"""How much better a result must get, in dB, to be worth a pass over the activations."""


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
    scale_K = smoothing(largest_K, weight_KN, method.alpha) if method.alpha is not None else ones
    x_RK = (x_RK / scale_K).astype(np.float32)
    norm_R1 = np.maximum(np.linalg.norm(x_RK, axis=1, keepdims=True), LEAST_NORM) if method.by_row else ones
    x_RK = (x_RK / norm_R1).astype(np.float32)
    rounded_KN, scale_1N = round_symmetric(weight_KN * scale_K[:, None], axis=0)
    # As DynamicQuantizeLinear has it: one range for all rows, with 0 in it.
    low, high = min(float(x_RK.min()), 0.0), max(float(x_RK.max()), 0.0)
    step = (high - low) / 255 or 1.0
    zero = round(-low / step)
    x_RK = ((np.clip(np.rint(x_RK / step) + zero, 0, 255) - zero) * step).astype(np.float32)
    result: Floats = ((x_RK @ (rounded_KN * scale_1N)) * norm_R1).astype(np.float32)
    return result


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
