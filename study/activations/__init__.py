"""What an activation function costs: each of the registry by itself."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from .activations_page import write_activations
    from .rows import ActivationRow, ActivationTable
    from .table import tabulate

__all__ = ["ActivationRow", "ActivationTable", "tabulate", "write_activations"]

_TRAINING = {
    name: f"{name} of benchmarks/activation_study, in a checkout of the source"
    for name in ("STUDIED", "Estimate", "Schedule", "page_content", "run_study", "summarize")
}
"""Of the study that trains with each, which is no part of the package."""

# `worker`, which is timed, must not load torch
__getattr__, __dir__ = lazily(
    __name__,
    {
        "activations_page": "write_activations",
        "rows": "ActivationRow ActivationTable",
        "table": "tabulate",
    },
    _TRAINING,
)
