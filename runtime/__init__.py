"""What an app embeds: open a bundle, run it, embed and generate with it. Needs numpy and onnxruntime only."""

from .model import Decoder, Encoder, EncoderDecoder, Model, load
from .session import Session

__all__ = [
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "Model",
    "Session",
    "load",
]
