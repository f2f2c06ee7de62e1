"""The bundles of a study side by side: how much time an activation costs the whole model."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.bundle import read_manifest
from tfm.latency import onnx_job, ratio_of, save_arrays, shelf, take_turns
from tfm.quantize import bundle_workloads

_SECONDS = 0.05
PRECISIONS = ("fp32", "int8")


def time_bundles(
    bundles: Mapping[str, Path],
    baseline: str,
    rounds: int,
    tell: Callable[[int, int], None] = lambda *_: None,
    cores: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Time the graphs of several bundles of one shape, each in a process of its own, in interleaved rounds.

    Args:
        bundles: Activation → bundle, with the precisions of `PRECISIONS`.
        baseline: The activation that the others are compared with.
        rounds: Turns of each.
        tell: Told (done, total).
        cores: As in `take_turns`.

    Returns:
        A line for every work and precision: "work", "precision", "milliseconds" (activation → median) and "ratio"
        (activation → value, low, high of its time over the baseline's, with a 95 % interval; and "noisy").
    """
    manifests = {name: read_manifest(bundle) for name, bundle in bundles.items()}
    # Of one bundle for all: they have the same shapes, whatever their activation.
    workloads = bundle_workloads(manifests[baseline])
    jobs = {
        (name, precision): onnx_job({role: manifest.folder / path for role, path in manifest.graphs[precision].items()})
        for name, manifest in manifests.items()
        for precision in PRECISIONS
    }
    with shelf() as folder:
        told = []
        for index, work in enumerate(workloads):
            file = folder / f"{index}.npz"
            save_arrays(file, work.inputs)
            told.append({"role": work.role, "file": str(file)})
        # All in the same rounds, fp32 beside int8, so that any two can be compared.
        engines = {f"{name} {precision}": job for (name, precision), job in jobs.items()}
        turns = take_turns(engines, told, rounds=rounds, seconds=_SECONDS, cores=cores, progress=tell)
    lines = []
    for work, times in zip(workloads, turns.times, strict=True):
        for precision in PRECISIONS:
            medians = {
                name: [statistics.median(turn["run"]) for turn in times[f"{name} {precision}"]] for name in bundles
            }
            lines.append(
                {
                    "work": work.name,
                    "precision": precision,
                    "milliseconds": {name: statistics.median(row) * 1e3 for name, row in medians.items()},
                    "ratio": {name: _over(row, medians[baseline]) for name, row in medians.items() if name != baseline},
                }
            )
    return lines


def _over(engine: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """The engine's time over the baseline's."""
    ratio = ratio_of(baseline, engine)  # which is the other way round: above 1 is faster
    return {"value": 1 / ratio.value, "low": 1 / ratio.high, "high": 1 / ratio.low, "noisy": ratio.noisy}
