"""What a model does inside, seen from its bundle alone: attention, activations, the residual stream."""

from .units import UnitStatistics, measure_units

__all__ = ["UnitStatistics", "measure_units"]
