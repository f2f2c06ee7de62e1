"""What `tfm latency` found as tables on a terminal."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from .streams import say, styled

if TYPE_CHECKING:  # importing it loads onnxruntime, which --help must not wait for
    from tfm.latency import LatencyReport, Line, Timing

_COLORS = {"faster": "green", "slower": "red", "too noisy": "yellow"}


def print_latency(report: "LatencyReport") -> None:
    """Print times, throughput, and what starting takes; then what speaks against them."""
    # A table for each number of threads: figures of different ones are not to be compared by row.
    for threads in dict.fromkeys(line.threads for line in report.lines):
        lines = [line for line in report.lines if line.threads == threads]
        on = f"on {threads} thread" + ("s, pinned" if threads > 1 else ", pinned")
        say()
        say(styled(f"latency {on}, milliseconds of single runs in {report.settings['rounds']} rounds", bold=True))
        beside = f"beside {next((line.baseline for line in lines if line.baseline), 'nothing')}"
        heads = ("work", "", "median", "p90", "p99", beside)
        _print_table(heads, _groups((line for line in lines if line.measure != "corpus"), _times))
        corpus = [line for line in lines if line.measure == "corpus"]
        if corpus:
            say()
            say(styled(f"throughput {on}, on {report.corpus}", bold=True))
            _print_table(("work", "", "rows/s", beside), _groups(corpus, _throughput))
    _print_starts(report)
    say()
    if not any(line.measure == "corpus" for line in report.lines):
        say(f"  throughput was not measured: {report.corpus}")
    for engine, reason in report.left_out.items():
        say(f"  {engine} was left out: {reason}")
    for warning in report.warnings:
        say(styled(f"  {warning}", fg="yellow"))


def name_of(line: "Line") -> str:
    """What a line is about, in words."""
    if line.measure == "token":
        return f"token after {line.work}"
    return f"{line.measure}, {line.work}" if line.measure == "first token" else line.work


Row = tuple[Sequence[str], str | None]
"""Cells, and the verdict that colors the last of them."""


def _groups(lines: "Iterable[Line]", cells: "Callable[[Line, str, Timing], Sequence[str]]") -> list[Row]:
    """A row per engine; the work stands before its first."""
    rows: list[Row] = []
    for line in lines:
        for place, (engine, timing) in enumerate(line.timings.items()):
            ratio = timing.ratio
            beside = f"{ratio}" if ratio else ""
            name = "" if place else name_of(line)
            rows.append(((name, engine, *cells(line, engine, timing), beside), ratio.verdict if ratio else None))
    return rows


def _times(_: "Line", __: str, timing: "Timing") -> Sequence[str]:
    spread = timing.spread
    return [_ms(spread.median), _ms(spread.p90), _ms(spread.p99)]


def _throughput(line: "Line", engine: str, _: "Timing") -> Sequence[str]:
    value = line.per_second(engine)
    return [f"{value:,.0f}" if value >= 100 else f"{value:.1f}"]


def _print_starts(report: "LatencyReport") -> None:
    heads = ("", "file", "import", "open", "first answer", "memory", "at most")
    rows: list[Row] = []
    # Of the first number of threads, which is that of the starts as well.
    peaks = next(iter(report.peaks.values()), {})
    # A precision that did not run still has a size.
    for engine in dict.fromkeys([*peaks, *report.starts, *report.sizes]):
        start = report.starts.get(engine)
        times = [None] * 3 if start is None else [start.imported, start.opened, start.answered]
        cells = [_megabytes(report.sizes.get(engine)), *map(_ms, times)]
        rows.append(
            ((engine, *cells, _megabytes(None if start is None else start.peak), _megabytes(peaks.get(engine))), None)
        )
    number = next((start.starts for start in report.starts.values()), 0)
    say()
    of = f", milliseconds, median of {number} in fresh processes" if number else ""
    say(styled(f"size and start{of}", bold=True))
    _print_table(heads, rows)


def _print_table(heads: Sequence[str], rows: Sequence[Row]) -> None:
    """Names to the left, figures to the right; the last column of verdicts to the left again."""
    verdicts = heads[0] == "work"
    names = 2 if verdicts else 1
    table: list[Sequence[str]] = [heads, *(cells for cells, _ in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(heads))]
    left = {*range(names), *([len(heads) - 1] if verdicts else [])}
    for cells, verdict in [(heads, None), *rows]:
        shown = [
            f"{cell:<{width}}" if column in left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        color = _COLORS.get(verdict or "")
        if color is None:
            say("  " + "  ".join(shown).rstrip())
        else:
            # Only the verdict is colored: figures by themselves claim nothing.
            say("  " + "  ".join([*shown[:-1], ""]), styled(shown[-1].rstrip(), fg=color))


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "—"
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _megabytes(count: int | None) -> str:
    return "—" if count is None else f"{count / 1e6:.1f} MB" if count < 1e8 else f"{count / 1e6:.0f} MB"
