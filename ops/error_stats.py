"""How far two tensors lie apart, accumulated over any number of comparisons, and how far they may."""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.errors import VerificationError

_BLOCK = 1 << 18
"""Numbers compared at a time: their float64 copies stay within the processor's cache."""


@dataclasses.dataclass
class ErrorStats:
    """The distance of what was computed from what was expected.

    NaN equals only NaN at the same place, and an infinity only itself: any other pairing makes `max_abs` infinite.

    Attributes:
        count: Number of elements compared.
        max_abs: Largest absolute difference.
        scale: Largest finite magnitude expected.
    """

    count: int = 0
    max_abs: float = 0.0
    scale: float = 0.0
    _noise: float = 0.0
    _expected: float = 0.0
    _actual: float = 0.0
    _product: float = 0.0

    def add(self, actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
        """Compare two arrays of one shape, in float64.

        Raises:
            VerificationError: Their shapes differ: nothing was compared.
        """
        if actual.shape != expected.shape:
            raise VerificationError(f"shapes differ: {actual.shape} was computed, {expected.shape} expected")
        # float32 squares and their sums would lose the small differences that are looked for.
        flat, wanted = actual.ravel(), expected.ravel()
        for start in range(0, flat.size, _BLOCK):
            self._add(
                flat[start : start + _BLOCK].astype(np.float64), wanted[start : start + _BLOCK].astype(np.float64)
            )

    def _add(self, a: npt.NDArray[np.float64], e: npt.NDArray[np.float64]) -> None:
        self.count += a.size
        # What is not finite is in no sum: a pair that is equal says nothing more, and any other
        # makes all figures infinite for good, whatever is added later.
        finite = np.isfinite(a) & np.isfinite(e)
        if not finite.all():
            if not (finite | (a == e) | (np.isnan(a) & np.isnan(e))).all():
                self.max_abs = math.inf
            a, e = a[finite], e[finite]
        # A NaN or infinity in what was expected must not raise `scale`, and with it the limit: only
        # finite pairs are left here.
        if a.size:
            difference = a - e
            self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
            self.scale = max(self.scale, float(np.abs(e).max()))
            self._noise += _dot(difference, difference)
            self._expected += _dot(e, e)
            self._actual += _dot(a, a)
            self._product += _dot(a, e)

    @property
    def nmse(self) -> float:
        """Squared error relative to the squared signal, Σ(a - e)² / Σe²."""
        if math.isinf(self.max_abs):
            return math.inf
        # Where zeros are expected, any error at all is infinitely large beside them.
        return self._noise / self._expected if self._expected else math.inf if self._noise else 0.0

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio, in dB; infinite for a perfect match."""
        return math.inf if self.nmse == 0.0 else -10.0 * math.log10(self.nmse) if self.nmse < math.inf else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between all computed and all expected values; NaN where `max_abs` is infinite."""
        if math.isinf(self.max_abs):
            return math.nan
        norm = math.sqrt(self._actual * self._expected)
        return self._product / norm if norm else (1.0 if self._actual == self._expected else 0.0)

    def to_dict(self) -> dict[str, float | int | None]:
        """Give the figures as JSON values; an infinite one is null."""
        values = {
            "max_abs": self.max_abs,
            "nmse": self.nmse,
            "snr_db": self.snr_db,
            "cosine": self.cosine,
            "scale": self.scale,
        }
        return {"count": self.count} | {key: value if math.isfinite(value) else None for key, value in values.items()}


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest absolute difference allowed: atol + rtol × the largest magnitude expected.

    The scale is the tensor's, not the element's: an element near zero, in the tail of an activation, carries the
    rounding of the large numbers that it is made from.
    """

    atol: float
    rtol: float
    reason: str = ""

    def limit(self, figures: ErrorStats) -> float:
        """Largest `max_abs` these figures may have."""
        return self.atol + self.rtol * figures.scale


def _dot(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Σ a·b, without BLAS, whose threads would wait for each other at these sizes."""
    return float(np.einsum("i,i->", a, b))
