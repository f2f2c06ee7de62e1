"""Ops by themselves, as they are exported, against float64 formulas that are not PyTorch's."""

from .report import OpSweep, SweepReport
from .run import DTYPES, activation_curve, groups, sweep

__all__ = ["DTYPES", "OpSweep", "SweepReport", "activation_curve", "groups", "sweep"]
