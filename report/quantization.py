"""What quantization costs: the story in a sentence, the front it was chosen from, and a row per op."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from . import numbers
from .bars import split_path
from .chart_rows import Bar, Cell, Row, in_words
from .front import Front, front, times
from .judge import fault_of_quantization
from .numbers import Axis

Op = Mapping[str, Any]

_LONG = 40
"""With more ops than this, the costliest ones are shown, and all of them where they are asked for."""

_COSTLIEST = 10
_NAMED = 3
"""How many ops a sentence names."""

_MEASURES = {
    "cosine": ("1 − cosine", "loses {drop} of the mean cosine", ""),
    "kl": ("KL divergence, in nats", "moves the model's distributions by a KL divergence of {drop}", " nats"),
}
"""Of each measure: the name of the axis, what a mix does, and the unit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpCost(Row):
    """One op: its effects, its method, and its share of fp32's time, then and now, as bars and text."""

    whole: str
    times: tuple[Bar, ...]
    time: str


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The section of one quantized precision.

    Attributes:
        ways: How the rows of each kind of text were run.
        domains: Each kind of text and its drop in each of these ways, the worst first, and what is to be expected of
            any other; empty where there was one kind.
        layers: The ops in the order of the graph, by layer.
        costliest: Those that cost most by themselves, the worst first; empty where all fit a short table.
    """

    anchor: str
    precision: str
    fault: str
    forced: bool
    story: str
    measure: str
    facts: tuple[tuple[str, str], ...]
    ways: tuple[str, ...]
    domains: tuple[tuple[str, tuple[str, ...]], ...]
    methods: tuple[tuple[int, str], ...]
    portable: bool
    portability: str
    front: Front | None
    axis: Axis
    layers: tuple[tuple[str, tuple[OpCost, ...]], ...]
    costliest: tuple[OpCost, ...]
    count: int

    @property
    def headings(self) -> tuple[str, ...]:
        """What the columns of figures are called."""
        rows = [row for _, group in self.layers for row in group]
        return tuple(cell.label for cell in rows[0].cells) if rows else ()


def describe(precision: str, entry: Mapping[str, Any], anchor: str) -> Quantization:
    """Lay out what the certificate says of one quantized precision (docs/parity.md, `quantization`)."""
    ops = entry["ops"]
    drop = numbers.finite(entry["drop"])
    # Both effects of an op on one axis: alone, and in the company of the others.
    axis = numbers.linear([value for op in ops for value in (_alone(op), _in_company(op, drop))], zero=True)
    # Times now and in float32 by one length, so that the bars show what was gained.
    most = max((v for op in ops for v in (op["time"], op["time_float32"]) if numbers.finite(v)), default=0.0)
    many = len({op["role"] for op in ops}) > 1
    rows = [_row(op, index, anchor, entry, axis, most, many) for index, op in enumerate(ops)]
    ranked = sorted((index for index, op in enumerate(ops) if _alone(op) is not None), key=lambda i: -_size(ops[i]))
    groups = itertools.groupby(zip(ops, rows, strict=True), key=lambda item: _layer(item[0], many))
    portable, portability = _portability(entry)
    return Quantization(
        anchor=anchor,
        precision=precision,
        fault=fault_of_quantization(entry),
        forced=entry["forced"] is True,
        story=_story(entry, many),
        measure=_measure(entry)[0],
        facts=tuple(_facts(entry)),
        ways=tuple(dict.fromkeys(one["way"] for one in _judged(entry))),
        domains=tuple(_domains(entry)),
        methods=tuple((n, method) for method, n in collections.Counter(op["method"] for op in ops).most_common()),
        portable=portable,
        portability=portability,
        front=front(entry["front"], entry["max_drop"]),
        axis=axis,
        layers=tuple((layer, tuple(row for _, row in group)) for layer, group in groups),
        # Where all fit a short table, they would be said twice.
        costliest=tuple(rows[index] for index in ranked[:_COSTLIEST]) if len(ops) > _LONG else (),
        count=len(ops),
    )


def _alone(op: Op) -> float | None:
    return numbers.finite(op["alone"])


def _size(op: Op) -> float:
    return _alone(op) or 0.0


def _in_company(op: Op, drop: float | None) -> float | None:
    """How much of the mix's drop goes when this op and its like are left in float32."""
    all_but = numbers.finite(op["all_but"])
    return None if all_but is None or drop is None else drop - all_but


