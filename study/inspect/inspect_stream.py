"""The residual stream of a look inside, as a picture: how long each token's state is, and what is added to it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfm.report import bars, numbers

_LONGEST = 10
"""Letters of a token beside a picture."""
_TICKS, _APART = 8, 6.0
"""Most labels of layers, and how far the first of them is from the start, in %."""
_WIDE = 30.0
"""A log axis is drawn where the largest value is more than so many times the least."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One sub-layer in a picture: places in %, its kind as a class of the style sheet, and in words."""

    x: float
    y: float
    style: str
    words: str


@dataclasses.dataclass(frozen=True)
class Stream:
    """The residual stream: a line per token and their mean on one axis, what is added on another.

    Attributes:
        lines: A path in a square of 100 and the token, each.
        mean: Path of the mean.
        x_ticks: Place in % and label of each layer.
        rows: Sub-layer, mean norm, the token with the largest norm, mean of what is added.
    """

    axis: numbers.Axis
    lines: tuple[tuple[str, str], ...]
    mean: str
    x_ticks: tuple[tuple[float, str], ...]
    added_axis: numbers.Axis
    added: tuple[Point, ...]
    styles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def draw_stream(stack: Mapping[str, Any]) -> Stream:
    """Draw how long each token's state is before the first and after each sub-layer, and what each adds."""
    residual, tokens = stack["residual"], stack["tokens"]
    sublayers = residual["sublayers"]
    # The stream before the first sub-layer, then after each.
    steps = [residual["start"], *(one["norm"] for one in sublayers)]
    axis = _axis([value for step in steps for value in step["tokens"]])
    positions = [100 * index / (len(steps) - 1) for index in range(len(steps))]
    lines = tuple(
        (_line(positions, [axis.at(step["tokens"][token]) for step in steps]), name)
        for token, name in enumerate(tokens)
    )
    added = [one["added"]["mean"] for one in sublayers]
    added_axis = _axis(added)
    kinds = [_kind(one["op"]) for one in sublayers]
    return Stream(
        axis=axis,
        lines=lines,
        mean=_line(positions, [axis.at(step["mean"]) for step in steps]),
        x_ticks=_layers([one["op"] for one in sublayers], positions[1:]),
        added_axis=added_axis,
        added=tuple(
            Point(round(x, 1), 100 - added_axis.at(value), kind, f"{one['op']}: {_times(value)}")
            for one, x, value, kind in zip(sublayers, positions[1:], added, kinds, strict=True)
        ),
        styles=tuple(dict.fromkeys(kinds)),
        rows=tuple(_figures(one, tokens) for one in sublayers),
    )


def _figures(sublayer: Mapping[str, Any], tokens: Sequence[str]) -> tuple[str, ...]:
    norms = sublayer["norm"]["tokens"]
    largest = max(range(len(norms)), key=norms.__getitem__)
    at = f"{numbers.length(norms[largest])} at “{shorten(tokens[largest])}”"
    return sublayer["op"], numbers.length(sublayer["norm"]["mean"]), at, _times(sublayer["added"]["mean"])


def _axis(values: Iterable[float | None]) -> numbers.Axis:
    found = [value for value in map(numbers.finite, values) if value is not None]
    positive = [value for value in found if value > 0]
    # Lengths that differ so much would all but one lie at the foot of an even axis.
    if positive and len(positive) == len(found) and max(positive) > _WIDE * min(positive):
        axis = numbers.decades(positive, least=1)
        # Lengths are written as 10 and 100, not as 1e1 and 1e2, which are for errors.
        powers = [round(axis.low + place / 100 * (axis.high - axis.low)) for place, _ in axis.ticks]
        ticks = tuple((place, f"{10.0**power:g}") for (place, _), power in zip(axis.ticks, powers, strict=True))
        return dataclasses.replace(axis, ticks=ticks)
    return numbers.linear(found, zero=True)


def _line(positions: Sequence[float], heights: Sequence[float]) -> str:
    return "M" + "L".join(f"{x:.1f} {100 - y:.1f}" for x, y in zip(positions, heights, strict=True))


def _layers(ops: Sequence[str], positions: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Where the stream comes in and each layer begins; of many layers, every so many."""
    starts: dict[str, float] = {}
    for op, place in zip(ops, positions, strict=True):
        # A layer begins with its first sub-layer.
        starts.setdefault(bars.split_path(op)[0].rpartition(".")[2], place)
    every = -(-len(starts) // _TICKS)
    ticks = [(round(place, 1), layer) for index, (layer, place) in enumerate(starts.items()) if index % every == 0]
    return ((0.0, "in"), *(tick for tick in ticks if tick[0] > _APART))


def _kind(op: str) -> str:
    """What a sub-layer is, as the picture tells apart."""
    if " + " in op:
        return "both"
    return "cross-attention" if "cross" in op else "attention" if "att" in bars.split_path(op)[1] else "feed-forward"


def _times(value: float | None) -> str:
    return "∞" if value is None else f"{numbers.plain(value, 2)}×"


def shorten(token: str) -> str:
    """Cut a token to what there is room for beside a picture."""
    return token if len(token) <= _LONGEST else token[: _LONGEST - 1] + "…"
