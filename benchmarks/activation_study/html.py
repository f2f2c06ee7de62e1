"""Write what a study of activations found as one HTML file: estimates with their intervals, curves, and the table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.report import check_schema, numbers, write_page

from .page import SCHEMA
from .plots import gradient_plots, loss_plots
from .whiskers import Chart, mark, row

_REFUSAL = "written from a study of schema {known}, and this is of schema {found}: run the study anew"

_TONES = {"better": "good", "worse": "bad"}
"""Class of a mark by its verdict; where nothing is shown, it is grey."""

_SHARES = {"dead": "dead", "saturated": "saturated", "near_zero": "near zero", "zero": "exactly zero"}
_UNITS = (("dead", "own"), ("saturated", "inherited"), ("near_zero", "free"))
_PRECISIONS = (("fp32", "own"), ("int8", "hollow"))

Activations = Sequence[Mapping[str, Any]]


def write_study(path: Path, content: Mapping[str, Any]) -> None:
    """Write a study as one HTML file that refers to no other: no network, no script, no font.

    Args:
        path: The file.
        content: JSON values; null is what is infinite, NaN or not known. An estimate is {mean, low, high}, its mean
            and its 95 % interval; a difference is an estimate with a "verdict": "better", "worse" or "no difference
            shown".

            - schema: 1.
            - title: Of the page.
            - facts: Name → text.
            - baseline: The activation that the others are compared with.
            - seeds: Number of trainings of each activation.
            - candidates: The activations that are not shown to differ from the best.
            - thresholds: "flat" and "near_zero", the limits by which units are counted.
            - activations: In the order of the study, each with its name as "activation"; "forms", the ops it became;
              "errors", measure → estimate of a fraction, what counts most first; "against", the first of them less
              the baseline's, a difference, null for the baseline; "int8_loss", the first in int8 less in fp32, a
              difference; "drop", estimate of the KL divergence of int8 from fp32 in nats; "ratios", a list of {work,
              precision, value, low, high, noisy}, its time over the baseline's, none for the baseline; "units", an
              estimate of each share "dead", "saturated", "near_zero" and "zero"; "gradients", layer → norm; "loss", a
              list of [step, loss]; "parameters", their number; "size", bytes in int8.

    Raises:
        BundleError: The content is of another version of the schema.
    """
    check_schema(path, content, (SCHEMA,), _REFUSAL)
    # All have the same measures in the same order, and the first of them counts most.
    activations: Activations = content["activations"]
    measures = [_phrase(name) for name in activations[0]["errors"]]
    write_page(
        path,
        Path(__file__).with_name("study.html.j2"),
        content=content,
        measure=measures[0],
        answer=answer(content),
        errors=[error_chart(activations, measures[0]), against_chart(activations, content["baseline"])],
        int8=[int8_chart(activations), drop_chart(activations)],
        times=time_charts(activations),
        losses=loss_plots(activations, content["baseline"]),
        gradients=gradient_plots(activations, content["baseline"]),
        unit_rows=unit_chart(activations),
        headings=[*measures, f"less {content['baseline']}’s", "lost by int8", "KL, nats", *_SHARES.values()],
        table=[_cells(one) for one in activations],
        size=numbers.size,
    )


def answer(content: Mapping[str, Any]) -> str:
    """Say in one sentence which activations may be the best, and which differ from the baseline."""
    names = [one["activation"] for one in content["activations"]]
    baseline, first = content["baseline"], _phrase(next(iter(content["activations"][0]["errors"])))
    # Without a second seed there is no variance, and so no interval.
    if content["seeds"] < 2:
        return f"From one seed no difference in {first} can be shown, neither from the best nor from {baseline}."
    best = content["candidates"]
    rest = [name for name in names if name not in best]
    if not rest:
        text = f"In {first}, none of the {len(names)} activations is shown to differ from the best"
    elif len(best) == 1:
        text = f"In {first}, {best[0]} is shown to be better than all others"
    else:
        # The shorter of the two lists is named.
        shown = _list(best) if len(best) <= len(rest) else f"all but {_list(rest)}"
        text = f"In {first}, {shown} are not shown to differ from the best"
    found: dict[str, list[str]] = {"worse": [], "better": []}
    for one in content["activations"]:
        if one["against"] and one["against"]["verdict"] in found:
            found[one["against"]["verdict"]].append(one["activation"])
    compared = [
        f"{_list(who)} {'are' if len(who) > 1 else 'is'} shown to be {verdict} than {baseline}"
        for verdict, who in found.items()
        if who
    ]
    return "; ".join([text, *(compared or [f"none is shown to differ from {baseline}"])]) + "."


def error_chart(activations: Activations, measure: str) -> Chart:
    """The first error rate of each activation, and how it compares with the baseline's."""
    found = [next(iter(one["errors"].values())) for one in activations]
    # Not from zero: what counts is how they differ, not how large they are.
    axis = numbers.linear(_all(found, scale=100), zero=False, unit=" %")
    headings = ("mean ± half of its interval, %",)
    rows = []
    for one, value in zip(activations, found, strict=True):
        verdict = one["against"]["verdict"] if one["against"] else "the baseline"
        tone = _TONES.get(verdict, "")
        whisker = mark(value, axis, tone or ("quiet" if one["against"] else "own"), scale=100)
        rows.append(row(one["activation"], headings, [whisker], [_spread(value)], verdict, tone))
    return Chart(measure, axis, None, headings, tuple(rows))