def _kept(op: Op) -> bool:
    return bool(op["method"] == "float32")


def _layer(op: Op, many: bool) -> str:
    layer = split_path(op["weight"])[0]
    return f"{op['role']} · {layer}" if many and layer else op["role"] if many else layer


def _row(op: Op, index: int, anchor: str, entry: Mapping[str, Any], axis: Axis, most: float, many: bool) -> OpCost:
    layer, rest = split_path(op["weight"])
    company = _in_company(op, numbers.finite(entry["drop"]))
    effects = (("kept" if _kept(op) else "own", 3, _alone(op)), ("inherited", 12, company))
    spent = (("inherited", 0, numbers.finite(op["time_float32"])), ("free", 6, numbers.finite(op["time"])))
    # All rows have the column or none, so that the cells stand under their headings.
    cells = _cells(op, flips=any(other["flips_alone"] is not None for other in entry["ops"]))
    return OpCost(
        anchor=f"{anchor}-{index}",
        name=rest or layer,
        whole=_name(op, many),
        words=in_words(_name(op, many), cells),
        detail=" · ".join((" × ".join(map(str, op["shape"])), " and ".join(op["uses"]))).strip(" ·"),
        said=op["method"],
        style="kept" if _kept(op) else "",
        bars=tuple(Bar(style=style, y=y, length=axis.at(v)) for style, y, v in effects if v is not None),
        cells=tuple(cells),
        times=tuple(Bar(style=style, y=y, length=_share(v, most)) for style, y, v in spent if v is not None),
        time=_spent(op),
    )


def _cells(op: Op, *, flips: bool) -> list[Cell]:
    snr = numbers.finite(op["own_snr_db"])
    cells = [
        Cell("own SNR", "—" if snr is None else f"{snr:.0f} dB".replace("-", "−")),
        Cell("alone", _drop(op["alone"])),
        Cell("all but it", _drop(op["all_but"], 3)),  # what is left of the drop of all differs in later digits
    ]
    return [*cells, Cell("flips", numbers.percent(op["flips_alone"]))] if flips else cells


def _spent(op: Op) -> str:
    """Its share of fp32's time then and now, as far as they differ and are known."""
    found = [numbers.percent(op[key]) for key in ("time_float32", "time")]
    return " → ".join(dict.fromkeys(text for text in found if text != "—")) or "—"


def _share(value: float, most: float) -> float:
    return round(100 * min(max(value / most, 0.0), 1.0), 1) if most else 0.0


def _drop(value: float | None, digits: int = 2) -> str:
    return "—" if numbers.finite(value) is None else numbers.error(value, digits)


def _name(op: Op, many: bool) -> str:
    return f"{op['role']} {op['weight']}" if many else str(op["weight"])


