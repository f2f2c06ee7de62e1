"""What an app embeds: open a bundle, run it, embed and generate with it. Needs numpy and onnxruntime only."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import load
    from .control import CancelToken
    from .decoder import Decoder
    from .encoder import Encoder
    from .encoder_decoder import EncoderDecoder
    from .figures import Figures
    from .golden import GoldenReport, check_golden
    from .heads import Entity, Fill, Label
    from .model import Model
    from .module import Module
    from .session import Session

__all__ = [
    "CancelToken",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "Entity",
    "Figures",
    "Fill",
    "GoldenReport",
    "Label",
    "Model",
    "Module",
    "Session",
    "check_golden",
    "load",
]

_MODULES = {
    "CancelToken": "control",
    "Decoder": "decoder",
    "Encoder": "encoder",
    "EncoderDecoder": "encoder_decoder",
    "Entity": "heads",
    "Figures": "figures",
    "Fill": "heads",
    "GoldenReport": "golden",
    "Label": "heads",
    "Model": "model",
    "Module": "module",
    "Session": "session",
    "check_golden": "golden",
    "load": "bundle",
}
"""Where each name is. It is imported when it is first asked for, so that an app that starts waits for what it uses."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
