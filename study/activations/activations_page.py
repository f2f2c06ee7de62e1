"""Write what `tfm activations` found as one HTML file: the figures of all, and the curves of each."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.errors import BundleError
from tfm.report import ActivationCurve, Cell, Plot, check_schema, numbers, plot, write_page

from .rows import SCHEMA

_REFUSAL = "written from figures of schema {known}, and these are of schema {found}: measure anew"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One activation: its figures, its ops as text, and its curves."""

    values: Mapping[str, Any]
    exported: str
    ran: str
    cells: tuple[Cell, ...]
    plot: Plot


def write_activations(path: Path, content: Mapping[str, Any], curves: Sequence[ActivationCurve]) -> None:
    """Write the figures as one HTML file that refers to no other: no network, no script, no font.

    Args:
        path: The file.
        content: What `tfm activations --json` prints (docs/activations-table.md).
        curves: The curve of each of its activations, in their order.

    Raises:
        BundleError: The content is of another version of the schema, or the curves are not those of its activations.
    """
    check_schema(path, content, (SCHEMA,), _REFUSAL)
    names = [values["activation"] for values in content["activations"]]
    # Curves are no part of the JSON; another's would be drawn beside these figures.
    if names != [curve.name for curve in curves]:
        raise BundleError(f"{path.name}: the curves are of {[curve.name for curve in curves]}, the figures of {names}")
    entries = [_entry(values, curve) for values, curve in zip(content["activations"], curves, strict=True)]
    write_page(path, Path(__file__).with_name("activations.html.j2"), content=content, entries=entries)


def _entry(values: Mapping[str, Any], curve: ActivationCurve) -> Entry:
    exported = " · ".join(op.rpartition(".")[2] for op in values["exported"])
    ran = " · ".join(kernel["op"] for kernel in values["kernels"])
    return Entry(values, exported, ran, (*_errors(values), *_times(values), *_ratios(values)), plot(curve))


def _errors(values: Mapping[str, Any]) -> list[Cell]:
    cells = []
    for dtype, error in values["errors"].items():
        largest = error["max_abs"]
        where = "nowhere off" if largest == 0 else f"at {error['where']}".replace("-", "−")
        style = "" if error["passed"] else "bad"
        cells.append(Cell(f"error, {dtype}", numbers.error(largest), where if error["passed"] else "wrong", style))
    return cells


def _times(values: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(
            f"µs, {one['rows']}×{one['width']}",
            f"{one['microseconds']:,.0f}" if one["microseconds"] >= 99.95 else f"{one['microseconds']:#.3g}",
            one["said"] or "",
            {"slower": "bad", "faster": "good", "too noisy": "warn"}.get(one["verdict"] or "", ""),
        )
        for one in values["speed"]
    ]


def _ratios(values: Mapping[str, Any]) -> list[Cell]:
    cells = []
    for scale, one in values["sqnr"].items():
        text = "—" if one["db"] is None else f"{one['db']:.1f} ({one['low']:.1f}–{one['high']:.1f})"
        style = {"above": "good", "below": "bad"}.get(one["verdict"] or "", "")
        cells.append(Cell(f"dB, {scale.replace('_', ' ')}", text, one["said"] or "", style))
    return cells
