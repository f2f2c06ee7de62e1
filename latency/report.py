"""What `measure_latency` found; docs/latency.md says what every field of its JSON means."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfm.bundle import Gate

from .ratios import NOISE_LIMIT, Ratio, Spread

SCHEMA = 1
"""Version of the JSON."""

BASELINES = ("eager", "fp32")
"""What every other engine is compared with, where nobody says: the first of these that ran."""

_UNCOMPARED = dict.fromkeys(("ratio", "low", "high", "verdict", "said"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """One engine on one work.

    Attributes:
        spread: Of single runs.
        ratio: Beside the baseline; None: it is the baseline, or there is none.
    """

    spread: Spread
    ratio: Ratio | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """All engines on one work.

    Attributes:
        work: Such as "8×128", rows × tokens, or "corpus".
        measure: "run", "first token" and "token" of what generates, or "corpus".
        threads: Of each engine.
        rows: How many a run goes through.
        baseline: The engine that the others are compared with; None: there is but one.
        noise: How far the quartiles of its rounds lie apart, as a share of their median; None without one.
        timings: By engine.
    """

    work: str
    measure: str
    threads: int
    rows: int
    baseline: str | None
    noise: float | None
    timings: Mapping[str, Timing]

    @property
    def noisy(self) -> bool:
        """Whether nothing is concluded."""
        return self.noise is not None and self.noise > NOISE_LIMIT

    def per_second(self, engine: str) -> float:
        """Rows, or tokens, per second."""
        return self.rows / self.timings[engine].spread.median

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values, times in milliseconds."""
        engines = {}
        for name, timing in self.timings.items():
            spread, ratio = timing.spread, timing.ratio
            engines[name] = {
                "runs": spread.runs,
                "median_ms": _ms(spread.median),
                "p90_ms": _ms(spread.p90),
                "p99_ms": _ms(spread.p99),
                "per_second": self.per_second(name),
                **(_UNCOMPARED if ratio is None else ratio.to_dict()),
            }
        fields = ("work", "measure", "threads", "rows", "baseline", "noise")
        return {name: getattr(self, name) for name in fields} | {"engines": engines}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """An engine started anew, each time in a fresh process: medians, in seconds.

    Attributes:
        starts: How often.
        imported: Importing it.
        opened: Opening the model, until it is ready.
        answered: Opening it, until the first answer is there.
        peak: Largest resident set until then, in bytes; None: this system does not tell.
    """

    starts: int
    imported: float
    opened: float
    answered: float
    peak: int | None

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values, times in milliseconds."""
        times = {"import_ms": self.imported, "open_ms": self.opened, "answer_ms": self.answered}
        return {"starts": self.starts} | {name: _ms(value) for name, value in times.items()} | {"peak": self.peak}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """How fast the engines are on this machine.

    Attributes:
        bundle: Its name.
        kind: "encoder", "decoder", "encoder-decoder" or "module".
        made: When, on which machine, and by which versions.
        settings: What was asked for.
        corpus: What the corpus is, in words; or why there is none.
        warnings: What speaks against the figures.
        left_out: Engine → why it did not run.
        lines: What was timed.
        starts: By engine.
        peaks: Threads → engine → largest resident set after all works, in bytes; None: this system does not tell.
        sizes: Precision → bytes of its files.
    """

    bundle: str
    kind: str
    made: Mapping[str, Any]
    settings: Mapping[str, Any]
    corpus: str
    warnings: Sequence[str]
    left_out: Mapping[str, str]
    lines: Sequence[Line]
    starts: Mapping[str, Start]
    peaks: Mapping[int, Mapping[str, int | None]]
    sizes: Mapping[str, int]

    def gates(self) -> list[Gate]:
        """List, for each work, whether a precision is shown to be slower than what it is compared with."""
        return [
            Gate(
                name=f"{engine} not slower than {line.baseline}",
                stage="speed",
                precision=engine,
                op=f"{line.measure} {line.work}, {line.threads} threads",
                passed=not timing.ratio.is_slower,
                figure=timing.ratio.value,
                limit=1.0,
                reason=_slower(engine, line, timing.ratio) if timing.ratio.is_slower else "",
            )
            for line in self.lines
            for engine, timing in line.timings.items()
            if timing.ratio is not None and engine in self.sizes
        ]

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "kind": self.kind,
            "made": dict(self.made),
            "settings": dict(self.settings),
            "corpus": self.corpus,
            "warnings": list(self.warnings),
            "left_out": dict(self.left_out),
            "lines": [line.to_dict() for line in self.lines],
            "starts": {name: start.to_dict() for name, start in self.starts.items()},
            "peaks": {str(threads): dict(peaks) for threads, peaks in self.peaks.items()},
            "sizes": dict(self.sizes),
            "gates": [gate.to_json() for gate in self.gates()],
        }


def _slower(engine: str, line: Line, ratio: Ratio) -> str:
    low, middle, high = (1 / value for value in (ratio.high, ratio.value, ratio.low))
    what = f"{line.work} ({line.measure}, threads: {line.threads})"
    return f"{engine} is slower than {line.baseline} on {what}: {middle:.2f}× its time ({low:.2f}–{high:.2f})"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