def _measure(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    name = str(entry["measure"])
    return _MEASURES.get(name, (name, f"costs {{drop}} of {name}", ""))


def _story(entry: Mapping[str, Any], many: bool) -> str:
    """What was found, in one sentence."""
    _, does, unit = _measure(entry)
    drop, budget = numbers.finite(entry["drop"]), numbers.finite(entry["max_drop"])
    relative = numbers.finite(entry["relative_time"])
    mix = "the mix that was found" if entry["searched"] else "the mix"
    text = f"On {entry['samples']}, {mix} "
    text += f"takes {times(relative)} the time of fp32 and " if relative is not None else ""
    text += does.replace("{drop}", numbers.error(drop)) + unit
    # As the fault has it: no number is not within.
    within = drop is not None and budget is not None and drop <= budget
    text += f", {'of' if within else 'more than'} the {numbers.error(budget)} allowed"
    kept = [op for op in entry["ops"] if _kept(op)]
    count = len(entry["ops"])
    if not count:
        return f"{text}; no op could be quantized."
    text += f"; {len(kept)} of {count} ops stay{'s' if len(kept) == 1 else ''} in float32" if kept else ""
    text += f" ({name_some([_name(op, many) for op in kept])})" if kept else f"; all {count} ops are quantized"
    return f"{text}{_costliest(entry['ops'], many, 'of the quantized ops, ' if kept else '')}."


def _costliest(ops: Sequence[Op], many: bool, among: str) -> str:
    """Name the ops that cost most and least; those left in float32 cost nothing now."""
    ranked = sorted((op for op in ops if not _kept(op) and _alone(op) is not None), key=_size, reverse=True)
    each = [f"{_name(op, many)} ({_drop(op['alone'])})" for op in ranked]
    if not each:
        return ""
    text = f"; {among}by itself, {each[0]} costs most"
    text += f", then {each[1]}" if len(each) > 2 else ""
    return text + (f", and {each[-1]} least" if len(each) > 1 else "")


def _facts(entry: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    kept = sum(_kept(op) for op in entry["ops"])
    found = [
        ("time, of fp32's", times(entry["relative_time"]) if numbers.finite(entry["relative_time"]) else "—"),
        ("drop", f"{numbers.error(entry['drop'])} of {numbers.error(entry['max_drop'])}"),
        ("ops in float32", f"{kept} of {len(entry['ops'])}"),
    ]
    if entry["top_1"] is not None:
        found.append(("top-1 as in fp32", numbers.percent(entry["top_1"])))
    found.append(("measured on", str(entry["samples"])))
    found.append(("mix", _origin(entry)))
    return found


_OTHER = "any other kind, 19 times in 20"

_ORIGINS = {
    "full": "found by search",
    "quick": "found by a quick search",
    "none": "one fixed form of each kind of op",
    None: "replayed from a recipe",
}


def _origin(entry: Mapping[str, Any]) -> str:
    """How the mix came about; a way that a later tfm-export has is called as it calls it."""
    search = entry.get("search", "full" if entry["searched"] else None)
    return _ORIGINS.get(search, str(search))


def _judged(entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What was found on each kind of text, in each way; nothing where there was one, or in an older certificate."""
    found: Sequence[Mapping[str, Any]] = entry["held_out"].get("domains", ())
    return found if len({one["domain"] for one in found}) > 1 else ()


def _domains(entry: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    judged = _judged(entry)
    ways = list(dict.fromkeys(one["way"] for one in judged))
    drops = {(one["domain"], one["way"]): one["mean"] for one in judged}
    names = list(dict.fromkeys(one["domain"] for one in judged))

    def worst(name: str) -> float:
        known = [numbers.finite(drops.get((name, way))) for way in ways]
        return max((drop for drop in known if drop is not None), default=float("inf"))

    ranked = sorted(names, key=worst, reverse=True)
    rows = [(name, tuple(_drop(drops.get((name, way))) for way in ways)) for name in ranked]
    # In a certificate that is older than these figures there are none.
    spans = {one["way"]: f"{_drop(one['low'])}–{_drop(one['high'])}" for one in entry["held_out"].get("elsewhere", ())}
    return rows + ([(_OTHER, tuple(spans.get(way, _drop(None)) for way in ways))] if spans else [])


def _portability(entry: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether it runs the same on x86 without VNNI, whose sums of two 8-bit products saturate at 16 bits."""
    found = entry["portability"]
    names, extra = list(found["saturating"]), numbers.finite(found["extra_drop"])
    if not names and not extra and not found["vnni_only"]:
        return True, "It runs the same on x86 without VNNI."
    lost = "an unknown drop" if extra is None else f"an estimated drop of {numbers.error(extra)}"
    over = ", which is over the budget" if found["vnni_only"] else ""
    where = f": sums of 8-bit products saturate in {name_some(names)}" if names else ""
    return not found["vnni_only"], (
        "tfm.runtime runs it the same on every x86. Opened by anything else where there is no VNNI, it loses "
        f"{lost} more{over}, unless session.x64quantprecision is 1{where}."
    )


def name_some(names: Sequence[str]) -> str:
    """The first few of some names: `a, b, c and 4 more`."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
