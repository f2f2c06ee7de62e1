"""The search for a mix: which op in which form, so that the model is as fast as it can be within a budget of fidelity.

Each op's forms are timed on this machine, and what quantizing it alone does to the model's output is measured; that of
an op's other forms is predicted by their own noise, since small errors add up in power. Of every op's forms those on
the lower convex hull of cost and drop are worth having; steps along all hulls, the best bargain first, give a row of
mixes from the fastest to float32 (Shoham & Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers").
The first of them that keeps the budget is found by bisection, and every drop that is decided by is measured.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .evaluator import Loss

SLACK = (1.07, 1.006)
"""Fidelity beyond the budget may cost so many times the time and the size of the fastest mix."""

OBJECTIVES = {"size": 12.0, "speed": 2.0}
"""How much more size counts than time. Small differences of time may be noise; but where size counts most, decoders
have the fewest bits a weight throughout, and read prompts no faster than in float32."""

_NEXT = 1e-9
"""How much dearer than the cheapest form float32 counts, at least."""

_WORST = 1e9
"""What a drop counts that is infinite or not a number: more than any other, and the others can be added to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One form of one op.

    Attributes:
        nmse: Normalized mean squared error of its result on exact inputs.
        time: What it takes, of the float32 model's whole time.
        size: Bytes of its constants, of those of the float32 model.
        weight: How much more size counts than time, one of `OBJECTIVES`.
    """

    nmse: float
    time: float
    size: float
    weight: float = OBJECTIVES["size"]

    @property
    def cost(self) -> float:
        """Time and size, both of float32's."""
        return self.time + self.weight * self.size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """A form for each op.

    Attributes:
        choice: Number of each op's form; 0 is float32.
        time: Predicted, of float32's.
        size: Of float32's constants.
        drop: Predicted from the ops' own.
    """

    choice: tuple[int, ...]
    time: float
    size: float
    drop: float


def noisiest(variants: Sequence[Variant]) -> int:
    """The form whose effect alone tells most."""
    return max(range(len(variants)), key=lambda index: counted(variants[index].nmse))


def frontier_of(ops: Sequence[Sequence[Variant]], alone: Sequence[Mapping[int, float]]) -> list[Assignment]:
    """List the mixes worth having, from the cheapest to the most faithful.

    Args:
        ops: The forms of each op, float32 first, of which there are others; it is chosen for its fidelity alone.
        alone: The model's drop where each op alone has some form, its noisiest at least, as far as it was measured.

    Returns:
        At least one; each but the first differs from the one before in one op.
    """
    drops = [_predicted(variants, measured) for variants, measured in zip(ops, alone, strict=True)]
    hulls = [_hull(variants, predicted) for variants, predicted in zip(ops, drops, strict=True)]
    # A step's bargain is the loss it saves for each unit of cost. Along one hull bargains only get
    # worse, so that sorting never takes a later step of an op before an earlier one.
    steps = []
    for op, hull in enumerate(hulls):
        gain = math.inf
        for place, (one, other) in enumerate(itertools.pairwise(hull), 1):
            # Where digits run out, in order too.
            gain = min(gain, (one[1] - other[1]) / max(other[0] - one[0], 1e-12))
            steps.append((-gain, op, place))
    # All ops begin in their cheapest form; each step moves one of them on.
    choice = [hull[0][2] for hull in hulls]
    assignments = [_assignment(ops, drops, choice)]
    for _, op, place in sorted(steps):
        choice[op] = hulls[op][place][2]
        assignments.append(_assignment(ops, drops, choice))
    return assignments


