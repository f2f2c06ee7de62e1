"""What a model does inside, seen from its bundle alone: attention, activations, the residual stream."""

from .attention import Head
from .insight import Attention, FeedForward, Insight, Stack
from .look import look
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
    "look",
    "measure_units",
]
