"""How one product of activations and weights is quantised, and what that gives, computed in numpy."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .observe import Observed
from .rounding import round_symmetric

Floats = npt.NDArray[np.float32]

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Exponents of smoothing to choose from (Xiao et al. 2023, arXiv:2211.10438, found 0.5 to 0.9 best)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One way to compute a product in 8 bits.

    Activations are rounded at run time, with one scale and zero point for the whole tensor; weights beforehand, with
    one scale per output channel.

    Attributes:
        alpha: Exponent of smoothing: input channel k is divided by aₖ^α / wₖ^(1-α), its weights multiplied, where aₖ
            and wₖ are the largest magnitudes of both; None: as they are.
        by_row: Each row is divided by its root mean square first, and the result multiplied: rows that are small beside
            others keep their digits.
    """

    alpha: float | None = None
    by_row: bool = False

    def __str__(self) -> str:
        parts = ["dynamic"]
        parts += [f"smooth {self.alpha:g}"] if self.alpha is not None else []
        parts += ["by row"] if self.by_row else []
        return ", ".join(parts)

    @property
    def passes(self) -> int:
        """How many times the activations are read and written on the way, beside the product itself."""
        return int(self.alpha is not None or self.by_row) + 2 * int(self.by_row)


def smoothing(largest_K: Floats, weight_KN: Floats, alpha: float) -> Floats:
    """The divisor of each input channel.

    Args:
        largest_K: Largest magnitude of each input channel, over calibration data.
        weight_KN: The weights.
        alpha: How much of the range goes from the activations to the weights: 0 nothing, 1 all.

    Returns:
        Divisors (K,), float32, of mean 1.
    """
    tiny = np.float32(1e-5)
    scale: Floats = np.maximum(largest_K, tiny) ** alpha / np.maximum(np.abs(weight_KN).max(axis=1), tiny) ** (
        1 - alpha
    )
    return (scale / scale.mean()).astype(np.float32)


def emulate(x_RK: Floats, weight_KN: Floats, method: Method, largest_K: Floats) -> Floats:
    """Compute a product as the quantised graph does, up to the order of sums.

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


EPSILON = 1e-12
"""Added to the mean square of a row, which may be all zeros."""


def measure(seen: Observed, weight_KN: Floats, methods: Sequence[Method]) -> list[float]:
    """Signal-to-noise ratio, in dB, of a product's result by each method on what was observed, padding left out."""
    exact = np.concatenate([(rows_RK @ weight_KN)[real_R] for rows_RK, real_R in seen.batches])
    ratios = []
    for method in methods:
        found = [emulate(rows_RK, weight_KN, method, seen.largest_K)[real_R] for rows_RK, real_R in seen.batches]
        ratios.append(snr_db(exact, np.concatenate(found)))
    return ratios
