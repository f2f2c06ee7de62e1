"""Qwen 3 (Yang et al. 2025, arXiv:2505.09388): Llama with an RMS norm on each query's and key's head."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .llama import read_llama_like, rename_llama_like
from .qwen2 import qwen_sliding


def convert_qwen3(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Qwen3ForCausalLM."""
    values = values.of("Qwen3")
    bias = values.flag("attention_bias")
    config = read_llama_like(
        values,
        qk_norm=True,
        qkv_bias=bias,
        out_bias=bias,
        num_kv_heads=values.nullable_size("num_key_value_heads"),
        head_dim=values.nullable_size("head_dim"),
        **qwen_sliding(values),
    )
    return config, rename_llama_like(folder, weights, config)
