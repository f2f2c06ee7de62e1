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
    positive = [value for value in (*drops, numbers.finite(max_drop)) if value is not None and value > 0]
    # Drops that differ by powers of ten would all lie at the foot of an even axis.
    if positive and max(positive) >= 10 * min(positive):
        axis = numbers.decades(positive, least=1)
    else:
        axis = numbers.linear(positive, zero=True)
    across = numbers.linear([assignment["relative_time"] for assignment in assignments], zero=False, unit="×")
    points = []
    for assignment, drop in zip(assignments, drops, strict=True):
        # Predicted: a mix that the search weighed by its ops alone, and did not run.
        style = "broken" if drop is None else "measured" if assignment["measured"] is True else "predicted"
        style += " chosen" if assignment["chosen"] is True else ""
        # From the top, as pages count; the axis counts from below.
        points.append(Point(across.at(assignment["relative_time"]), round(100 - axis.at(drop), 1), style))
    chosen = [
        (assignment, point)
        for assignment, point in zip(assignments, points, strict=True)
        if assignment["chosen"] is True
    ]
    words = f"{len(assignments)} mix{'es' if len(assignments) > 1 else ''}, from the fastest to the most faithful: "
    words += ", ".join(
        f"{times(assignment['relative_time'])} at {numbers.error(assignment['drop'])}" for assignment in assignments
    )
    words += f"; the budget is {numbers.error(max_drop)}"
    words += "".join(f"; chosen is {times(assignment['relative_time'])}" for assignment, _ in chosen)
    return Front(
        points=tuple(points),
        lines=tuple((a.x, a.y, b.x, b.y) for a, b in itertools.pairwise(points)),
        chosen=chosen[0][1] if chosen else None,
        budget=round(100 - axis.at(max_drop), 1),
        x_ticks=across.ticks,
        y_ticks=tuple((100 - place, label) for place, label in axis.ticks),
        predicted=any(assignment["measured"] is not True for assignment in assignments),
        broken=None in drops,
        # A drop of 0 has no place among decades.
        without=axis.log and any(drop is not None and drop <= 0 for drop in drops),
        words=words,
    )


def times(ratio: float | None) -> str:
    """A ratio of times, as `0.31×`."""
    value = numbers.finite(ratio)
    return "∞" if value is None else f"{value:.2f}×"
