"""Arcee's foundation models (2025): Llama with a squared ReLU and no gate."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .llama import LAYER_NAMES, read_llama_like, rename_llama_like

UNGATED_NAMES = LAYER_NAMES | {"layers.*.mlp.up_proj": "feed_forward.linear1"}
"""What is Llama's half without a gate is all of the first product here."""


def convert_arcee(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an ArceeForCausalLM."""
    values = values.of("Arcee")
    bias = values.flag("attention_bias")
    config = read_llama_like(
        values, gated=False, qkv_bias=bias, out_bias=bias, feed_forward_bias=values.flag("mlp_bias")
    )
    return config, rename_llama_like(folder, weights, config, UNGATED_NAMES)
