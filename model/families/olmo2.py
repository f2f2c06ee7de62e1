"""OLMo 2 (OLMo Team 2024, arXiv:2501.00656): Llama with norms on each sub-layer's result, and over all heads."""

from pathlib import Path
from typing import Any

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .llama import LAYER_NAMES, read_llama_like, rename_llama_like

_LAYER_NAMES = LAYER_NAMES | {
    "layers.*.post_attention_layernorm": "self_attn_residual.inner",
    "layers.*.post_feedforward_layernorm": "feed_forward_residual.inner",
}


def convert_olmo2(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an Olmo2ForCausalLM."""
    return convert_like_olmo2(folder, values.of("Olmo2"), weights)


def convert_like_olmo2(
    folder: Path, values: Fields, weights: Weights, **options: Any
) -> tuple[TransformerConfig, Weights]:
    """Map OLMo 2 or one of its kind; `options` are further fields of `TransformerConfig`."""
    bias = values.flag("attention_bias")
    # Both norms of a layer are on what a sub-layer gives; the names are those of Llama's norms before it.
    config = read_llama_like(
        values,
        sandwich_norm=True,
        input_norm=False,
        qk_norm=True,
        qk_norm_span="all",
        qkv_bias=bias,
        out_bias=bias,
        **options,
    )
    return config, rename_llama_like(folder, weights, config, _LAYER_NAMES)
