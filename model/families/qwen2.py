"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values."""

from pathlib import Path
from typing import Any

from ..config import TransformerConfig
from ..fields import MOST_LAYERS, MOST_TOKENS, Fields
from .common import Weights
from .llama import read_llama_like, read_sliding, rename_llama_like


def convert_qwen2(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Qwen2ForCausalLM."""
    values = values.of("Qwen2")
    kv_heads = values.nullable_size("num_key_value_heads")
    config = read_llama_like(values, qkv_bias=True, num_kv_heads=kv_heads, **qwen_sliding(values))
    return config, rename_llama_like(folder, weights, config)


def qwen_sliding(values: Fields) -> dict[str, Any]:
    """Read the sliding window: where use_sliding_window, in the layers from max_window_layers on."""
    window = None
    if values.flag("use_sliding_window"):
        # transformers' own default, where the field is absent; null means no window.
        given = "sliding_window" in values.values
        window = values.optional_size("sliding_window", most=MOST_TOKENS) if given else 4096
    first = values.size("max_window_layers", 28, least=0, most=MOST_LAYERS)
    default = [window is not None and layer >= first for layer in range(values.layers("num_hidden_layers"))]
    return read_sliding(values.replaced(sliding_window=window), default=default)
