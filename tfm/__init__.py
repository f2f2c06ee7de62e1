"""From a PyTorch Transformer checkpoint to a small, fast, verified ONNX bundle that an app can embed.

    import tfm

    with tfm.load("model.tfm") as model:
        vectors = model.embed(["a text", "another"])

Importing this loads nothing else, neither numpy nor onnxruntime: each name, and each room (`tfm.runtime`,
`tfm.quantize`, …), is imported when it is first asked for. `load` needs the base install, `quantize_bundle` the extra
`quantize`, `export_checkpoint` the extra `export`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import activations as activations
    from . import cli as cli
    from . import errors as errors
    from . import export as export
    from . import interpret as interpret
    from . import latency as latency
    from . import model as model
    from . import prune as prune
    from . import quantize as quantize
    from . import report as report
    from . import runtime as runtime
    from .errors import TfmError
    from .export import export_checkpoint
    from .quantize import quantize_bundle
    from .runtime import load

    __version__: str

__all__ = ["TfmError", "__version__", "export_checkpoint", "load", "quantize_bundle"]

_ROOM_OF = {
    "TfmError": "errors",
    "export_checkpoint": "export",
    "load": "runtime",
    "quantize_bundle": "quantize",
}

_ROOMS = {
    "activations",
    "cli",
    "errors",
    "export",
    "interpret",
    "latency",
    "model",
    "prune",
    "quantize",
    "report",
    "runtime",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("tfm-export")
    elif name in _ROOM_OF:
        value = getattr(importlib.import_module(f".{_ROOM_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
