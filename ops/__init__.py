"""What an op is: its name and kind, what it computes, how far a result may be off. Needs numpy only."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from .activations import (
        ACTIVATIONS,
        GATED,
        Activation,
        GatedActivation,
        activation_by_any_name,
        activation_names,
        derivative_of,
        evaluate_activation,
        gate_of,
        gated_by,
        is_gated,
    )
    from .error_stats import ErrorStats, Tolerance
    from .kinds import ACTIVATION, ATTENTION, KINDS, SOFTMAX, OpKind, is_layer
    from .names import OpId
    from .tolerances import END_TO_END, FREE, GOLDEN_NMSE_HALF, HALF, SWEEPS, tolerance_table

__all__ = [
    "ACTIVATION",
    "ACTIVATIONS",
    "ATTENTION",
    "END_TO_END",
    "FREE",
    "GATED",
    "GOLDEN_NMSE_HALF",
    "HALF",
    "KINDS",
    "SOFTMAX",
    "SWEEPS",
    "Activation",
    "ErrorStats",
    "GatedActivation",
    "OpId",
    "OpKind",
    "Tolerance",
    "activation_by_any_name",
    "activation_names",
    "derivative_of",
    "evaluate_activation",
    "gate_of",
    "gated_by",
    "is_gated",
    "is_layer",
    "tolerance_table",
]

# A name is imported when it is first asked for, so that a bundle opens fast.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "ACTIVATION": "kinds",
        "ACTIVATIONS": "activations",
        "ATTENTION": "kinds",
        "END_TO_END": "tolerances",
        "FREE": "tolerances",
        "GATED": "activations",
        "GOLDEN_NMSE_HALF": "tolerances",
        "HALF": "tolerances",
        "KINDS": "kinds",
        "SOFTMAX": "kinds",
        "SWEEPS": "tolerances",
        "Activation": "activations",
        "ErrorStats": "error_stats",
        "GatedActivation": "activations",
        "OpId": "names",
        "OpKind": "kinds",
        "Tolerance": "error_stats",
        "activation_by_any_name": "activations",
        "activation_names": "activations",
        "derivative_of": "activations",
        "evaluate_activation": "activations",
        "gate_of": "activations",
        "gated_by": "activations",
        "is_gated": "activations",
        "is_layer": "kinds",
        "tolerance_table": "tolerances",
    },
)
