"""Dots with their intervals: how estimates are laid out on a page."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfm.report import Bar, Cell, Row, numbers


@dataclasses.dataclass(frozen=True)
class Chart:
    """Rows on one axis; `one` is where the line of no difference lies, in %."""

    title: str
    axis: numbers.Axis
    one: float | None
    headings: tuple[str, ...]
    rows: tuple[Row, ...]


def row(
    name: str, headings: Sequence[str], marks: Sequence[Bar], texts: Sequence[str], said: str = "", tone: str = ""
) -> Row:
    """Make the row of an activation: its marks, its figures as text, and its verdict with the class of that."""
    words = f"{name}: {', '.join([*texts, said] if said else texts)}"
    cells = tuple(map(Cell, headings, texts))
    return Row(name=name, words=words, bars=tuple(marks), cells=cells, said=said, style=tone)


def mark(
    estimate: Mapping[str, Any], axis: numbers.Axis, style: str, *, key: str = "mean", scale: float = 1.0, y: float = 11
) -> Bar:
    """Place an estimate on an axis; `scale` is what its values are multiplied by there."""
    values = [numbers.finite(estimate[name]) for name in (key, "low", "high")]
    at, low, high = (None if value is None else axis.at(scale * value) for value in values)
    return Bar(style=style, y=y, length=at, low=low, high=high)
