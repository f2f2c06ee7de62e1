"""The Pareto front: the mixes of methods that no other beats both in time and in what they cost the model's output."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from . import numbers


@dataclasses.dataclass(frozen=True)
class Point:
    """One mix: its place from the left and from the top in %, and its classes of the style sheet."""

    x: float
    y: float
    style: str


@dataclasses.dataclass(frozen=True)
class Front:
    """The mixes as points; all places are in %, from the left and from the top.

    Attributes:
        lines: From each point to the next: x, y, x, y.
        chosen: The point that was chosen; None where none was.
        budget: Where the budget lies.
        broken: Whether a mix has a drop of NaN or infinity, and stands at the top.
        without: Whether a mix has no drop at all where the axis is one of decades, and stands at its foot.
        words: The same for those who hear the page.
    """

    points: tuple[Point, ...]
    lines: tuple[tuple[float, float, float, float], ...]
    chosen: Point | None
    budget: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    predicted: bool
    broken: bool
    without: bool
    words: str


def front(assignments: Sequence[Mapping[str, Any]], max_drop: float | None) -> Front | None:
    """Lay out the mixes of one precision, the budget among them; None where there are none."""
    if not assignments:
        return None
    drops = [numbers.finite(assignment["drop"]) for assignment in assignments]
    axis = _axis_of_drops([*drops, numbers.finite(max_drop)])
    across = numbers.linear([assignment["relative_time"] for assignment in assignments], zero=False, unit="×")
    points = []
    for assignment, drop in zip(assignments, drops, strict=True):
        # From the top, as pages count; the axis counts from below.
        y = round(100 - axis.at(drop), 1)
        points.append(Point(across.at(assignment["relative_time"]), y, _style(assignment, drop)))
    return Front(
        points=tuple(points),
        lines=tuple((a.x, a.y, b.x, b.y) for a, b in itertools.pairwise(points)),
        chosen=next((point for point in points if "chosen" in point.style), None),
        budget=round(100 - axis.at(max_drop), 1),
        x_ticks=across.ticks,
        y_ticks=tuple((100 - place, label) for place, label in axis.ticks),
        predicted=any(assignment["measured"] is not True for assignment in assignments),
        broken=None in drops,
        # A drop of 0 has no place among decades.
        without=axis.log and any(drop is not None and drop <= 0 for drop in drops),
        words=_in_words(assignments, max_drop),
    )


def _style(assignment: Mapping[str, Any], drop: float | None) -> str:
    # Predicted: a mix that the search weighed by its ops alone, and did not run.
    style = "broken" if drop is None else "measured" if assignment["measured"] is True else "predicted"
    return style + (" chosen" if assignment["chosen"] is True else "")


def _axis_of_drops(drops: Sequence[float | None]) -> numbers.Axis:
    positive = [value for value in drops if value is not None and value > 0]
    # Drops that differ by powers of ten would all lie at the foot of an even axis.
    if positive and max(positive) >= 10 * min(positive):
        return numbers.decades(positive, least=1)
    return numbers.linear(positive, zero=True)


def _in_words(assignments: Sequence[Mapping[str, Any]], max_drop: float | None) -> str:
    words = f"{len(assignments)} mix{'es' if len(assignments) > 1 else ''}, from the fastest to the most faithful: "
    words += ", ".join(f"{times(one['relative_time'])} at {numbers.error(one['drop'])}" for one in assignments)
    words += f"; the budget is {numbers.error(max_drop)}"
    return words + "".join(f"; chosen is {times(one['relative_time'])}" for one in assignments if one["chosen"] is True)


def times(ratio: float | None) -> str:
    """A ratio of times, as `0.31×`."""
    value = numbers.finite(ratio)
    return "∞" if value is None else f"{value:.2f}×"
