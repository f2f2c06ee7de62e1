"""What a model does inside, seen from its bundle alone: attention, activations, the residual stream."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

from .attention import Head
from .insight import Attention, FeedForward, Insight, Stack
from .inspect import inspect
from .residual import SubLayer
from .units import UnitStatistics, measure_units

if TYPE_CHECKING:
    from .inspect_page import name_heads, write_inspect

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
    "name_heads",
    "write_inspect",
]

# A page needs jinja2, and a look inside does not.
__getattr__, __dir__ = lazily(__name__, {"inspect_page": "name_heads write_inspect"})
