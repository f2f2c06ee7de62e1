"""The certificate for a person: one HTML file that needs no network, no script and no other file."""

from .activations import write_activations
from .curves import ActivationCurve
from .html import kept_pictures, write_report
from .latency import write_latency
from .maps import AttentionMap

__all__ = ["ActivationCurve", "AttentionMap", "kept_pictures", "write_activations", "write_latency", "write_report"]
