"""What the page of a study is made of: its raw results as `write_study` reads them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfm.study.inspect.units import FLAT, NEAR_ZERO

from .statistics import WORSE, Estimate, differences
from .summary import Line, summarize
from .training import SAMPLED

SCHEMA = 1
"""Version of the page's content."""


def page_content(results: Mapping[str, Any]) -> dict[str, Any]:
    """Estimate what a study shows, as JSON values: what is infinite or NaN is None.

    Args:
        results: The content of results.json, as `run_study` gives it.

    Returns:
        The content that `write_study` describes.
    """
    lines = summarize(results)
    steps = results["schedule"]["steps"]
    return {
        "schema": SCHEMA,
        "title": f"What an activation costs and buys: {results['task']}",
        "facts": _facts(results, lines),
        "baseline": lines[0].activation,
        "seeds": results["seeds"],
        "candidates": _candidates(results),
        "thresholds": {"flat": FLAT, "near_zero": NEAR_ZERO},
        "activations": [_activation(line, steps) for line in lines],
    }


def _candidates(results: Mapping[str, Any]) -> list[str]:
    """Name the activations that are not shown to differ from the best.

    The one of the lowest mean is chosen after the fact, yet the set holds the best with at least 95 % confidence: the
    best is left out only where it is shown worse than one of the others, and the intervals hold for all of these at
    once (Gupta 1965, On some multiple decision (selection and ranking) rules).
    """
    rates: dict[str, list[float]] = {name: [] for name in results["activations"]}
    for run in results["runs"]:
        rates[run["activation"]].append(next(iter(run["deployed"]["errors"]["fp32"].values())))
    # By the sum, which of as many seeds each orders as the mean does.
    lowest = min(rates, key=lambda name: math.fsum(rates[name]))
    worse = {name for name, value in differences(rates, lowest).items() if value.verdict == WORSE}
    return [name for name in rates if name not in worse]


def _facts(results: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, str]:
    config, schedule, machine = results["config"], results["schedule"], results["machine"]
    layers = f"{config['num_encoder_layers']} + {config['num_decoder_layers']} layers"
    widths = f"width {config['d_model']}, feed-forward {config['dim_feedforward']}, {config['nhead']} heads"
    least, most = (choose(line.parameters for line in lines) for choose in (min, max))
    questions, seeds = results["questions"], results["seeds"]
    return {
        "model": f"{config['kind']}, {layers}, {widths}",
        "parameters": f"{least:,}" if least == most else f"{least:,} to {most:,}",
        "training": f"{schedule['steps']:,} steps of {schedule['batch_size']} rows, AdamW, "
        f"peak rate {schedule['lr']:g}",
        "seeds": f"{seeds} of each activation" if seeds > 1 else "one of each activation",
        "tested on": "all test questions" if questions is None else f"{questions:,} test questions",
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }


def _activation(line: Line, steps: int) -> dict[str, Any]:
    return {
        "activation": line.activation,
        "forms": list(line.forms),
        "errors": {name: _estimate(value) for name, value in line.errors.items()},
        "against": None if line.against is None else _difference(line.against),
        "int8_loss": _difference(line.int8_loss),
        "drop": _estimate(line.drop),
        "ratios": [
            {"work": work, "precision": precision, "noisy": ratio["noisy"]}
            | {key: _finite(ratio[key]) for key in ("value", "low", "high")}
            for (work, precision), ratio in line.ratios.items()
        ],
        "units": {kind: _estimate(value) for kind, value in line.units.items()},
        "gradients": {layer: _finite(value) for layer, value in line.gradients.items()},
        # The last point is a mean of fewer steps where they do not divide.
        "loss": [[min((i + 1) * SAMPLED, steps), _finite(value)] for i, value in enumerate(line.loss)],
        "parameters": line.parameters,
        "size": line.size,
    }


def _estimate(value: Estimate) -> dict[str, float | None]:
    return {"mean": _finite(value.mean), "low": _finite(value.low), "high": _finite(value.high)}


def _difference(value: Estimate) -> dict[str, Any]:
    return _estimate(value) | {"verdict": value.verdict}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
