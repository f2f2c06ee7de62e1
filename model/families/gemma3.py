"""Gemma 3 (Gemma Team 2025, arXiv:2503.19786), its text models: norms on queries and keys, two rotary bases."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import MOST_SIZE, Fields
from .common import Weights, check_options
from .gemma import unit_norms
from .gemma2 import LAYER_NAMES
from .llama import read_llama_like, read_sliding, rename_llama_like
from .rotary import read_local_rotary


def convert_gemma3(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Gemma3ForCausalLM or Gemma3TextModel; its norms multiply by 1 + w, which is stored as one weight."""
    values = values.of("Gemma3")
    check_options(values, {"use_bidirectional_attention": [False]})
    # The class without a head has a name that does not follow from the other's.
    if values.texts("architectures") == ["Gemma3TextModel"]:
        values = values.replaced(architectures=["Gemma3Model"])
    bias, pattern = values.flag("attention_bias"), values.size("sliding_window_pattern", 6)
    depth = values.layers("num_hidden_layers")
    sliding = read_sliding(values, default=[(layer + 1) % pattern != 0 for layer in range(depth)])
    rotary = read_local_rotary(values, whole=("rope_theta", 1e6), local=("rope_local_base_freq", 1e4))
    # A base for layers that there are none of would be refused.
    if not sliding:
        del rotary["local_rotary_base"]
    # Of soft caps this form has neither, but its code still reads both.
    config = read_llama_like(
        values,
        activation="hidden_activation",
        tied=True,
        sandwich_norm=True,
        scale_embeddings=True,
        qk_norm=True,
        qkv_bias=bias,
        out_bias=bias,
        head_dim=values.size("head_dim", 256),
        attention_scale=values.number("query_pre_attn_scalar", most=MOST_SIZE) ** -0.5,
        attention_softcap=values.optional_number("attn_logit_softcapping"),
        logit_softcap=values.optional_number("final_logit_softcapping"),
        **rotary,
        **sliding,
    )
    return config, rename_llama_like(folder, unit_norms(weights), config, LAYER_NAMES)
