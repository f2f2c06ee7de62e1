"""What the graphs of a bundle are timed on: one row, short and long, made from the manifest alone."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from tfm.bundle import Manifest, Signature
from tfm.latency import Workload, random_inputs
from tfm.runtime import InputChecks
from tfm.runtime.inputs.checks import SUM

from .calibration.read import Calibration, read_calibration

_LENGTHS = (16, 128)
_SOURCE = 2
"""Tokens of the source that an encoder-decoder's decoder looks at."""


class Step(NamedTuple):
    """The size of one work: new tokens, after so many cached ones."""

    name: str
    length: int
    past: int


def steps_of(role: str, inputs: Iterable[str], max_length: Mapping[str, int]) -> list[Step]:
    """Tell on how many tokens a graph is timed: a cached decoder on one after 16 and 128, any other on 16 and 128.

    A decoder by itself is timed on a prompt of 128 as well.

    Args:
        role: The graph's.
        inputs: Names of its inputs.
        max_length: Limits of its lengths; where 128 does not fit, the longest that does takes its place.
    """
    cached = any(name.startswith("past_key_values.") for name in inputs)
    longest = min(max_length.values(), default=_LENGTHS[-1] + 1)
    # One less than there is room for: a step adds a token to so many.
    lengths = dict.fromkeys(min(length, longest - 1) for length in _LENGTHS)
    if not cached:
        return [Step(f"{role} 1×{n}", n, 0) for n in lengths]
    prompt = max(lengths)
    prompts = [Step(f"{role} prompt of {prompt}", prompt, 0)] if role == "model" else []
    return [*(Step(f"{role} step after {n}", 1, n) for n in lengths), *prompts]


def bundle_workloads(manifest: Manifest, calibration: Calibration | None = None) -> list[Workload]:
    """Make what a bundle is timed on, without torch: the works of `tfm.export.latency`, but for a module.

    Of a module's inputs the manifest tells too little: it is timed on two samples of calibration data, that of median
    size and the largest, or on one where they are of the same shapes.

    Args:
        manifest: The bundle's.
        calibration: A module's samples; None: what `read_calibration` has built in.

    Returns:
        The works of every graph, random where they are not samples, the same on each call.

    Raises:
        CalibrationError, BundleError: A module's samples cannot be made.
        InputError: The graph must not see such inputs.
    """
    if manifest.kind == "module":
        return _samples(calibration or read_calibration(None, manifest), manifest.signature["model"])
    rng, workloads = np.random.default_rng(2), []
    for role, signature in manifest.signature.items():
        check = InputChecks(signature)
        for step in steps_of(role, (spec.name for spec in signature.inputs), signature.max_length):
            sizes = {dim: max(least, step.length) for dim, least in signature.min_length.items()}
            sizes |= {"batch": 1, "sequence": step.length, "past_sequence": step.past, "encoder_sequence": _SOURCE}
            sizes["total_sequence"] = step.past + step.length
            inputs = check(random_inputs(signature, sizes, step.past, rng))
            workloads.append(Workload(name=step.name, role=role, inputs=inputs))
    return workloads


def _samples(calibration: Calibration, signature: Signature) -> list[Workload]:
    ordered = sorted(calibration.batches("model", 1), key=lambda feeds: sum(array.size for array in feeds.values()))
    workloads = {}
    for feeds in (ordered[len(ordered) // 2], ordered[-1]):
        pairs = (
            (dim, size)
            for spec in signature.inputs
            for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        )
        # A dimension that is a sum of others tells nothing that they do not.
        sizes = {dim: size for dim, size in pairs if isinstance(dim, str) and SUM not in dim}
        name = f"model {'×'.join(map(str, sizes.values()))}".rstrip()  # a graph may have no dynamic dimension
        inputs = {spec.name: feeds[spec.name] for spec in signature.inputs}
        workloads[name] = Workload(name=name, role="model", inputs=inputs)
    return list(workloads.values())
