"""Small plots side by side, one for each activation of a study, on common axes."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfm.report import numbers
from tfm.report.bars import split_path
from tfm.report.numbers import Axis


@dataclasses.dataclass(frozen=True)
class Plot:
    """One activation's lines before the baseline's; places in % from the left and from the top.

    Attributes:
        lines: Paths of its own.
        behind: Paths of the baseline; none in the baseline's own plot.
        dots: Points of its own.
        note: What it came to, as text.
    """

    name: str
    lines: tuple[str, ...]
    behind: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    note: str
    words: str


@dataclasses.dataclass(frozen=True)
class Plots:
    """Plots on common axes; ticks, and `titles` beneath those of x, are a place in % and a label."""

    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    titles: tuple[tuple[float, str], ...]
    plots: tuple[Plot, ...]


def loss_plots(activations: Sequence[Mapping[str, Any]], baseline: str) -> Plots:
    """The training loss of each activation, that of the baseline behind it."""
    axis = round_log(loss for one in activations for _, loss in one["loss"])
    last = max((step for one in activations for step, _ in one["loss"]), default=1)
    curves = {
        one["activation"]: path([(100 * step / last, _down(loss, axis)) for step, loss in one["loss"]])
        for one in activations
    }
    plots = []
    for one in activations:
        name = one["activation"]
        behind = () if name == baseline else (curves[baseline],)
        end = numbers.plain(one["loss"][-1][1], 3) if one["loss"] else "—"
        words = f"{name}: training loss, {end} at the end"
        dots = _dots([(100 * step / last, _down(loss, axis)) for step, loss in one["loss"]], alone=True)
        plots.append(Plot(name, (curves[name],), behind, dots, end, words))
    return Plots(((0.0, "0"), (50.0, f"{last / 2:g}"), (100.0, f"{last:g}")), _from_top(axis), (), tuple(plots))


def gradient_plots(activations: Sequence[Mapping[str, Any]], baseline: str) -> Plots:
    """The norm of each layer's gradient, by its depth in its half of the model."""
    axis = round_log(norm for one in activations for norm in one["gradients"].values())
    # Encoder and decoder side by side, each by depth, with the room of one layer between them.
    halves: dict[str, list[str]] = {}
    for layer in activations[0]["gradients"]:
        halves.setdefault(split_path(layer)[0].split(".")[0], []).append(layer)
    count = sum(map(len, halves.values())) + len(halves) - 1
    places, titles, index = {}, [], 0
    for half, layers in halves.items():
        titles.append((100 * (index + len(layers) / 2) / count, half))
        for layer in layers:
            places[layer] = 100 * (index + 0.5) / count
            index += 1
        index += 1

    def points(one: Mapping[str, Any], half: str) -> list[tuple[float, float | None]]:
        return [(places[layer], _down(one["gradients"][layer], axis)) for layer in halves[half]]

    paths = {one["activation"]: tuple(path(points(one, half)) for half in halves) for one in activations}
    plots = []
    for one in activations:
        name = one["activation"]
        behind = () if name == baseline else paths[baseline]
        dots = tuple(dot for half in halves for dot in _dots(points(one, half)))
        norms = ", ".join(f"{layer} {numbers.plain(norm, 2)}" for layer, norm in one["gradients"].items())
        plots.append(Plot(name, paths[name], behind, dots, "", f"{name}: norm of the gradient: {norms}"))
    numbered = tuple((places[layer], str(i)) for layers in halves.values() for i, layer in enumerate(layers, 1))
    return Plots(numbered, _from_top(axis), tuple(titles), tuple(plots))


def _down(value: float | None, axis: Axis) -> float | None:
    """From the top in %; None where the value has no place."""
    value = numbers.finite(value)
    return None if value is None else round(100 - axis.at(value), 1)


def _from_top(axis: Axis) -> tuple[tuple[float, str], ...]:
    return tuple((100 - place, label) for place, label in axis.ticks)


def _dots(points: Sequence[tuple[float, float | None]], *, alone: bool = False) -> tuple[tuple[float, float], ...]:
    """The points of known height; `alone`: only where there is one, which makes no line."""
    known = tuple((x, y) for x, y in points if y is not None)
    return known if len(known) == 1 or not alone else ()


def round_log(values: Iterable[float | None]) -> Axis:
    """A log axis from 1, 2 or 5 times a power of ten to another, which holds all positive values."""
    logs = [math.log10(value) for value in map(numbers.finite, values) if value is not None and value > 0]
    low, high = min(logs, default=0.0), max(logs, default=1.0)
    # So far apart, whole decades are round enough.
    if high - low > 2.5:
        return numbers.decades([10**low, 10**high])
    marks = [
        (power + math.log10(factor), float(f"{factor}e{power}"))
        for power in range(math.floor(low) - 1, math.ceil(high) + 2)
        for factor in (1, 2, 5)
    ]
    # The marks next to both ends, and never the same one twice.
    first = max(index for index, (place, _) in enumerate(marks) if place <= low + 1e-9)
    last = max(min(index for index, (place, _) in enumerate(marks) if place >= high - 1e-9), first + 1)
    start, end = marks[first][0], marks[last][0]
    ticks = tuple((100 * (place - start) / (end - start), f"{value:g}") for place, value in marks[first : last + 1])
    return Axis(start, end, True, ticks, last - first)


def path(points: Sequence[tuple[float, float | None]]) -> str:
    """A path through the points of known height, broken where one is not."""
    parts, pen = [], "M"
    for x, y in points:
        # Where a loss is infinite or NaN, the pen is lifted: a line across would claim values.
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(parts)
