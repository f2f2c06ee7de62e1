"""What `tabulate` found, as data; docs/activations-table.md says what every field of its JSON means."""

import dataclasses
import math
from typing import Any

from tfm.export import OpSweep
from tfm.ops import Activation, GatedActivation
from tfm.report import ActivationCurve

from .kernels import Kernels
from .speed import Speed
from .sqnr import SCALES, Sqnr

SCHEMA = 1
"""Version of the JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationRow:
    """One activation.

    Attributes:
        name: Of `tfm.ops.ACTIVATIONS` or `GATED`.
        gated: Whether it multiplies a value by the activated gate.
        definition: What it computes, and by which paper.
        kernels: What it was exported as, and what ran.
        errors: dtype, "float32" and "float16" → its own error against float64.
        speed: Its time beside relu's, on each shape; empty: it was not timed.
        sqnr: "per_tensor" and "per_token" → what 8 bits leave of its output.
        curve: The function, its derivative, and how far ONNX lies from it.
    """

    name: str
    gated: bool
    definition: Activation | GatedActivation
    kernels: Kernels
    errors: dict[str, OpSweep]
    speed: tuple[Speed, ...]
    sqnr: dict[str, Sqnr]
    curve: ActivationCurve

    @property
    def fault(self) -> str:
        """Why its export is wrong; "" where it is not."""
        return next((f"{sweep.name}: {sweep.fault}" for sweep in self.errors.values() if sweep.fault), "")

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values, without the curve."""
        kernels = self.kernels
        return {
            "activation": self.name,
            "gated": self.gated,
            "formula": self.definition.formula,
            "source": self.definition.source,
            "exported": list(kernels.exported),
            "optimized": list(kernels.optimized),
            "kernels": [{"op": op, "provider": provider} for op, provider in kernels.ran],
            "errors": {dtype: _error(sweep) for dtype, sweep in self.errors.items()},
            "speed": [speed.to_dict() for speed in self.speed],
            "sqnr": {scale: self.sqnr[scale].to_dict() for scale in SCALES},
            "fault": self.fault,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationTable:
    """Every activation that was asked for.

    Attributes:
        rows: In the order of the registry: no ranking.
        about: What the SQNR was measured on, in words.
        source: That: "checkpoint" or "normal" inputs.
        rounds: How often each was timed in turn; 0: never.
        call: Seconds that calling onnxruntime takes, part of every time; None: nothing was timed.
        made: Date, machine, system, load and versions.
        warnings: What speaks against the figures.
    """

    rows: tuple[ActivationRow, ...]
    about: str
    source: str
    rounds: int
    call: float | None
    made: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there is a row, and every activation was exported right."""
        return bool(self.rows) and not any(row.fault for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Give the table as JSON values; an infinite figure is null."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "made": self.made,
            "rounds": self.rounds,
            "call_microseconds": None if self.call is None else self.call * 1e6,
            "inputs": {"source": self.source, "about": self.about},
            "warnings": list(self.warnings),
            "activations": [row.to_dict() for row in self.rows],
        }


def _error(sweep: OpSweep) -> dict[str, Any]:
    """The figures of one dtype; of OpSweep's, those that a table shows."""
    figures = {"max_abs": sweep.max_abs, "limit": sweep.limit, "torch_max_abs": sweep.torch_max_abs}
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return finite | {"where": sweep.where, "compared": sweep.count, "passed": sweep.passed}
