"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a sliding window."""

from pathlib import Path
from typing import Any

from tfm.errors import ConfigError

from ..config import TransformerConfig
from .common import Weights, required_keys
from .llama import read_llama_like, rename_llama_like


def convert_mistral(folder: Path, values: dict[str, Any], weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a MistralForCausalLM; all of its layers slide, or none does."""
    if values.get("layer_types") is not None:
        raise ConfigError("Mistral with layer_types is not supported: all of its layers slide, or none does")
    with required_keys("Mistral"):
        options = {"num_kv_heads": values["num_key_value_heads"], "sliding_window": values["sliding_window"]}
    config = read_llama_like("Mistral", values, **options)
    return config, rename_llama_like(folder, weights, config)