def against_chart(activations: Activations, baseline: str) -> Chart:
    """The difference of each from the baseline, with its verdict."""
    others = [one for one in activations if one["against"]]
    return _difference_chart(f"less {baseline}’s", others, "against", {})


def int8_chart(activations: Activations) -> Chart:
    """What int8 loses of the first error rate."""
    words = {"worse": "int8 is worse", "better": "int8 is better"}
    return _difference_chart("error in int8 less that in fp32", activations, "int8_loss", words)


def _difference_chart(title: str, activations: Activations, key: str, words: Mapping[str, str]) -> Chart:
    found = [one[key] for one in activations]
    # With 0 on it, the line of no difference.
    axis = numbers.linear([0.0, *_all(found, scale=100)], zero=False)
    headings = ("difference, percentage points",)
    rows = []
    for one, value in zip(activations, found, strict=True):
        verdict = value["verdict"] if numbers.finite(value["mean"]) is not None else "not finite"
        tone = _TONES.get(verdict, "")
        whisker = mark(value, axis, tone or "quiet", scale=100)
        said = words.get(verdict, verdict)
        rows.append(row(one["activation"], headings, [whisker], [_interval(value)], said, tone))
    return Chart(title, axis, axis.at(0.0), headings, tuple(rows))


def drop_chart(activations: Activations) -> Chart:
    """How far int8's probabilities lie from fp32's, and how large the int8 graphs are."""
    found = [one["drop"] for one in activations]
    # Not the lower ends: they may lie below 0, which decades do not have.
    axis = numbers.decades([value[key] for value in found for key in ("mean", "high")], least=1)
    headings = ("KL divergence, nats", "size in int8")
    rows = []
    for one, value in zip(activations, found, strict=True):
        divergence = f"{numbers.error(value['mean'])} {_bounds(value, numbers.error)}".strip()
        texts = [divergence, numbers.size(one["size"])]
        rows.append(row(one["activation"], headings, [mark(value, axis, "own")], texts))
    return Chart("KL divergence of int8 from fp32, nats", axis, None, headings, tuple(rows))


def time_charts(activations: Activations) -> list[Chart]:
    """For each work, the time of each activation over the baseline's in both precisions, on one axis."""
    ratios = [ratio for one in activations for ratio in one["ratios"]]
    # One axis for all works, so that their charts can be compared; 1 is the line of no difference.
    axis = numbers.linear(
        [1.0, *(ratio[key] for ratio in ratios for key in ("value", "low", "high"))], zero=False, unit="×"
    )
    headings = tuple(name for name, _ in _PRECISIONS)
    charts = []
    for work in dict.fromkeys(ratio["work"] for ratio in ratios):
        rows = []
        for one in activations:
            # The baseline has no ratio to itself, and no row.
            of_work = {ratio["precision"]: ratio for ratio in one["ratios"] if ratio["work"] == work}
            if not of_work:
                continue
            marks = []
            for index, (precision, style) in enumerate(_PRECISIONS):
                ratio = of_work[precision]
                style = f"{style} noisy" if ratio["noisy"] else style
                marks.append(mark(ratio, axis, style, key="value", y=7 + 11 * index))
            rows.append(row(one["activation"], headings, marks, [_time(of_work[name]) for name in headings]))
        charts.append(Chart(work, axis, axis.at(1.0), headings, tuple(rows)))
    return charts


