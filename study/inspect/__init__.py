"""What a model does inside, seen from its bundle alone: attention, activations, the residual stream."""

from .attention import Head
from .insight import Attention, FeedForward, Insight, Stack
from .inspect import inspect
from .residual import SubLayer
from .units import UnitStatistics, measure_units

__all__ = [
    "Attention",
    "FeedForward",
    "Head",
    "Insight",
    "Stack",
    "SubLayer",
    "UnitStatistics",
    "inspect",
    "measure_units",
]
