"""What an app embeds: open a bundle, run it, embed and generate with it. Needs numpy and onnxruntime only."""

from .bundle import load
from .control import CancelToken
from .decoder import Decoder
from .encoder import Encoder
from .encoder_decoder import EncoderDecoder
from .figures import Figures
from .golden import GoldenReport, check_golden
from .model import Model
from .module import Module
from .session import Session

__all__ = [
    "CancelToken",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "Figures",
    "GoldenReport",
    "Model",
    "Module",
    "Session",
    "check_golden",
    "load",
]
