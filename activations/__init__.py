"""What an activation function costs and buys: each of the registry by itself, and a study that trains with each."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .formulas import FORMULAS, Formula
    from .rows import ActivationRow, ActivationTable
    from .table import tabulate

__all__ = ["FORMULAS", "ActivationRow", "ActivationTable", "Formula", "tabulate"]

_MODULES = {
    "FORMULAS": "formulas",
    "ActivationRow": "rows",
    "ActivationTable": "rows",
    "Formula": "formulas",
    "tabulate": "table",
}
"""Where each name is. It is imported when it is first asked for: `worker`, which is timed, must not load torch."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
