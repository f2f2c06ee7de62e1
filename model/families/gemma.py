"""Gemma (Gemma Team 2024, arXiv:2403.08295): Llama with scaled embeddings, and norms that multiply by 1 + w."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options
from .llama import read_llama_like, rename_llama_like


def convert_gemma(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a GemmaForCausalLM, whose first releases say "gelu" and mean its approximation by tanh."""
    values = values.of("Gemma")
    check_options(values, {"use_bidirectional_attention": [False], "hidden_activation": ["gelu_pytorch_tanh"]})
    # What was trained is the approximation: transformers reads that name so, too.
    if values.values.get("hidden_act") == "gelu":
        values = values.replaced(hidden_act="gelu_pytorch_tanh")
    bias = values.flag("attention_bias")
    config = read_llama_like(values, tied=True, scale_embeddings=True, qkv_bias=bias, out_bias=bias)
    return config, rename_llama_like(folder, unit_norms(weights), config)


def unit_norms(weights: Weights) -> Weights:
    """Store norms that multiply by 1 + w as one weight, in float32: 1 + w is no bfloat16 in general."""
    return {name: 1.0 + w.float() if name.endswith("norm.weight") else w for name, w in weights.items()}
