"""Quantizing a bundle: its graphs, what they cost, and the gate that they must pass. Neither torch nor the checkpoint.

The samples that decide are never those that a graph was quantized by, nor those that its mix was searched with.
"""

import dataclasses
import functools
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tfm.bundle import Gate, Manifest, finite
from tfm.runtime import StepProgress, count_threads, open_session

from .calibration.domains import JUDGED, SEARCHED, read_domains
from .calibration.read import Calibration, read_calibration
from .methods.saturation import SATURATING, saturation
from .quantize_options import QuantizeOptions, refuse_moved
from .search.elsewhere import elsewhere
from .search.evaluator import DomainStats, Evaluator, Run
from .search.tune import Tuned, batch_size_of, tune
from .storage import save_onnx
from .workloads import bundle_workloads

_OBSERVED, _HELD_OUT, _EMULATED = 128, 64, 4
"""Samples to quantize by, to judge the result by, and to emulate saturation on."""

_SEARCHED = {"decoder": 8}
"""Samples to search with, by kind of bundle; else 32. A decoder's are long, and each of its words counts."""

_OF_DOMAIN = {"decoder": (4, 8)}
"""Texts of each domain to search with and to judge by, by kind of bundle; else 16 and 32."""

_BESIDE = 8
"""Texts of each domain that are run beside an outlier, which is long."""

_BATCHED = {"by 8": 8, "by 32": 32}
"""Ways that encoders are run beside one by one: libraries that batch pad what comes together."""

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
    options: QuantizeOptions | None = None,
    journal: Path | None = None,
    progress: StepProgress = lambda *_: None,
    **moved: Any,
) -> Quantized:
    """Quantize a bundle's float32 graphs and judge the result on held-out samples.

    Args:
        manifest: The bundle's; its folder holds the float32 graphs.
        folder: The folder of a bundle to write the graphs into, and the recipe.
        precision: "int8", or "int4" for weights of 4 bits.
        options: By what, and what for; None: as `QuantizeOptions` has it.
        journal: File that the search's figures are kept in, until the caller drops it: a search may be done long before
            its graphs are in place.
        progress: Told of every step.
        **moved: Nothing; what was an argument here is a field of `QuantizeOptions` now.

    Returns:
        The files and the report; whether it passed is for the caller to act on.

    Raises:
        QuantizeError: A graph is quantized already, has nothing to quantize or a weight that is not finite; or the
            recipe is another model's.
        CalibrationError: The samples are bad.
    """
    refuse_moved("quantize", moved)
    asked = QuantizeOptions() if options is None else options
    # Of one half of the data, most samples quantize and the last ones decide between mixes; the
    # other half, which nothing was chosen by, judges.
    searched = _SEARCHED.get(manifest.kind, 32)
    samples, last = read_calibration(asked.calib, manifest, count=_OBSERVED + searched).divided(searched)
    searching, judging = [last], [read_calibration(asked.calib, manifest, count=_HELD_OUT, split="held-out")]
    if asked.calib is None:  # of what is built in, none of the three is of a kind with another
        counts = _OF_DOMAIN.get(manifest.kind, (16, 32))
        searching = read_domains(manifest, SEARCHED, counts[0]) or searching
        judging = read_domains(manifest, JUDGED, counts[1]) or judging
    tuned = tune(
        manifest,
        samples,
        searching,
        bundle_workloads(manifest, samples if manifest.kind == "module" else None),
        precision=precision,
        options=asked,
        journal=journal,
        progress=progress,
    )
    files = {}
    for role, model in tuned.models.items():
        exact = Path(manifest.graphs["fp32"][role])
        files[role] = folder / exact.with_name(f"{exact.stem}_{SUFFIXES[precision]}{exact.suffix}")
        files[role].parent.mkdir(exist_ok=True)
        save_onnx(model, files[role])
    gc.collect()  # graphs refer to themselves: of a large model, those of its ops hold its weights
    tuned.recipe.stored().write(folder)
    stats = _judge(manifest, judging, files, lambda what: progress(0, 1, f"judge {precision} on {what}"))
    worst = max(stats, key=lambda one: one.mean)
    report = {
        **tuned.report,
        "held_out": {
            "samples": ", ".join(one.description for one in judging),
            "drop": worst.mean,
            "worst": f"{worst.domain}, {worst.way}" if len(stats) > 1 else None,
            "top_1": min((one.top_1 for one in stats if one.top_1 is not None), default=None),
            "least_cosine": min((one.least for one in stats if one.least is not None), default=None),
            "domains": [dataclasses.asdict(one) for one in stats],
            "elsewhere": [dataclasses.asdict(one) for one in elsewhere(stats)],
        },
        "passed": worst.mean <= tuned.report["max_drop"],
        "portability": _portability(tuned, searching[0]),
    }
    return Quantized(files=files, report=finite(report))


def _judge(
    manifest: Manifest, domains: Sequence[Calibration], files: Mapping[str, Path], tell: Callable[[str], None]
) -> list[DomainStats]:
    """Compare the files as they were written, not the graph of all forms that the search ran, with float32's."""
    exact = runs_of({role: manifest.folder / path for role, path in manifest.graphs["fp32"].items()})
    found, size = runs_of(files), batch_size_of(manifest)
    alone = "alone" if size == 1 else f"by {size}"
    batched = manifest.kind == "encoder" and len(domains) > 1
    stats = []
    for one in domains:
        tell(one.description)
        evaluator = Evaluator(manifest, [one], exact, batch_size=size)
        stats += evaluator.stats(found, {alone: size, **(_BATCHED if batched else {})})
    if batched:
        # Rounded together with the longest row of rare tokens, a row must not lose what it has by itself.
        outlier = domains[-1].longest()
        tell("rows beside an outlier")
        evaluator = Evaluator(manifest, [one.beside(outlier, _BESIDE) for one in domains[:-1]], exact, batch_size=1)
        stats += evaluator.stats(found, {"beside an outlier": 2})
    return stats


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
