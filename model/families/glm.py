"""GLM 4 (GLM Team 2024, arXiv:2406.12793): half a head turns, by neighbors, and one packed gate."""

from pathlib import Path
from typing import Any

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .llama import LAYER_NAMES, read_llama_like, rename_llama_like
from .reorder import split_gates, turn_neighbors
from .rotary import read_rotary

_FOUR_NAMES = LAYER_NAMES | {
    "layers.*.post_self_attn_layernorm": "self_attn_residual.inner",
    "layers.*.post_mlp_layernorm": "feed_forward_residual.inner",
}
"""GLM-4-0414 has a norm on both sides of each sub-layer."""


def convert_glm(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a GlmForCausalLM."""
    return _convert(folder, values.of("Glm"), weights, LAYER_NAMES)


def convert_glm4(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Glm4ForCausalLM."""
    return _convert(folder, values.of("Glm4"), weights, _FOUR_NAMES, sandwich_norm=True)


def _convert(
    folder: Path, values: Fields, weights: Weights, names: dict[str, str], **options: Any
) -> tuple[TransformerConfig, Weights]:
    head_size = values.optional_size("head_dim")
    config = read_llama_like(
        values,
        qkv_bias=values.flag("attention_bias", True),
        **read_rotary(
            values,
            head_size=head_size or values.size("hidden_size") // values.size("num_attention_heads"),
            share=0.5,
        ),
        **options,
    )
    weights = split_gates(folder, turn_neighbors(folder, weights, config))
    return config, rename_llama_like(folder, weights, config, names)
