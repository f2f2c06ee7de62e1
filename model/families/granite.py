"""Granite 3 (IBM 2024): Llama with factors on embeddings, scores, sub-layers' results and logits."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .llama import read_llama_like, rename_llama_like


def convert_granite(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a GraniteForCausalLM."""
    values = values.of("Granite")
    bias = values.flag("attention_bias")
    # All four are factors by which maximal update parametrization carries settings from size to size.
    config = read_llama_like(
        values,
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=values.flag("mlp_bias"),
        embedding_scale=values.number("embedding_multiplier", 1.0),
        attention_scale=values.number("attention_multiplier", 1.0),
        residual_scale=values.number("residual_multiplier", 1.0),
        logit_scale=1.0 / values.number("logits_scaling", 1.0, least=1e-6),
    )
    return config, rename_llama_like(folder, weights, config)
