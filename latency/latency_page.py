"""Write what `tfm latency` found as one HTML file: bars of ratios with their intervals, and the times."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.report import Bar, Cell, Row, check_schema, numbers, write_page

from .report import SCHEMA

_REFUSAL = "written from figures of schema {known}, and these are of schema {found}: measure anew"

HEADINGS = ("median", "p90", "p99", "per s")

_STYLES = {"faster": "own", "slower": "broken"}
"""Class of a bar by its verdict; where nothing is shown, it is pale."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """All workloads on so many threads, on one axis."""

    threads: int
    baseline: str
    axis: numbers.Axis
    workloads: tuple[tuple[str, str, tuple[Row, ...]], ...]
    """Name, why nothing is concluded ("" where something is), and a row per engine."""


def write_latency(path: Path, content: Mapping[str, Any]) -> None:
    """Write the figures as one HTML file that refers to no other: no network, no script, no font.

    Args:
        path: The file.
        content: What `tfm latency --json` prints (docs/latency.md).

    Raises:
        BundleError: The content is of another version of the schema.
    """
    check_schema(path, content, (SCHEMA,), _REFUSAL)
    threads = dict.fromkeys(line["threads"] for line in content["lines"])
    # Of the first number of threads, as the starts are.
    peaks: Mapping[str, Any] = next(iter(content["peaks"].values()), {})
    write_page(
        path,
        Path(__file__).with_name("latency.html.j2"),
        content=content,
        headings=HEADINGS,
        charts=[chart([line for line in content["lines"] if line["threads"] == count], count) for count in threads],
        starts=[
            _start(content, engine, peaks.get(engine))
            for engine in dict.fromkeys([*peaks, *content["starts"], *content["sizes"]])
        ],
    )


def chart(lines: Sequence[Mapping[str, Any]], threads: int) -> Chart:
    """Lay the lines of one number of threads out."""
    # One axis for all workloads of a chart: bars of different ones can be compared.
    axis = octaves(
        timing[key] for line in lines for timing in line["engines"].values() for key in ("ratio", "low", "high")
    )
    workloads = tuple((name_of(line), _reason(line), tuple(_rows(line, axis))) for line in lines)
    return Chart(threads, next((line["baseline"] for line in lines if line["baseline"]), ""), axis, workloads)


def octaves(values: Iterable[float | None]) -> numbers.Axis:
    """An axis of powers of two that holds 1 and all values."""
    logs = [math.log2(value) for value in map(numbers.finite, values) if value is not None and value > 0]
    low, high = math.floor(min(logs, default=0.0)), math.ceil(max(logs, default=1.0))
    # 1 is on it, from which bars begin, and it is an octave long at least.
    low, high = min(low, 0), max(high, 1)
    every = 1 if high - low <= 6 else 2
    ticks = tuple(
        (100 * (power - low) / (high - low), f"{2.0**power:g}×") for power in range(low, high + 1) if power % every == 0
    )
    # `Axis` places by decades: ends in powers of ten, ticks in powers of two.
    return numbers.Axis(low * math.log10(2), high * math.log10(2), True, ticks, high - low)


def name_of(line: Mapping[str, Any]) -> str:
    """What a line is about, in words."""
    if line["measure"] == "token":
        return f"each token after {line['work']}"
    return f"first token of {line['work']}" if line["measure"] == "first token" else str(line["work"])


def _rows(line: Mapping[str, Any], axis: numbers.Axis) -> Iterable[Row]:
    for engine, timing in line["engines"].items():
        said = timing["said"] or ""
        rate = timing["per_second"]
        texts = [_ms(timing[key]) for key in ("median_ms", "p90_ms", "p99_ms")]
        texts.append(f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}")
        yield Row(
            name=engine,
            words=f"{engine}: {said}" if said else engine,
            said=said,
            bars=() if timing["ratio"] is None else (_bar(timing, axis),),
            cells=tuple(map(Cell, HEADINGS, texts)),
        )


def _bar(timing: Mapping[str, Any], axis: numbers.Axis) -> Bar:
    """From 1 to the right where it is faster, to the left where it is slower."""
    one, end = axis.at(1.0), axis.at(timing["ratio"])
    return Bar(
        style=_STYLES.get(timing["verdict"], "quiet"),
        y=6,
        start=min(one, end),
        length=round(abs(end - one), 1),
        low=axis.at(timing["low"]),
        high=axis.at(timing["high"]),
    )


def _reason(line: Mapping[str, Any]) -> str:
    if not any(timing["verdict"] == "too noisy" for timing in line["engines"].values()):
        return ""
    return f"too noisy: the quartiles of {line['baseline']}'s rounds lie {numbers.percent(line['noise'])} apart"


def _start(content: Mapping[str, Any], engine: str, peak: int | None) -> tuple[str, ...]:
    """Name, size, import, open, first answer, memory after that, and at most."""
    start = content["starts"].get(engine)
    size = content["sizes"].get(engine)
    times = [_ms(start[key]) if start else "—" for key in ("import_ms", "open_ms", "answer_ms")]
    memory = [start["peak"] if start else None, peak]
    return (engine, _bytes(size), *times, *map(_bytes, memory))


def _bytes(count: int | None) -> str:
    return "—" if count is None else numbers.size(count)


def _ms(value: float | None) -> str:
    return "—" if value is None else f"{value:#.3g}".rstrip(".") if value < 100 else f"{value:.0f}"