def unit_chart(activations: Activations) -> Chart:
    """The shares of units that do not work."""
    # Shares of a whole: always the whole axis.
    axis = numbers.linear([0.0, 100.0], zero=True, unit=" %")
    headings = tuple(f"{_SHARES[kind]}, %" for kind, _ in _UNITS)
    rows = []
    for one in activations:
        marks = [
            mark(one["units"][kind], axis, style, scale=100, y=5 + 9 * index)
            for index, (kind, style) in enumerate(_UNITS)
        ]
        rows.append(row(one["activation"], headings, marks, [_spread(one["units"][kind]) for kind, _ in _UNITS]))
    return Chart("units", axis, None, headings, tuple(rows))


def _cells(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row of the table: figures, and the interval beneath each."""
    rates = [(_percent(value["mean"]), _bounds(value, _percent)) for value in one["errors"].values()]
    differences = [
        ("—", "") if value is None else (_signed(value["mean"]), _bounds(value, _signed))
        for value in (one["against"], one["int8_loss"])
    ]
    drop = (numbers.error(one["drop"]["mean"]), _bounds(one["drop"], numbers.error))
    shares = [(_percent(one["units"][kind]["mean"]), "") for kind in _SHARES]
    return [*rates, *differences, drop, *shares]


def _time(ratio: Mapping[str, Any]) -> str:
    """A ratio of times in words: no figure where nothing is shown."""
    value, low, high = (numbers.finite(ratio[key]) for key in ("value", "low", "high"))
    if ratio["noisy"]:
        return "too noisy"
    if value is None or low is None or high is None:
        return f"{_ratio(value)}, no interval"
    bounds = f"({_ratio(low)} to {_ratio(high)})"
    return f"no difference shown {bounds}" if low <= 1 <= high else f"{_ratio(value)}× {bounds}"


def _ratio(value: float | None) -> str:
    """Two decimals, three where two would make 1.003 of it 1.00."""
    return "—" if value is None else f"{value:.2f}" if abs(value - 1) >= 0.005 else f"{value:.3f}"


def _spread(value: Mapping[str, Any]) -> str:
    """A fraction in %, ± half of its interval."""
    mean, high = numbers.finite(value["mean"]), numbers.finite(value["high"])
    if mean is None or high is None or mean == high == 0:
        return _percent(mean)
    return f"{_percent(mean)} ± {_percent(high - mean)}"


def _interval(value: Mapping[str, Any]) -> str:
    return f"{_signed(value['mean'])} {_bounds(value, _signed)}".strip()


def _bounds(value: Mapping[str, Any], write: Callable[[float | None], str]) -> str:
    """An interval in brackets; "" where it is not known."""
    low, high = numbers.finite(value["low"]), numbers.finite(value["high"])
    return "" if low is None or high is None else f"({write(low)} to {write(high)})"


def _percent(value: float | None) -> str:
    value = numbers.finite(value)
    return "not finite" if value is None else f"{100 * value:.2f}".replace("-", "−") if value else "0"


def _signed(value: float | None) -> str:
    value = numbers.finite(value)
    return "not finite" if value is None else f"{100 * value:+.2f}".replace("-", "−") if value else "0"


def _all(estimates: Iterable[Mapping[str, Any]], scale: float) -> list[float]:
    """Means and bounds, as far as they are known."""
    values = [numbers.finite(one[key]) for one in estimates for key in ("mean", "low", "high")]
    return [scale * value for value in values if value is not None]


def _phrase(name: str) -> str:
    return name.replace("_", " ")


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
