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

from .evaluator import Drop

SLACK = (1.07, 1.006)
"""Fidelity beyond the budget may cost so many times the time and the size of the fastest mix."""

FAVOURS = {"size": 12.0, "speed": 2.0}
"""How much more size counts than time. Small differences of time may be noise; but where size counts most, decoders
have the fewest bits a weight throughout, and read prompts no faster than in float32."""

_NEXT = 1e-9
"""How much dearer than the cheapest form float32 counts, at least."""

_WORST = 1e9
"""What a drop counts that is infinite or not a number: more than any other, and the others can be added to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One form of one op.

    Attributes:
        noise: Normalized mean squared error of its result on exact inputs.
        time: What it takes, of the float32 model's whole time.
        size: Bytes of its constants, of those of the float32 model.
        weight: How much more size counts than time, one of `FAVOURS`.
    """

    noise: float
    time: float
    size: float
    weight: float = FAVOURS["size"]

    @property
    def cost(self) -> float:
        """Time and size, both of float32's."""
        return self.time + self.weight * self.size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
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


def noisiest(forms: Sequence[Form]) -> int:
    """The form whose effect alone tells most."""
    return max(range(len(forms)), key=lambda index: _counted(forms[index].noise))


def row_of_mixes(ops: Sequence[Sequence[Form]], alone: Sequence[Mapping[int, float]]) -> list[Mix]:
    """List the mixes worth having, from the cheapest to the most faithful.

    Args:
        ops: The forms of each op, float32 first, of which there are others; it is chosen for its fidelity alone.
        alone: The model's drop where each op alone has some form, its noisiest at least, as far as it was measured.

    Returns:
        At least one; each but the first differs from the one before in one op.
    """
    drops = [_predicted(forms, measured) for forms, measured in zip(ops, alone, strict=True)]
    hulls = [_hull(forms, predicted) for forms, predicted in zip(ops, drops, strict=True)]
    steps = []
    for op, hull in enumerate(hulls):
        gain = math.inf
        for place, (one, other) in enumerate(itertools.pairwise(hull), 1):
            gain = min(gain, (one[1] - other[1]) / max(other[0] - one[0], 1e-12))  # where digits run out, in order too
            steps.append((-gain, op, place))
    choice = [hull[0][2] for hull in hulls]
    mixes = [_mix(ops, drops, choice)]
    for _, op, place in sorted(steps):
        choice[op] = hulls[op][place][2]
        mixes.append(_mix(ops, drops, choice))
    return mixes


def choose_mix(mixes: Sequence[Mix], measure: Callable[[Mix], Drop], budget: float) -> tuple[int, dict[int, Drop]]:
    """Find the fastest mix that keeps a budget; a more faithful one where that costs next to nothing.

    Args:
        mixes: As `row_of_mixes` gives them.
        measure: Measures the drop of a mix.
        budget: The most that it may be.

    Returns:
        Which mix, and the drops that were measured on the way; the last mix, where none keeps it.
    """
    found: dict[int, Drop] = {}

    def keeps(index: int) -> bool:
        if index not in found:
            found[index] = measure(mixes[index])
        return found[index].value <= budget

    low, high = 0, len(mixes) - 1
    while low < high:
        middle = (low + high) // 2 if low else 0  # the fastest is often good enough
        if keeps(middle):
            high = middle
        else:
            low = middle + 1
    keeps(low)
    first = mixes[0]
    time, size = first.time * SLACK[0], first.size * SLACK[1]
    near = [index for index, mix in enumerate(mixes) if mix.time <= time and mix.size <= size]
    best = max(near, default=0)
    return (best if best > low and keeps(best) and found[best].value < found[low].value else low), found


def _predicted(forms: Sequence[Form], measured: Mapping[int, float]) -> list[float]:
    """Each form's effect: as measured, or in proportion to its noise."""
    most = noisiest(forms)
    noise = _counted(forms[most].noise)
    unit = _counted(measured[most]) / noise if noise > 0 else 0.0
    others = [_counted(measured.get(index, unit * form.noise)) for index, form in enumerate(forms[1:], 1)]
    return [0.0, *others]


def _counted(figure: float) -> float:
    """A drop, or a noise, as a number to add and compare."""
    return min(max(figure, 0.0), _WORST) if figure == figure else _WORST


def _hull(forms: Sequence[Form], drops: Sequence[float]) -> list[tuple[float, float, int]]:
    """The lower convex hull of (cost, drop), from the cheapest: with the number of the form."""
    least = min((form.cost for form in forms[1:]), default=0.0)
    costs = [max(forms[0].cost, least + _NEXT), *(form.cost for form in forms[1:])]
    points = sorted((cost, drop, index) for index, (cost, drop) in enumerate(zip(costs, drops, strict=True)))
    hull: list[tuple[float, float, int]] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue  # dearer, and no better
        while len(hull) > 1 and _bends_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _bends_up(a: tuple[float, float, int], b: tuple[float, float, int], c: tuple[float, float, int]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _mix(ops: Sequence[Sequence[Form]], drops: Sequence[Sequence[float]], choice: Sequence[int]) -> Mix:
    chosen = [forms[index] for forms, index in zip(ops, choice, strict=True)]
    saved = sum(forms[0].time - form.time for forms, form in zip(ops, chosen, strict=True))
    smaller = sum(forms[0].size - form.size for forms, form in zip(ops, chosen, strict=True))
    drop = sum(predicted[index] for predicted, index in zip(drops, choice, strict=True))
    return Mix(choice=tuple(choice), time=1 - saved, size=1 - smaller, drop=drop)


def front_of(mixes: Sequence[Mix], measured: Mapping[int, Drop], chosen: int, most: int = 24) -> list[dict[str, Any]]:
    """What to draw: the mixes that no other beats in both time and drop, thinned out, as JSON values."""
    step = max(1, len(mixes) // most)
    shown = sorted({*range(0, len(mixes), step), *measured, chosen, len(mixes) - 1})
    points = [
        {
            "relative_time": mixes[index].time,
            "drop": measured[index].value if index in measured else mixes[index].drop,
            "measured": index in measured,
            "chosen": index == chosen,
            "float32": sum(form == 0 for form in mixes[index].choice),
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
