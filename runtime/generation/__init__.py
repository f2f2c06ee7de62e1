"""The pieces of generating a text, in numpy alone: settings, processors, sampling, beams, stopping, streaming."""

from .beam import BeamSearch
from .logits import LogitsProcessor, process_logits
from .sampling import Sampler, draw_at, log_softmax, softmax
from .settings import GenerationSettings, processors
from .stopping import Stopping, StopText
from .text import TextStream, byte_token_ids

__all__ = [
    "BeamSearch",
    "GenerationSettings",
    "LogitsProcessor",
    "Sampler",
    "StopText",
    "Stopping",
    "TextStream",
    "byte_token_ids",
    "draw_at",
    "log_softmax",
    "process_logits",
    "processors",
    "softmax",
]
