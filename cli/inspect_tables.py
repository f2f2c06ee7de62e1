"""What `tfm inspect` saw as tables on a terminal."""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from tfm.report import numbers
from tfm.study.inspect import name_heads

from .screen import Screen

if TYPE_CHECKING:  # importing it loads onnxruntime, which --help must not wait for
    from tfm.study.inspect import Insight, Stack

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_WIDTH = 20
"""Of a bar, in characters."""


def print_insight(insight: "Insight", console: Screen) -> None:
    """Print per stack what heads attend to, how many units work, and how the residual stream grows."""
    about = f" · {insight.kind} · {insight.precision}"
    console.print(Text.assemble((insight.bundle, "bold"), about), soft_wrap=True)
    console.print(Text.assemble(("  reads", "dim"), f" {insight.text}"), soft_wrap=True)
    if insight.output is not None:
        console.print(Text.assemble(("  gives", "dim"), f" {insight.output}"), soft_wrap=True)
    for stack in insight.stacks:
        whose = "" if len(insight.stacks) == 1 else f"{stack.role}: "
        if stack.attentions:
            console.print(Text.assemble((f"\n{whose}attention", "bold"), f", {len(stack.tokens)} tokens"))
            console.print(_attentions(stack))
        if stack.feed_forwards:
            console.print(Text.assemble((f"\n{whose}feed-forward units", "bold"), f", {insight.activation}"))
            console.print(_units(stack))
        if stack.sublayers:
            console.print(Text(f"\n{whose}residual stream", style="bold"))
            console.print(_stream(stack))
    for sentence in insight.unseen:
        console.print(f"  {sentence}", style="yellow", soft_wrap=True)


def _attentions(stack: "Stack") -> Table:
    """A bar per head: its entropy by the greatest it could be."""
    table = _table("", "entropy by head", "nats", "share", "attends to", right=(2, 3))
    for attention in stack.attentions:
        bars = "".join(_bar(head.relative) for head in attention.heads)
        relative = [head.relative for head in attention.heads if head.relative is not None]
        nats = sum(head.entropy for head in attention.heads) / len(attention.heads)
        share = f"{100 * sum(relative) / len(relative):.0f} %" if relative else "—"
        said = name_heads([{"label": head.label} for head in attention.heads])
        table.add_row(_brief(attention.path), bars, f"{nats:.2f}", share, said)
    return table


def _units(stack: "Stack") -> Table:
    table = _table("", "units", "dead", "saturated", "near zero", "zero", right=(1, 2, 3, 4, 5))
    for one in stack.feed_forwards:
        units = one.units
        shares = (units.dead, units.saturated, units.near_zero, units.zero)
        table.add_row(_brief(one.path), f"{one.count:,}", *map(numbers.percent, shares))
    return table


def _stream(stack: "Stack") -> Table:
    """Mean length after each sub-layer, as a bar by the greatest, and what the sub-layer added to it."""
    table = _table("after", "mean length", "", "added", right=(1, 3))
    rows = [] if stack.start_S is None else [("—", float(stack.start_S.mean()), "")]
    rows += [
        (_brief(one.path), float(one.norm_S.mean()), f"{numbers.plain(float(one.added_S.mean()), 2)}×")
        for one in stack.sublayers
    ]
    # All may be zero, in a model with such weights.
    most = max(mean for _, mean, _ in rows) or 1.0
    for path, mean, added in rows:
        table.add_row(path, numbers.length(mean), Text("━" * round(_WIDTH * mean / most), style="blue"), added)
    return table


def _brief(path: str) -> str:
    """A module's path without what comes before its list of layers: "layers.0.self_attn"."""
    parts = path.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), 1)
    return ".".join(parts[first - 1 :])


def _bar(share: float | None) -> str:
    # Never a blank, which would look like no head at all.
    return "·" if share is None else _EIGHTHS[max(1, round(share * (len(_EIGHTHS) - 1)))]


def _table(*names: str, right: tuple[int, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index in right else "left", no_wrap=index in (0, *right))
    return table
