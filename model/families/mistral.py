"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a sliding window."""

from pathlib import Path

from tfm.errors import NotNativeError

from ..config import TransformerConfig
from ..fields import MOST_TOKENS, Fields
from .common import Weights
from .llama import read_llama_like, rename_llama_like


def convert_mistral(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a MistralForCausalLM; all of its layers slide, or none does."""
    values = values.of("Mistral")
    if values.has("layer_types"):
        raise NotNativeError("Mistral with layer_types is not supported: all of its layers slide, or none does")
    config = read_llama_like(
        values,
        num_kv_heads=values.nullable_size("num_key_value_heads"),
        sliding_window=values.nullable_size("sliding_window", most=MOST_TOKENS),
    )
    return config, rename_llama_like(folder, weights, config)
