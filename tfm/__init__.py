"""From a PyTorch Transformer checkpoint to a small, fast, verified ONNX bundle that an app can embed.

    import tfm

    with tfm.load("model.tfm") as model:
        vectors = model.embed(["a text", "another"])

Importing this loads nothing else, neither numpy nor onnxruntime: each name, and each room (`tfm.runtime`,
`tfm.quantize`, …), is imported when it is first asked for. `load` needs the base install, `quantize_bundle` the extra
`quantize`, `export_checkpoint` the extra `export`.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .lazy import MovedFinder, lazily

if TYPE_CHECKING:
    from . import batch as batch
    from . import bundle as bundle
    from . import cli as cli
    from . import errors as errors
    from . import export as export
    from . import latency as latency
    from . import model as model
    from . import ops as ops
    from . import quantize as quantize
    from . import report as report
    from . import runtime as runtime
    from . import serve as serve
    from . import study as study
    from .errors import TfmError
    from .export import export_checkpoint
    from .quantize import quantize_bundle
    from .runtime import load

    __version__: str

__all__ = ["TfmError", "__version__", "export_checkpoint", "load", "quantize_bundle"]

_ROOMS = (
    "batch",
    "bundle",
    "cli",
    "errors",
    "export",
    "latency",
    "model",
    "ops",
    "quantize",
    "report",
    "runtime",
    "serve",
    "study",
)

if MovedFinder not in sys.meta_path:  # a module that is loaded anew is not asked twice
    sys.meta_path.append(MovedFinder)

_get, __dir__ = lazily(
    __name__,
    {"errors": "TfmError", "export": "export_checkpoint", "runtime": "load", "quantize": "quantize_bundle"},
)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name == "__version__":
        from importlib.metadata import version  # 10 ms that hardly anybody needs

        return version("tfm-export")
    return _get(name)
