"""Ops by themselves, as they are exported, against float64 formulas that are not PyTorch's."""

from .report import OpSweep, SweepReport
from .run import DTYPES, GROUPS, activation_curve, sweep

__all__ = ["DTYPES", "GROUPS", "OpSweep", "SweepReport", "activation_curve", "sweep"]
