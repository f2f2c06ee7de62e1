"""SmolLM 3 (Bakouch et al. 2025): Llama in whose every fourth layer nothing turns."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights
from .llama import read_llama_like, read_sliding, rename_llama_like


def convert_smollm3(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a SmolLM3ForCausalLM."""
    values = values.of("SmolLM3")
    turns = _turning(values, values.layers("num_hidden_layers"))
    slides = values.flag("use_sliding_window") and values.has("sliding_window")
    # transformers makes layer_types of these two, and then heeds the first of them again.
    if not slides:
        values = values.replaced(layer_types=None)
    bias = values.flag("attention_bias")
    config = read_llama_like(
        values,
        tied=True,
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=values.flag("mlp_bias"),
        rotary_layers=None if all(turns) else tuple(layer for layer, turn in enumerate(turns) if turn),
        **read_sliding(values, default=[slides and not turn for turn in turns]),
    )
    return config, rename_llama_like(folder, weights, config)


def _turning(values: Fields, depth: int) -> list[bool]:
    """Read in which layers queries and keys turn: in spite of its name, no_rope_layers says where they do."""
    interval = values.size("no_rope_layer_interval", 4)
    turns = values.flags("no_rope_layers") or [(layer + 1) % interval != 0 for layer in range(depth)]
    if len(turns) < depth:
        raise values.error("no_rope_layers", f"a list with a number for each of {depth} layers")
    return turns[:depth]
