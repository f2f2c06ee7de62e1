"""A study of activations as a table on a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tfm.cli.screen import Screen

from .statistics import Estimate
from .summary import Line

_STYLES = {"better": "green", "worse": "red"}


def print_study(lines: Sequence[Line]) -> None:
    """Print a row for every activation: its error, how it compares, and what int8 and its time come to.

    Args:
        lines: As `summarize` gives them, the baseline first.
    """
    baseline, measure = lines[0].activation, next(iter(lines[0].errors))
    workloads = _works(lines)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("activation", no_wrap=True)
    table.add_column("error, %", no_wrap=True)
    table.add_column(f"less {baseline}’s")
    table.add_column("lost by int8")
    for work in workloads:
        table.add_column(f"int8 time, {work}")
    for line in lines:
        against = Text("the baseline") if line.against is None else _difference(line.against)
        times = [Text("1") if line.against is None else _time(line.ratios.get((work, "int8"))) for work in workloads]
        table.add_row(line.activation, _spread(line.errors[measure]), against, _difference(line.int8_loss), *times)
    console = Screen()
    console.print(table)
    for text in (
        f"error: {measure.replace('_', ' ')}, and differences of it in percentage points; times are over {baseline}’s",
        "± and “to” give 95 % intervals; the order is the study’s, no ranking",
    ):
        console.print(f"  {text}", soft_wrap=True)


def _works(lines: Sequence[Line]) -> list[str]:
    """The last work of each graph, which is its largest."""
    workloads = dict.fromkeys(work for line in lines for work, precision in line.ratios if precision == "int8")
    # A later work of a graph takes the place of the one before it.
    return list({work.split()[0]: work for work in workloads}.values())


def _spread(value: Estimate) -> Text:
    mean = f"{100 * value.mean:.2f}"
    return Text(f"{mean} ± {100 * (value.high - value.mean):.2f}" if math.isfinite(value.high) else mean)


def _difference(value: Estimate) -> Text:
    """A difference in percentage points; no figure by itself where none is shown."""
    if not math.isfinite(value.mean):
        return Text("not finite", style="red")
    verdict = value.verdict
    # One seed has no interval, and so nothing is shown.
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return Text(f"{verdict}\nno interval")
    said = f"{verdict}, {100 * value.mean:+.2f}" if verdict in _STYLES else verdict
    return Text(f"{said}\n{100 * value.low:+.2f} to {100 * value.high:+.2f}", style=_STYLES.get(verdict, ""))


def _time(ratio: Mapping[str, Any] | None) -> Text:
    if ratio is None:
        return Text("—")
    if ratio["noisy"]:
        return Text("too noisy", style="yellow")
    low, high = ratio["low"], ratio["high"]
    bounds = f"{_ratio(low)} to {_ratio(high)}"
    # Without a figure: a ratio whose interval holds 1 tells nothing.
    if low <= 1 <= high:
        return Text(f"no difference shown\n{bounds}")
    return Text(f"{_ratio(ratio['value'])}×\n{bounds}", style="red" if low > 1 else "green")


def _ratio(value: float) -> str:
    """Two decimals, three where two would make 1.003 of it 1.00."""
    return f"{value:.2f}" if abs(value - 1) >= 0.005 else f"{value:.3f}"
