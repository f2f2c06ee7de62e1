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
        "activations": "ACTIVATIONS GATED Activation GatedActivation activation_by_any_name activation_names "
        "derivative_of evaluate_activation gate_of gated_by is_gated",
        "error_stats": "ErrorStats Tolerance",
        "kinds": "ATTENTION ACTIVATION KINDS SOFTMAX OpKind is_layer",
        "names": "OpId",
        "tolerances": "END_TO_END FREE GOLDEN_NMSE_HALF HALF SWEEPS tolerance_table",
    },
    {name: f'KINDS["{name.lower()}"]' for name in ("LINEAR", "NORM", "EMBEDDING")}
    | {"LAYERS": "is_layer", "OWN": "KINDS[…].tolerance", "Kind": "OpKind"},
)