def choose_assignment(
    assignments: Sequence[Assignment], measure: Callable[[Assignment], Loss], budget: float
) -> tuple[int, dict[int, Loss]]:
    """Find the fastest mix that keeps a budget; a more faithful one where that costs next to nothing.

    Args:
        assignments: As `frontier_of` gives them.
        measure: Measures the drop of a mix.
        budget: The most that it may be.

    Returns:
        Which mix, and the drops that were measured on the way; the last mix, where none keeps it.
    """
    found: dict[int, Loss] = {}

    def keeps(index: int) -> bool:
        if index not in found:
            found[index] = measure(assignments[index])
        return found[index].value <= budget

    # Losses fall along the row, as far as they were predicted well: a bisection measures few of
    # them.
    low, high = 0, len(assignments) - 1
    while low < high:
        # The fastest is often good enough.
        middle = (low + high) // 2 if low else 0
        if keeps(middle):
            high = middle
        else:
            low = middle + 1
    # Where none before it keeps the budget the last was not measured yet.
    keeps(low)
    # Fidelity that is all but free: the most faithful mix that costs hardly more than the fastest,
    # if it measures better.
    first = assignments[0]
    time, size = first.time * SLACK[0], first.size * SLACK[1]
    near = [
        index for index, assignment in enumerate(assignments) if assignment.time <= time and assignment.size <= size
    ]
    best = max(near, default=0)
    return (best if best > low and keeps(best) and found[best].value < found[low].value else low), found


def _predicted(variants: Sequence[Variant], measured: Mapping[int, float]) -> list[float]:
    """Each form's effect: as measured, or in proportion to its noise."""
    most = noisiest(variants)
    nmse = counted(variants[most].nmse)
    unit = counted(measured[most]) / nmse if nmse > 0 else 0.0
    others = [counted(measured.get(index, unit * variant.nmse)) for index, variant in enumerate(variants[1:], 1)]
    return [0.0, *others]


def counted(figure: float) -> float:
    """A drop, or a noise, as a number to add and compare."""
    # NaN alone is not equal to itself.
    return min(max(figure, 0.0), _WORST) if figure == figure else _WORST


def _hull(variants: Sequence[Variant], drops: Sequence[float]) -> list[tuple[float, float, int]]:
    """The lower convex hull of (cost, drop), from the cheapest: with the number of the form."""
    least = min((variant.cost for variant in variants[1:]), default=0.0)
    # Times are noise where ops are small: float32 must never be an op's cheapest form by chance.
    costs = [max(variants[0].cost, least + _NEXT), *(variant.cost for variant in variants[1:])]
    points = sorted((cost, drop, index) for index, (cost, drop) in enumerate(zip(costs, drops, strict=True)))
    hull: list[tuple[float, float, int]] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            # Dearer, and no better.
            continue
        # What lies above the line between its neighbors is worse than a mix of these, over several
        # ops.
        while len(hull) > 1 and _bends_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _bends_up(a: tuple[float, float, int], b: tuple[float, float, int], c: tuple[float, float, int]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _assignment(
    ops: Sequence[Sequence[Variant]], drops: Sequence[Sequence[float]], choice: Sequence[int]
) -> Assignment:
    chosen = [variants[index] for variants, index in zip(ops, choice, strict=True)]
    saved = sum(variants[0].time - variant.time for variants, variant in zip(ops, chosen, strict=True))
    smaller = sum(variants[0].size - variant.size for variants, variant in zip(ops, chosen, strict=True))
    drop = sum(predicted[index] for predicted, index in zip(drops, choice, strict=True))
    return Assignment(choice=tuple(choice), time=1 - saved, size=1 - smaller, drop=drop)


def frontier_to_json(
    assignments: Sequence[Assignment], measured: Mapping[int, Loss], chosen: int, most: int = 24
) -> list[dict[str, Any]]:
    """What to draw: the mixes that no other beats in both time and drop, thinned out, as JSON values."""
    # Every so many of the row; what was measured, the chosen and the last are always shown.
    step = max(1, len(assignments) // most)
    shown = sorted({*range(0, len(assignments), step), *measured, chosen, len(assignments) - 1})
    points = [
        {
            "relative_time": assignments[index].time,
            "drop": measured[index].value if index in measured else assignments[index].drop,
            "measured": index in measured,
            "chosen": index == chosen,
            "float32": sum(variant == 0 for variant in assignments[index].choice),
        }
        for index in shown
    ]

    def beaten(point: dict[str, Any]) -> bool:
        return any(
            other["relative_time"] <= point["relative_time"] and other["drop"] < point["drop"] for other in points
        )

    return sorted(
        (point for point in points if point["chosen"] or not beaten(point)), key=lambda point: point["relative_time"]
    )
