"""What 8 bits leave of an activation's output: the signal-to-quantization-noise ratio, in dB.

Shapes: T tokens of a text, F feed-forward size.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.latency import bootstrap_median
from tfm.latency.ratios import SAME
from tfm.quantize import round_symmetric
from tfm.runtime import ErrorStats

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

SCALES = ("per_tensor", "per_token")
ABOVE, BELOW = "above", "below"
"""What can be said of an SQNR beside relu's, or that no difference is shown."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A median over texts, in dB, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f}–{self.high:.1f})"

    def to_dict(self) -> dict[str, float]:
        """Give it as JSON values."""
        return {"db": self.value, "low": self.low, "high": self.high}


@dataclasses.dataclass(frozen=True)
class Sqnr:
    """The SQNR of an activation's output under one kind of scale.

    Attributes:
        own: The median over the texts; None: 8 bits hold its output on all of them exactly, as they do zeros.
        beside_relu: The median of the differences from relu's on the same text; None: it is relu, or as above.
    """

    own: Estimate | None
    beside_relu: Estimate | None

    @property
    def verdict(self) -> str | None:
        """`ABOVE` relu's or `BELOW`, or `SAME` where the interval holds 0."""
        difference = self.beside_relu
        if difference is None:
            return None
        return ABOVE if difference.low > 0 else BELOW if difference.high < 0 else SAME

    @property
    def said(self) -> str:
        """That in words, with the interval; "" where there is nothing to say."""
        difference = self.beside_relu
        if difference is None or self.verdict == SAME:
            return self.verdict or ""
        low, high = sorted((abs(difference.low), abs(difference.high)))
        return f"{self.verdict} by {abs(difference.value):.1f} ({low:.1f}–{high:.1f})"

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        own = {"db": None, "low": None, "high": None} if self.own is None else self.own.to_dict()
        beside = None if self.beside_relu is None else self.beside_relu.to_dict()
        return own | {"beside_relu": beside, "verdict": self.verdict, "said": self.said or None}


def per_tensor(y_TF: Array) -> Array:
    """Round to uint8 and back with one scale and zero point, as ONNX's DynamicQuantizeLinear does."""
    # 0 is always in the range, as ONNX has it, so that zeros stay zeros.
    low, high = np.minimum(y_TF.min(), np.float32(0)), np.maximum(y_TF.max(), np.float32(0))
    scale = (high - low) / np.float32(255)
    if not scale:
        return y_TF  # all zeros
    # rint rounds ties to even, as DynamicQuantizeLinear does.
    zero = np.rint(np.clip(-low / scale, 0, 255))
    rounded: Array = (np.clip(np.rint(y_TF / scale) + zero, 0, 255) - zero) * scale
    return rounded


def per_token(y_TF: Array) -> Array:
    """Round to int8 and back, symmetrically, with a scale for each token."""
    rounded_TF, scale_T1 = round_symmetric(y_TF, axis=1)
    return rounded_TF * scale_T1


def text_sqnr(layers: Sequence[Array], scale: str) -> float:
    """Give the SQNR of one text, in dB: the mean over the layers whose output (T, F) 8 bits do not hold exactly.

    NaN where they hold all of them.
    """
    quantize = {"per_tensor": per_tensor, "per_token": per_token}[scale]
    ratios = []
    for y_TF in layers:
        figures = ErrorStats()
        figures.add(quantize(y_TF), y_TF)
        ratios.append(figures.snr_db)
    # An output that 8 bits hold exactly has an infinite ratio, which no mean could have a part in.
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    return float(np.mean(finite)) if finite else float("nan")


def summarize(own: Floats, relu: Floats | None) -> Sqnr:
    """Sum up the SQNR of each text, beside relu's of the same texts (None: it is relu)."""
    # Differences on the same text: how hard a text is for both cancels.
    return Sqnr(_estimate(own), None if relu is None else _estimate(own - relu))


def _estimate(values: Floats) -> Estimate | None:
    found = values[np.isfinite(values)]
    return Estimate(float(np.median(found)), *bootstrap_median(found.tolist())) if found.size else None
