"""Activations over their domain: the curve, and beneath it how far ONNX lies from it."""

import dataclasses
import math
from collections.abc import Sequence

from tfm.errors import VerificationError

from . import numbers

_COLUMNS = 240
_DECADES = 6
_WIDTH, _TOP, _BOTTOM = 300.0, 110.0, 78.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationCurve:
    """One activation, swept.

    Attributes:
        name: Such as "gelu, tanh form".
        x: Where it was evaluated.
        y: What it is there, by an oracle in float64.
        error: |ONNX - oracle| there.
        limit: The largest error allowed.
        derivative: Its derivative there; empty: it is not drawn.

    Raises:
        VerificationError: The lists differ in length, or are empty.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float]
    limit: float
    derivative: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.error) > 0:
            lengths = f"{len(self.x)} x, {len(self.y)} y and {len(self.error)} errors"
            raise VerificationError(f"{self.name}: {lengths}; as many of each were expected, at least one")
        if len(self.derivative) not in (0, len(self.x)):
            raise VerificationError(
                f"{self.name}: {len(self.derivative)} derivatives at {len(self.x)} x; give one each"
            )

    @property
    def max_error(self) -> float:
        """The largest error; infinite where one is NaN."""
        return max(math.inf if math.isnan(value) else value for value in self.error)

    @property
    def passed(self) -> bool:
        """Whether every error is within the limit."""
        return self.max_error <= self.limit


@dataclasses.dataclass(frozen=True)
class Plot:
    """A curve, drawn: paths in a box of `width` × (`top` + `bottom`), ticks as place and label.

    Attributes:
        derivative: The path of the derivative, on the axes of the curve; "" where it is not drawn.
        broken: Places on the x axis where the error is infinite or NaN.
        outside: How many points have no place on the axes: x or y is infinite or NaN.
    """

    name: str
    passed: bool
    words: str
    width: float
    top: float
    bottom: float
    curve: str
    derivative: str
    error: str
    limit: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    error_ticks: tuple[tuple[float, str], ...]
    broken: tuple[float, ...]
    outside: int


def plot(curve: ActivationCurve) -> Plot:
    """Draw a curve. Where it has more points than the picture has columns, a column shows its largest error."""
    slopes = curve.derivative if len(curve.derivative) else [math.nan] * len(curve.x)
    # By x; NaN, which has no order, at the end.
    points = sorted(zip(curve.x, curve.y, curve.error, slopes, strict=True), key=lambda p: (math.isnan(p[0]), p[0]))
    shown = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    low_x, high_x = _span([point[0] for point in shown])
    # The derivative is drawn on the axes of the function, and both must fit.
    low_y, high_y = _span([value for _, y, _, slope in shown for value in (y, slope) if math.isfinite(value)])
    across = [_WIDTH * _share(point[0], low_x, high_x) for point in shown]
    up = [_TOP * (1 - _share(point[1], low_y, high_y)) for point in shown]
    axis = numbers.decades([*(point[2] for point in shown), curve.limit], _DECADES)
    keep = _shown_points(across, [point[2] for point in shown])
    sound = [index for index in keep if math.isfinite(shown[index][2])]
    steep = [(across[index], shown[index][3]) for index in keep if math.isfinite(shown[index][3])]
    # Of all points, those without a place on the axes too.
    at = max(points, key=lambda p: _size(p[2]))
    words = f"Largest error {numbers.error(curve.max_error)}"
    words += f" at x = {_tick(at[0])}" if curve.max_error else ""
    return Plot(
        name=curve.name,
        passed=curve.passed,
        words=f"{words}; the limit is {numbers.error(curve.limit)}.",
        width=_WIDTH,
        top=_TOP,
        bottom=_BOTTOM,
        curve=_path([(across[index], up[index]) for index in keep]),
        derivative=_path([(x, _TOP * (1 - _share(slope, low_y, high_y))) for x, slope in steep]),
        error=_path([(across[index], _BOTTOM * (1 - axis.at(shown[index][2]) / 100)) for index in sound]),
        limit=_BOTTOM * (1 - axis.at(curve.limit) / 100),
        x_ticks=tuple((_WIDTH * _share(x, low_x, high_x), _tick(x)) for x in _round(low_x, high_x, 5)),
        y_ticks=tuple((_TOP * (1 - _share(y, low_y, high_y)), _tick(y)) for y in _round(low_y, high_y, 3)),
        error_ticks=tuple((_BOTTOM * (1 - place / 100), label) for place, label in axis.ticks),
        broken=tuple(round(across[index], 1) for index in keep if not math.isfinite(shown[index][2])),
        outside=len(points) - len(shown),
    )


def _shown_points(across: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Of more points than columns, those of the largest error in each: a narrow peak must not fall between two."""
    columns: dict[int, int] = {}
    for index, x in enumerate(across):
        column = min(int(x / _WIDTH * _COLUMNS), _COLUMNS - 1)
        if column not in columns or _size(errors[index]) > _size(errors[columns[column]]):
            columns[column] = index
    # Both ends too, so that the curve reaches from side to side.
    return sorted({*columns.values(), *([0, len(across) - 1] if across else [])})


def _size(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _span(values: list[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    wide = high / 2 - low / 2 > 1e-300  # not so among subnormals, which leave nothing to divide by
    return (low, high) if wide else (low - 1.0 - abs(low) / 2, high + 1.0 + abs(high) / 2)


def _share(value: float, low: float, high: float) -> float:
    """How far between two ends, which may lie further apart than float64 reaches: halved first."""
    return (value / 2 - low / 2) / (high / 2 - low / 2)


def _round(low: float, high: float, count: int) -> list[float]:
    """About so many round values from low to high."""
    step = numbers.round_step(low, high, count)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _tick(value: float) -> str:
    return numbers.prose(f"{value:.4g}").replace("-", "−")
