"""Quantizing a bundle: its graphs, what they cost, and the gate that they must pass. Neither torch nor the checkpoint.

The samples that decide are never those that a graph was quantized by, nor those that its mix was searched with.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tfm.bundle import Gate, Manifest, finite
from tfm.runtime import count_threads, open_session

from .calibration.read import Calibration, read_calibration
from .methods.saturation import SATURATING, saturation
from .progress import Progress
from .recipe import Recipe
from .search.evaluator import Evaluator, Run
from .search.tune import Tuned, batch_size_of, tune
from .storage import save_onnx
from .workloads import bundle_workloads

_OBSERVED, _HELD_OUT, _EMULATED = 128, 64, 4
"""Samples to quantize by, to judge the result by, and to emulate saturation on."""

_SEARCHED = {"decoder": 8}
"""Samples to search with, by kind of bundle; else 32. A decoder's are long, and each of its words counts."""

SUFFIXES = {"int8": "int8", "int4": "q4"}
"""What the file of each precision ends in, as in other bundles of the field."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """What `quantize` made.

    Attributes:
        files: Role → quantized ONNX file.
        report: What each op costs, the mixes on the way and the verdict, as JSON values (docs/parity.md).
    """

    files: Mapping[str, Path]
    report: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether the budget is kept on held-out samples."""
        return bool(self.report["passed"])


def budget_gate(precision: str, report: Mapping[str, Any]) -> Gate:
    """Judge what a mix of methods costs on held-out samples, and say what to try where that is too much.

    Args:
        precision: Such as "int8".
        report: As in `Quantized`.
    """
    held_out, cosine = report["held_out"], report["measure"] == "cosine"
    drop = "not a number" if held_out["drop"] is None else f"{held_out['drop']:.2g}"
    what = "1 - mean cosine" if cosine else "KL divergence, nats"
    reason = (
        f"{precision} is {drop} from fp32 ({what}) over {held_out['samples']}, more than the budget of "
        f"{report['max_drop']:.2g}; allow more with --max-drop, or calibrate by texts of your own with --calib"
    )
    passed = bool(report["passed"])
    return Gate(
        name=f"{precision} budget",
        stage="budget",
        precision=precision,
        passed=passed,
        figure=held_out["drop"],
        limit=report["max_drop"],
        reason="" if passed else reason,
    )


def quantize(
    manifest: Manifest,
    folder: Path,
    *,
    precision: str = "int8",
    calib: Path | None = None,
    max_drop: float | None = None,
    objective: str = "size",
    recipe: Recipe | None = None,
    journal: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Quantized:
    """Quantize a bundle's float32 graphs and judge the result on held-out samples.

    Args:
        manifest: The bundle's; its folder holds the float32 graphs.
        folder: The folder of a bundle to write the graphs into, and the recipe.
        precision: "int8", or "int4" for weights of 4 bits.
        calib: What to quantize by and judge by: a .txt, .jsonl or .npz file, or a folder of these; None: what is built
            in.
        max_drop: How far from float32 it may be: 1 - mean cosine, or nats; None: `BUDGETS`.
        objective: What it is to have least of within that, bytes ("size") or time ("speed").
        recipe: Methods to replay, without a search.
        journal: File that the search's figures are kept in, until the caller drops it: a search may be done long before
            its graphs are in place.
        progress: Told of every step.

    Returns:
        The files and the report; whether it passed is for the caller to act on.

    Raises:
        QuantizeError: A graph is quantized already, has nothing to quantize or a weight that is not finite; or the
            recipe is another model's.
        CalibrationError: The samples are bad.
    """
    # Of one half of the data, most samples quantize and the last ones decide between mixes; the
    # other half, which nothing was chosen by, judges.
    searched = _SEARCHED.get(manifest.kind, 32)
    samples, judged = read_calibration(calib, manifest, count=_OBSERVED + searched).divided(searched)
    held_out = read_calibration(calib, manifest, count=_HELD_OUT, split="held-out")
    tuned = tune(
        manifest,
        samples,
        judged,
        bundle_workloads(manifest, samples if manifest.kind == "module" else None),
        precision=precision,
        max_drop=max_drop,
        objective=objective,
        recipe=recipe,
        journal=journal,
        progress=progress,
    )
    files = {}
    for role, model in tuned.models.items():
        exact = Path(manifest.graphs["fp32"][role])
        files[role] = folder / exact.with_name(f"{exact.stem}_{SUFFIXES[precision]}{exact.suffix}")
        files[role].parent.mkdir(exist_ok=True)
        save_onnx(model, files[role])
    tuned.recipe.stored().write(folder)
    progress(0, 1, f"judge {precision} on {held_out.description}")
    # The files as they were written, not the graph of all forms that the search ran.
    exact_files = {role: manifest.folder / path for role, path in manifest.graphs["fp32"].items()}
    evaluator = Evaluator(manifest, held_out, runs_of(exact_files), batch_size=batch_size_of(manifest))
    drop = evaluator.drop(runs_of(files))
    report = {
        **tuned.report,
        "held_out": {
            "samples": held_out.description,
            "drop": drop.value,
            "top_1": None if drop.flips is None else 1 - drop.flips,
            "least_cosine": drop.least,
        },
        "passed": drop.value <= tuned.report["max_drop"],
        "portability": _portability(tuned, judged),
    }
    return Quantized(files=files, report=finite(report))


def runs_of(files: Mapping[str, Path]) -> dict[str, Run]:
    """Open each role's graph for a `Evaluator`."""
    runs: dict[str, Run] = {}
    for role, path in files.items():
        runs[role] = functools.partial(_run, open_session(path, "cpu", count_threads(None)))
    return runs


def _run(session: Any, names: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def _portability(tuned: Tuned, samples: Calibration) -> dict[str, Any]:
    """What x86 without VNNI would make of the graphs, opened without `session.x64quantprecision`.

    An op that saturates adds noise to its own; the model's drop grows in proportion.
    """
    saturating, extra = [], 0.0
    for role, model in tuned.models.items():
        batches = itertools.islice(samples.batches(role, 1), _EMULATED)
        found = saturation(model, batches) if any(node.op_type in SATURATING for node in model.graph) else {}
        by_weight = {op["weight"]: op for op in tuned.report["ops"] if op["role"] == role}
        for node, name in tuned.products[role].items():
            if node in found and found[node].saturated:
                # The op's own noise, 10^(-snr / 10) of its signal, cost the model `alone`.
                # Saturation adds `nmse` of that signal, and costs in proportion.
                op = by_weight[name]
                saturating.append(name)
                if op["alone"] is not None and op["own_snr_db"] is not None:
                    extra += op["alone"] * found[node].nmse * 10 ** (op["own_snr_db"] / 10)
    # A graph in which nothing saturates runs anywhere, however much of its budget it spends.
    over = tuned.report["drop"] + extra > tuned.report["max_drop"]
    return {"vnni_only": bool(saturating) and over, "saturating": saturating, "extra_drop": extra}
