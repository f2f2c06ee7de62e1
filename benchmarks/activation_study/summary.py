"""What a study shows: its raw results as estimates, and as a table for a page."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tfm.errors import VerificationError

from .statistics import SAME, Estimate, differences, mean_of

_LONG = "encoder 1×63"
_STEP = "decoder step after 16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """What one activation came to; estimates are over the seeds.

    Attributes:
        activation: Its name.
        forms: The ops that it becomes in ONNX.
        own_error: The largest error of any of these ops, run by itself on what it gets in the model, against eager
            PyTorch in float32.
        errors: Error measure → its rate in fp32, a fraction.
        against: Its first error rate less the baseline's; None: it is the baseline.
        int8_loss: The first error rate in int8 less that in fp32.
        drop: KL divergence of int8 from fp32, nats.
        ratios: (work, precision) → its time over the baseline's, as `time_bundles` gives it; none of the baseline.
        units: "dead", "saturated", "near_zero" and "zero" → share, the mean over the layers.
        gradients: Layer → norm of its gradient, the mean over the training.
        loss: Training loss, the mean over the seeds, every 25 steps.
        parameters: Number of parameters.
        size: Bytes of the int8 graphs.
    """

    activation: str
    forms: Sequence[str]
    own_error: float
    errors: Mapping[str, Estimate]
    against: Estimate | None
    int8_loss: Estimate
    drop: Estimate
    ratios: Mapping[tuple[str, str], Mapping[str, Any]]
    units: Mapping[str, Estimate]
    gradients: Mapping[str, float]
    loss: Sequence[float]
    parameters: int
    size: int


def summarize(results: Mapping[str, Any]) -> list[Line]:
    """Estimate what a study shows.

    Args:
        results: The content of results.json, as `run_study` gives it.

    Returns:
        A line for every activation, in the study's order: the first is the baseline.

    Raises:
        VerificationError: An export was refused, so that there is nothing to compare.
    """
    # A run without figures would leave a hole in its block, and the others could not be compared.
    for run in results["runs"]:
        if "errors" not in run["deployed"]:
            faults = "; ".join(run["deployed"]["faults"])
            raise VerificationError(f"{run['activation']}, seed {run['seed']}, was not exported: {faults}")
    names = results["activations"]
    runs = {name: [run for run in results["runs"] if run["activation"] == name] for name in names}
    measures = list(runs[names[0]][0]["deployed"]["errors"]["fp32"])
    first = measures[0]
    rates = {name: [run["deployed"]["errors"]["fp32"][first] for run in runs[name]] for name in names}
    against = differences(rates, names[0])
    return [_line(results, name, runs[name], measures, against.get(name)) for name in names]


def _line(
    results: Mapping[str, Any],
    name: str,
    runs: Sequence[Mapping[str, Any]],
    measures: Sequence[str],
    against: Estimate | None,
) -> Line:
    deployed = [run["deployed"] for run in runs]
    trained = [run["trained"] for run in runs]
    first = measures[0]

    def share(kind: str) -> Estimate:
        return mean_of([statistics.fmean(layer[kind] for layer in one["units"].values()) for one in trained])

    return Line(
        activation=name,
        forms=deployed[0]["activation"]["form"],
        own_error=max(one["activation"]["max_abs"] for one in deployed),
        errors={key: mean_of([one["errors"]["fp32"][key] for one in deployed]) for key in measures},
        against=against,
        int8_loss=mean_of([one["errors"]["int8"][first] - one["errors"]["fp32"][first] for one in deployed]),
        drop=mean_of([one["int8"]["drop"] for one in deployed]),
        ratios={
            (line["work"], line["precision"]): line["ratio"][name] for line in results["speed"] if name in line["ratio"]
        },
        units={kind: share(kind) for kind in ("dead", "saturated", "near_zero", "zero")},
        gradients={
            layer: statistics.fmean(one["gradient_norm"][layer] for one in trained)
            for layer in trained[0]["gradient_norm"]
        },
        loss=[statistics.fmean(row) for row in zip(*(one["loss"] for one in trained), strict=True)],
        parameters=trained[0]["parameters"],
        size=deployed[0]["int8"]["sizes"]["int8"],
    )


def markdown(lines: Sequence[Line]) -> str:
    """Draw the table of docs/activations.md: means and 95 % intervals, or no difference shown."""
    base = lines[0].activation
    measures = list(lines[0].errors)
    titles = [
        "activation",
        f"{_words(measures[0])}, %",
        f"beside {base}, points",
        f"{_words(measures[-1])}, %",
        "lost by int8, points",
        "int8's divergence, 10⁻⁶ nats",
        f"{_LONG} in int8, {base} = 1",
        f"{_STEP}",
        "op's own error",
        "near-zero values, %",
        "dead units, %",
    ]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)], *map(_cells, lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cells(line: Line) -> list[str]:
    errors = list(line.errors.values())
    return [
        f"`{line.activation}`",
        _estimate(errors[0], 100, 2),
        "" if line.against is None else _difference(line.against),
        _estimate(errors[-1], 100, 1),
        _difference(line.int8_loss),
        _estimate(line.drop, 1e6, 0),
        _time(line.ratios.get((_LONG, "int8"))),
        _time(line.ratios.get((_STEP, "int8"))),
        f"{line.own_error:.1e}",
        _estimate(line.units["near_zero"], 100, 1),
        _estimate(line.units["dead"], 100, 1),
    ]


def _words(measure: str) -> str:
    return measure.replace("_", " ")


def _estimate(value: Estimate, factor: float, digits: int) -> str:
    """A mean ± half of its interval; without an interval where there is none."""
    half = value.high - value.mean
    interval = f" ± {factor * half:.{digits}f}" if math.isfinite(half) else ""
    return f"{factor * value.mean:.{digits}f}{interval}"


def _difference(value: Estimate) -> str:
    if not math.isfinite(value.high):
        return f"{SAME}: one seed"
    interval = f"({100 * value.low:+.2f} to {100 * value.high:+.2f})"
    return f"{SAME} {interval}" if value.verdict == SAME else f"**{100 * value.mean:+.2f}** {interval}"


def _time(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return ""
    if ratio["noisy"]:
        return "too noisy"
    interval = f"({ratio['low']:.2f}–{ratio['high']:.2f})"
    return f"{SAME} {interval}" if ratio["low"] <= 1 <= ratio["high"] else f"**{ratio['value']:.2f}** {interval}"
