"""Helium (Kyutai 2025): Llama whose queries and keys turn by neighbors."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .llama import read_llama_like, rename_llama_like
from .reorder import turn_neighbors
from .rotary import read_rotary


def convert_helium(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a HeliumForCausalLM."""
    values = values.of("Helium")
    config = read_llama_like(
        values,
        qkv_bias=values.flag("attention_bias"),
        feed_forward_bias=values.flag("mlp_bias"),
        **read_rotary(values, base=100_000.0),
    )
    return config, rename_llama_like(folder, turn_neighbors(folder, weights, config), config)
