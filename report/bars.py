"""A bar per op by layer: its own error, what it inherits, its error in the whole graph, and the tolerances."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfm.ops import is_layer

from . import numbers
from .chart_rows import Bar, Cell, Row, in_words
from .judge import fault_of_op
from .numbers import Axis


@dataclasses.dataclass(frozen=True)
class Chart:
    """The rows of one graph, by layer, on one axis."""

    axis: Axis
    layers: tuple[tuple[str, tuple[Row, ...]], ...]
    around: tuple[tuple[str, tuple[Row, ...]], ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """What the columns of figures are called."""
        rows = [row for _, group in (*self.layers, *self.around) for row in group]
        return tuple(cell.label for cell in rows[0].cells) if rows else ()


_STYLES = (("own", "own"), ("inherited", "inherited"), ("in place", "free"), ("optimized", "optimized"))
"""Heading and key of each figure, in the order of the columns."""

_HEIGHTS = {"own": 3, "inherited": 11, "free": 19}


def chart(graph: Mapping[str, Any], prefix: str) -> Chart:
    """Lay out the ops of one graph of the certificate.

    Float graphs are drawn by their largest error, on a log axis; quantized ones, whose error in place is that of the
    format and judged by the task, by their signal-to-noise ratio in dB.
    """
    ops = graph["ops"]
    axis = _axis(ops, is_float(graph["precision"]))
    rows = [(op, _row(op, f"{prefix}-{index}", axis)) for index, op in enumerate(ops)]
    return Chart(
        axis=axis,
        layers=_by_layer([(op, row) for op, row in rows if not is_layer(op["kind"])]),
        around=_by_layer([(op, row) for op, row in rows if is_layer(op["kind"])]),
    )


def _axis(ops: Sequence[Mapping[str, Any]], errors: bool) -> Axis:
    # What was compared with nothing has no place on the axis.
    measured = [op[key] for op in ops for _, key in _STYLES if op[key] and op[key]["count"]]
    if not errors:
        return numbers.decibels(figures["snr_db"] for figures in measured)
    # Limits too, so that all of a bar's tick is on the axis.
    return numbers.decades([v for f in measured for v in (f["max_abs"], f.get("limit")) if v is not None])


def is_float(precision: str) -> bool:
    """Whether a precision is one of floating point, such as fp32, fp16 and bf16."""
    return precision.startswith(("fp", "bf"))


def split_path(path: str) -> tuple[str, str]:
    """Split a module's path behind its first number, the layer: "a.layers.0", "self_attn"."""
    parts = path.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1]), ".".join(parts[index + 1 :])
    return "", path


def _by_layer(rows: Sequence[tuple[Mapping[str, Any], Row]]) -> tuple[tuple[str, tuple[Row, ...]], ...]:
    # Ops are in the order of the graph, so that those of a layer stand side by side.
    groups = itertools.groupby(rows, key=lambda item: split_path(item[0]["path"])[0])
    return tuple((layer, tuple(row for _, row in group)) for layer, group in groups)


def _row(op: Mapping[str, Any], anchor: str, axis: Axis) -> Row:
    # Each column has a cell, those without a figure too; optimized graphs are a dot, not a bar.
    shown = [(label, key, op[key] if op[key] and op[key]["count"] else None) for label, key in _STYLES]
    cells = tuple(_cell(label, figures, axis.log) for label, _, figures in shown)
    bars = [_bar(key, figures, axis) for _, key, figures in shown if figures]
    name = _name(op)
    return Row(
        anchor=anchor,
        name=name,
        words=in_words(op["op"], cells),
        detail=" · ".join(filter(None, [op["source"], f"weights {op['weights']}" if op["weights"] else ""])),
        said="" if name.endswith(op["kind"]) else op["kind"],
        fault=fault_of_op(op),
        bars=tuple(bars),
        cells=cells,
    )


def _name(op: Mapping[str, Any]) -> str:
    layer, rest = split_path(op["path"])
    return (rest or layer or "the model itself") + (f" · call {op['call'] + 1}" if op["call"] else "")


def _bar(key: str, figures: Mapping[str, Any], axis: Axis) -> Bar:
    limit = figures.get("limit")
    if axis.log:
        value, tick = figures["max_abs"], None if limit is None else axis.at(limit)
    else:
        # Limits are of the largest error, and have no place on an axis of dB.
        value, tick = decibel(figures), None
    # Broken is what is off by more than it may be, whatever the certificate says of it.
    most = numbers.finite(figures["max_abs"])
    broken = most is None or (limit is not None and not most <= limit)
    # No signal at all, of finite error, is as low as can be; an error that is no number is long.
    length = 0.0 if value == -math.inf and most is not None else axis.at(value)
    if key == "optimized":
        return Bar(style="dot", y=22, length=length)
    return Bar(style="broken" if broken else key, y=_HEIGHTS[key], length=length, tick=tick)


def _cell(label: str, figures: Mapping[str, Any] | None, errors: bool) -> Cell:
    if figures is None:
        return Cell(label, "—", "")
    limit = figures.get("limit")
    if errors:
        return Cell(label, numbers.error(figures["max_abs"]), "" if limit is None else f"≤ {numbers.error(limit)}")
    judged = "" if limit is None else f"{numbers.error(figures['max_abs'])} ≤ {numbers.error(limit)}"
    return Cell(label, snr(figures), judged)


def snr(figures: Mapping[str, Any]) -> str:
    """A signal-to-noise ratio, as text."""
    value = decibel(figures)
    return f"{value:.0f} dB".replace("-", "−").replace("inf", "∞")


def decibel(figures: Mapping[str, Any]) -> float:
    """A signal-to-noise ratio of the certificate, where both infinities are null."""
    value = numbers.finite(figures["snr_db"])
    # JSON has no infinity. Without any error the ratio is +∞; else there was no signal.
    return value if value is not None else math.inf if figures["max_abs"] == 0 else -math.inf
