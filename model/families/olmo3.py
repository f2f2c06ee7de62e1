"""OLMo 3 (Ai2 2025): OLMo 2 in three of whose four layers a window slides."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .llama import read_sliding
from .olmo2 import convert_like_olmo2
from .rotary import read_local_rotary

_FULL = 4
"""Every so many layers one sees all."""

_BASE = 500_000.0


def convert_olmo3(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an Olmo3ForCausalLM."""
    values = values.of("Olmo3")
    slides = [(layer + 1) % _FULL != 0 for layer in range(values.layers("num_hidden_layers"))]
    # An older configuration's rope_theta is of the layers that see all: in those that slide, transformers leaves
    # the default.
    rotary = read_local_rotary(values, whole=("rope_theta", _BASE), local=("sliding_rope_theta", _BASE))
    sliding = read_sliding(values, default=slides)
    # A base for layers that there are none of would be refused.
    if not sliding:
        del rotary["local_rotary_base"]
    return convert_like_olmo2(folder, values, weights, **rotary, **sliding)
