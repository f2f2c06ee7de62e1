"""Leaves: what is studied of models and of ops. Nothing on the way from a checkpoint to a bundle imports them.

`activations` compares activation functions, `inspect` looks inside a bundle, `prune` takes heads and units away.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import activations as activations
    from . import inspect as inspect
    from . import prune as prune

__all__ = ["activations", "inspect", "prune"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
