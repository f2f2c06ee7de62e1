"""Rows of a table that is also a chart: bars on an axis, figures beside them, and the same in words."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """What a row has on its axis: a bar, or a dot, and an interval around its end; places in % of the width.

    Attributes:
        style: Its classes of the style sheet.
        y: Its height in the row.
        length: How far it reaches, or where the dot is; None: it has no place.
        start: Where it begins.
        tick: Where its tolerance lies; None: none.
        low: Where the interval of its end begins; None: not known.
        high: Where it ends.
    """

    style: str
    y: float
    length: float | None
    start: float = 0.0
    tick: float | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure: its heading, its text, what is said beneath it, and the class of that."""

    label: str
    text: str
    note: str = ""
    style: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its heading and what stands beneath it, its bars and the same in words, its figures, and its verdict.

    Attributes:
        anchor: Its name in the page.
        style: Its class, or that of what is said.
        fault: Why it failed; "" where it passed.
    """

    name: str
    words: str
    cells: tuple[Cell, ...]
    bars: tuple[Bar, ...]
    anchor: str = ""
    detail: str = ""
    said: str = ""
    style: str = ""
    fault: str = ""


def in_words(name: str, cells: Sequence[Cell]) -> str:
    """Say what a row's figures are."""
    return f"{name}: " + ", ".join(f"{cell.label} {cell.text} {cell.note}".strip() for cell in cells)
