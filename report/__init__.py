"""The certificate for a person: one HTML file that needs no network, no script and no other file."""

from .activations import write_activations
from .curves import ActivationCurve
from .html import SCHEMAS, kept_pictures, make_environment, write_report
from .inspect import name_heads, write_inspect
from .latency import write_latency
from .maps import AttentionMap

__all__ = [
    "SCHEMAS",
    "ActivationCurve",
    "AttentionMap",
    "kept_pictures",
    "make_environment",
    "name_heads",
    "write_activations",
    "write_inspect",
    "write_latency",
    "write_report",
]
