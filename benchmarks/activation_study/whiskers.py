"""Dots with their intervals: how estimates are laid out on a page."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfm.report import numbers
from tfm.report.numbers import Axis


@dataclasses.dataclass(frozen=True)
class Whisker:
    """A mean and its interval in % of the width; None where they are not known.

    Attributes:
        style: Its classes of the style sheet.
        y: Its height in the row.
    """

    style: str
    y: float
    at: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One activation: its marks, its figures as text and its verdict in words."""

    name: str
    marks: tuple[Whisker, ...]
    cells: tuple[str, ...]
    said: str = ""
    tone: str = ""

    @property
    def words(self) -> str:
        """What the marks show, in words."""
        return f"{self.name}: {', '.join([*self.cells, self.said] if self.said else self.cells)}"


@dataclasses.dataclass(frozen=True)
class Chart:
    """Rows on one axis; `one` is where the line of no difference lies, in %."""

    title: str
    axis: Axis
    one: float | None
    headings: tuple[str, ...]
    rows: tuple[Row, ...]


def mark(
    estimate: Mapping[str, Any], axis: Axis, style: str, *, key: str = "mean", scale: float = 1.0, y: float = 11
) -> Whisker:
    """Place an estimate on an axis; `scale` is what its values are multiplied by there."""
    values = [numbers.finite(estimate[name]) for name in (key, "low", "high")]
    at, low, high = (None if value is None else axis.at(scale * value) for value in values)
    return Whisker(style, y, at, low, high)
