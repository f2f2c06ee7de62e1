"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values."""

from pathlib import Path
from typing import Any

from ..config import TransformerConfig
from .common import Weights, required_keys
from .llama import read_llama_like, read_sliding, rename_llama_like


def convert_qwen2(folder: Path, values: dict[str, Any], weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Qwen2ForCausalLM."""
    with required_keys("Qwen2"):
        options = {"num_kv_heads": values["num_key_value_heads"], **qwen_sliding("Qwen2", values)}
    config = read_llama_like("Qwen2", values, qkv_bias=True, **options)
    return config, rename_llama_like(folder, weights, config)


def qwen_sliding(family: str, values: dict[str, Any]) -> dict[str, Any]:
    """Read the sliding window: where use_sliding_window, in the layers from max_window_layers on."""
    window = values.get("sliding_window", 4096) if values.get("use_sliding_window") else None
    first = values.get("max_window_layers", 28)
    default = [window is not None and layer >= first for layer in range(values["num_hidden_layers"])]
    return read_sliding(family, values | {"sliding_window": window}, default=default)
