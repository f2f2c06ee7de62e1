"""How many units of a feed-forward layer work, and on how many tokens."""

import dataclasses

import numpy as np
import numpy.typing as npt

from tfm.errors import VerificationError

FLAT = 0.01
"""|σ′| below which next to no gradient passes: a hundredth of relu's on its open side."""
NEAR_ZERO = 0.01
"""|hidden value| below this share of the layer's root mean square adds next to nothing to what the layer gives."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitStatistics:
    """Shares in [0, 1] of one feed-forward layer's F hidden units on M tokens.

    Attributes:
        dead: Units at whose input |σ′| < `FLAT` on every token: no gradient ever passes.
        saturated: Pairs of token and unit where |σ′| < `FLAT`.
        near_zero: Pairs whose hidden value, what the second projection reads, is below `NEAR_ZERO` of the layer's
            root mean square.
        zero: Pairs whose hidden value is exactly 0.
    """

    dead: float
    saturated: float
    near_zero: float
    zero: float


def measure_units(derivative_MF: npt.NDArray[np.floating], hidden_MF: npt.NDArray[np.floating]) -> UnitStatistics:
    """Count dead, saturated and silent units of one layer.

    Args:
        derivative_MF: σ′ at the activation's input, (M, F): of the gate where the feed-forward is gated.
        hidden_MF: What the second projection reads, (M, F): σ(x), gated V x ⊙ σ(G x).

    Raises:
        VerificationError: The shapes differ, there is no token or no unit, or a value is not finite.
    """
    if derivative_MF.shape != hidden_MF.shape or hidden_MF.ndim != 2 or not hidden_MF.size:
        raise VerificationError(
            f"units are counted on two arrays (tokens, units) of one shape, but they are {derivative_MF.shape} "
            f"and {hidden_MF.shape}"
        )
    if not (np.isfinite(derivative_MF).all() and np.isfinite(hidden_MF).all()):
        raise VerificationError("units cannot be counted: a derivative or a hidden value is not finite")
    flat_MF = np.abs(derivative_MF) < FLAT
    size_MF = np.abs(hidden_MF.astype(np.float64))
    silent_MF = size_MF <= NEAR_ZERO * np.sqrt((size_MF**2).mean())
    return UnitStatistics(
        dead=float(flat_MF.all(axis=0).mean()),
        saturated=float(flat_MF.mean()),
        near_zero=float(silent_MF.mean()),
        zero=float((size_MF == 0).mean()),
    )
