"""Nemotron (Parmar et al. 2024, arXiv:2402.16819): squared ReLU, norms that multiply by 1 + w, half turns."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .arcee import UNGATED_NAMES
from .common import Weights
from .gemma import unit_norms
from .llama import read_llama_like, rename_llama_like
from .rotary import read_rotary


def convert_nemotron(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a NemotronForCausalLM."""
    values = values.of("Nemotron")
    bias = values.flag("attention_bias")
    head_size = values.optional_size("head_dim")
    config = read_llama_like(
        values,
        epsilon="norm_eps",
        gated=False,
        norm="layer",
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=values.flag("mlp_bias"),
        **read_rotary(
            values,
            head_size=head_size or values.size("hidden_size") // values.size("num_attention_heads"),
            share=0.5,
        ),
    )
    return config, rename_llama_like(folder, unit_norms(weights), config, UNGATED_NAMES)
