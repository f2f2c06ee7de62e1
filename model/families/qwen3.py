"""Qwen 3 (Yang et al. 2025, arXiv:2505.09388): Llama with an RMS norm on each query's and key's head."""

from pathlib import Path
from typing import Any

from ..config import TransformerConfig
from .common import Weights, required_keys
from .llama import read_llama_like, rename_llama_like
from .qwen2 import qwen_sliding


def convert_qwen3(folder: Path, values: dict[str, Any], weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Qwen3ForCausalLM."""
    bias = bool(values.get("attention_bias"))
    with required_keys("Qwen3"):
        options = {"num_kv_heads": values["num_key_value_heads"], "head_dim": values["head_dim"]}
        options |= qwen_sliding("Qwen3", values)
    config = read_llama_like("Qwen3", values, qk_norm=True, qkv_bias=bias, out_bias=bias, **options)
    return config, rename_llama_like(folder, weights, config)
