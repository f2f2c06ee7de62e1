"""What goes into the certificate of a bundle: what was compared with what, how far apart it was, and the verdict.

docs/parity.md says what every field means.
"""

import dataclasses
import datetime
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.bundle import PARITY_SCHEMA, Gate, all_passed, describe_file
from tfm.latency import Latency, all_speeds, compare_speed
from tfm.ops import Tolerance, tolerance_table
from tfm.quantize import budget_gate, size_of

from .manifest import PACKAGES
from .source import Source
from .verify.ask_library import NotCompared, Reference
from .verify.fidelity import Fidelity
from .verify.reports import GraphReport

NOT_JUDGED = {
    "fp16": "The speed of fp16 was not judged on this machine: it is for CUDA, and only the CPU ran. Its graphs were "
    "compared with eager PyTorch in a form that rounds every result as float16 stores it."
}
"""Precision → what an export does not show of it, in words. The speed of these precisions is not measured."""

NOT_COMPARED = "The task was not compared with the library that the checkpoint comes with: {}."

Files = Mapping[str, Mapping[str, Path]]
"""Precision → role → ONNX file."""


def certify(
    name: str,
    subject: Source,
    files: Files,
    *,
    opset: int,
    graphs: Sequence[GraphReport],
    fidelity: Sequence[Fidelity],
    latency: Sequence[Latency],
    tolerance: Tolerance,
    quantization: Mapping[str, Any] | None = None,
    reference: Reference | NotCompared | None = None,
) -> dict[str, Any]:
    """Put together the content of parity.json, as JSON values.

    Args:
        name: Name of the bundle.
        subject: What was exported.
        files: The graphs that this is about, two folders below the bundle's.
        opset: Their ONNX opset.
        graphs: Op by op and end to end, for every graph and precision.
        fidelity: The bundle through the runtime against eager.
        latency: Eager and every precision but those of `NOT_JUDGED`.
        tolerance: Of the fp32 outputs.
        quantization: Precision → what its mix of methods is and costs, op by op; None where nothing was quantized.
        reference: What the checkpoint's own library gave, or why it was not asked.
    """
    not_compared = [NOT_COMPARED.format(reference.why)] if isinstance(reference, NotCompared) else []
    paths = [path for roles in files.values() for path in roles.values()]
    return {
        "schema": PARITY_SCHEMA,
        "passed": all_passed(gates_of(graphs, fidelity, latency, quantization)),
        "name": name,
        "family": subject.family,
        "kind": subject.config.kind,
        "parameters": subject.parameters,
        "made": {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
            "opset": opset,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        },
        # Graphs lie in onnx/, so that two folders up is the bundle.
        "files": {path.relative_to(path.parents[1]).as_posix(): describe_file(path) for path in paths},
        "tolerances": tolerance_table(tolerance, half="fp16" in files),
        "graphs": [graph.to_dict() for graph in graphs],
        "fidelity": [
            dataclasses.asdict(part)
            # JSON has neither NaN nor infinity.
            | {"passed": part.passed, "value": part.value if math.isfinite(part.value) else None}
            for part in fidelity
        ],
        "latency": [part.to_dict() for part in latency],
        "speed": [speed.to_dict() for speed in all_speeds(latency)],
        "not_judged": [*(NOT_JUDGED[name] for name in files if name in NOT_JUDGED), *not_compared],
        "quantization": dict(quantization or {}),
        "sizes": {name: sum(size_of(file) for file in roles.values()) for name, roles in files.items() if roles},
    }


def gates_of(
    graphs: Sequence[GraphReport],
    fidelity: Sequence[Fidelity],
    latency: Sequence[Latency],
    quantization: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Gate]:
    """List what an export was held to: every graph, the task, the budgets, and that nothing is slower than fp32.

    Args:
        graphs: Op by op and end to end.
        fidelity: The bundle through the runtime against eager.
        latency: Eager and every precision.
        quantization: Precision → what its mix of methods costs, as JSON values.

    Returns:
        The gates; where nothing was compared, one that failed: what was held to nothing has not passed.
    """
    gates = [graph.gate for graph in graphs] + [part.gate for part in fidelity]
    # Nothing compared is no pass: an empty list would satisfy all().
    if not graphs or not fidelity:
        gates.append(Gate(name="fp32 task", stage="task", precision="fp32", passed=False))
    gates += [budget_gate(name, made) for name, made in (quantization or {}).items()]
    return gates + [speed.gate for speed in compare_speed(latency)]
