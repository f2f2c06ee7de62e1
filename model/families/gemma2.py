"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): soft caps, norms on both sides, every other layer slides."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import MOST_SIZE, Fields
from .common import Weights, check_options
from .gemma import unit_norms
from .llama import LAYER_NAMES as BASE_NAMES
from .llama import read_llama_like, read_sliding, rename_llama_like

LAYER_NAMES = BASE_NAMES | {
    "layers.*.post_attention_layernorm": "self_attn_residual.inner",
    "layers.*.pre_feedforward_layernorm": "feed_forward_residual.norm",
    "layers.*.post_feedforward_layernorm": "feed_forward_residual.inner",
}


def convert_gemma2(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Gemma2ForCausalLM; its norms multiply by 1 + w, which is stored as one weight, in float32."""
    values = values.of("Gemma2")
    check_options(values, {"use_bidirectional_attention": [False]})
    bias = values.flag("attention_bias")
    config = read_llama_like(
        values,
        activation="hidden_activation",
        tied=True,
        sandwich_norm=True,
        scale_embeddings=True,
        qkv_bias=bias,
        out_bias=bias,
        num_kv_heads=values.nullable_size("num_key_value_heads"),
        head_dim=values.nullable_size("head_dim"),
        attention_scale=values.number("query_pre_attn_scalar", most=MOST_SIZE) ** -0.5,
        attention_softcap=values.nullable_number("attn_logit_softcapping"),
        logit_softcap=values.nullable_number("final_logit_softcapping"),
        **read_sliding(values, default=[layer % 2 == 0 for layer in range(values.layers("num_hidden_layers"))]),
    )
    return config, rename_llama_like(folder, unit_norms(weights), config, LAYER_NAMES)
