"""Many entries of the certificate that say the same, in one row: the fusion report, outputs, speed and sizes."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfm.ops import is_layer

from . import numbers
from .bars import decibel, is_float, snr
from .judge import fault_of_output


@dataclasses.dataclass
class Fusion:
    """Ops of one kind that became the same nodes, run by the same kernel."""

    kind: str
    form: str
    node: str
    kernel: str
    best: bool | None
    advice: str
    ops: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Path, and the value at which a swallowed op was compared, "" where it was not swallowed."""


def fusions(graph: Mapping[str, Any]) -> list[Fusion]:
    """Group the ops of a graph by what became of them; the promised kinds first."""
    groups: dict[tuple[Any, ...], Fusion] = {}
    for op in graph["ops"]:
        after, kernel = op["optimized"], op["kernel"]
        node, ran = _node(after), _ran(kernel)
        best, advice = (kernel["best"], kernel["advice"]) if kernel else (None, "")
        # What says the same of an op in every column is one row; the ops themselves are listed in it.
        key = (op["kind"], op["form"], node, ran, best, advice)
        group = groups.setdefault(key, Fusion(op["kind"], op["form"], node, ran, best, advice))
        call = f" · call {op['call'] + 1}" if op["call"] else ""
        at = after["at"] if after and after["swallowed"] else ""
        group.ops.append(((op["path"] or "the model itself") + call, at))
    return sorted(groups.values(), key=lambda group: is_layer(group.kind))


def _node(after: Mapping[str, Any] | None) -> str:
    if not after:
        return ""
    # Swallowed: onnxruntime made one node of it and others, so that it has none of its own.
    return f"{'inside ' if after['swallowed'] else ''}{after['node']} ({after['level']})"


def _ran(kernel: Mapping[str, Any] | None) -> str:
    if not kernel:
        return ""
    domain = f"{kernel['domain']}." if kernel["domain"] not in ("", "ai.onnx") else ""
    return f"{domain}{kernel['op_type']} · {kernel['provider'].removesuffix('ExecutionProvider')}"


@dataclasses.dataclass(frozen=True)
class Output:
    """An output of the graph, or the same output of every layer, at each optimization level."""

    name: str
    limit: str
    cells: tuple[tuple[str, str, bool], ...]
    """Level, figure, whether it passed."""
    faults: tuple[str, ...]


def outputs(graph: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Output]]:
    """The optimization levels, and a row for every output; a row of layers shows their worst, and every fault."""
    levels = tuple(dict.fromkeys(entry["level"] for entry in graph["outputs"]))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in graph["outputs"]:
        # "present.0.key" and "present.1.key" are one row, "present.*.key".
        groups.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", entry["name"]), []).append(entry)
    errors = is_float(graph["precision"])
    return levels, [_output(name, entries, levels, errors) for name, entries in groups.items()]


def _output(name: str, entries: Sequence[Mapping[str, Any]], levels: Sequence[str], errors: bool) -> Output:
    at_levels = {level: [entry for entry in entries if entry["level"] == level] for level in levels}
    cells = [(level, _worst(at, errors), not any(map(fault_of_output, at))) for level, at in at_levels.items() if at]
    faults = [(entry, fault_of_output(entry)) for entry in entries]
    limits = [entry["limit"] for entry in entries if entry["limit"] is not None]
    return Output(
        name=entries[0]["name"] if len({entry["name"] for entry in entries}) == 1 else name,
        limit=numbers.error(min(limits)) if limits else "—",
        cells=tuple(cells),
        faults=tuple(f"{entry['name']} ({entry['level']}): {fault}" for entry, fault in faults if fault),
    )


def _worst(entries: Sequence[Mapping[str, Any]], errors: bool) -> str:
    measured = [entry for entry in entries if entry["count"]]
    if not measured:
        return "—"
    # What is not finite has null for a figure, which `max` would fail on; it is the worst there is.
    broken = next((entry for entry in measured if numbers.finite(entry["max_abs"]) is None), None)
    if errors:
        return numbers.error(None if broken else max(entry["max_abs"] for entry in measured))
    return snr(broken or min(measured, key=decibel))


@dataclasses.dataclass(frozen=True)
class Measure:
    """One bar of a time or a size."""

    name: str
    text: str
    length: float
    note: str


def latency(certificate: Mapping[str, Any]) -> list[tuple[str, list[Measure]]]:
    """For each piece of work, the engines side by side; beside a time what it shows, with its interval."""
    rows = []
    for entry in certificate["latency"]:
        times = {engine: numbers.finite(value) for engine, value in entry["milliseconds"].items()}
        most = max((value or 0.0 for value in times.values()), default=0.0)
        said = {engine: ratio["said"] or "" for engine, ratio in entry.get("ratios", {}).items()}
        rows.append((entry["work"], [_time(name, value, most, said.get(name, "")) for name, value in times.items()]))
    return rows


def _time(engine: str, value: float | None, most: float, said: str) -> Measure:
    # A time that is no number is as long as can be, not missing.
    if value is None:
        return Measure(engine, "∞", 100.0, said)
    text = f"{value:#.3g} ms" if value < 100 else f"{value:.0f} ms"
    return Measure(engine, text, round(100 * value / most, 1) if most else 0.0, said)


def sizes(certificate: Mapping[str, Any]) -> list[Measure]:
    """The size of all graphs in each precision."""
    found = certificate["sizes"]
    most = max(found.values(), default=0)
    return [
        Measure(
            name,
            numbers.size(value),
            round(100 * value / most, 1) if most else 0.0,
            f"{most / value:.1f}× smaller" if 0 < value < most else "",
        )
        for name, value in found.items()
    ]
