"""Command R (Cohere 2024) and R7B: parallel blocks under norms without biases, neighbors that turn, scaled logits."""

from pathlib import Path
from typing import Any

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options
from .llama import read_llama_like, read_sliding, rename_llama_like
from .reorder import add_zero_biases, turn_neighbors
from .rotary import read_rotary

_FULL = 4
"""Every so many layers of the second series one sees all."""


def convert_cohere(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a CohereForCausalLM."""
    values = values.of("Cohere")
    # They would be layer norms on each head, which ours does not have.
    check_options(values, {"use_qk_norm": [False]})
    return _convert(folder, values, weights, **read_rotary(values, base=500_000.0))


def convert_cohere2(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Cohere2ForCausalLM, where nothing turns in the layers that see all."""
    values = values.of("Cohere2")
    depth = values.layers("num_hidden_layers")
    every = values.size("sliding_window_pattern", _FULL)
    sliding = read_sliding(values, default=[(layer + 1) % every != 0 for layer in range(depth)])
    turning = sliding.get("sliding_layers", tuple(range(depth)) if sliding else ())
    return _convert(folder, values, weights, rotary_layers=turning, **read_rotary(values), **sliding)


def _convert(folder: Path, values: Fields, weights: Weights, **options: Any) -> tuple[TransformerConfig, Weights]:
    bias = values.flag("attention_bias")
    config = read_llama_like(
        values,
        epsilon="layer_norm_eps",
        tied=True,
        norm="layer",
        parallel_blocks=True,
        qkv_bias=bias,
        out_bias=bias,
        logit_scale=values.number("logit_scale", 0.0625),
        **options,
    )
    weights = rename_llama_like(folder, turn_neighbors(folder, weights, config), config)
    return config, add_zero_biases(weights)
