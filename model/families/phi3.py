"""Phi 3 and 4 (Abdin et al. 2024, arXiv:2404.14219): Llama with packed projections, part of a head may turn."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import MOST_TOKENS, Fields
from .common import Weights, rename, strip_prefix
from .llama import LAYER_NAMES, NAMES, read_llama_like
from .reorder import swap_halves
from .rotary import read_rotary

_LAYER_NAMES = LAYER_NAMES | {
    "layers.*.self_attn.qkv_proj": "self_attn.in_proj",
    "layers.*.mlp.gate_up_proj": "feed_forward.linear1",
}


def convert_phi3(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Phi3ForCausalLM, which Phi 3.5 mini, Phi 4 and Phi 4 mini are too."""
    values = values.of("Phi3")
    head_size = values.size("hidden_size") // values.size("num_attention_heads")
    config = read_llama_like(
        values,
        sliding_window=values.optional_size("sliding_window", most=MOST_TOKENS),
        **read_rotary(values, head_size=values.optional_size("head_dim") or head_size),
    )
    # Queries, keys and values are packed as ours are, so that names are all that changes.
    weights = rename(strip_prefix(weights, "model."), NAMES, _LAYER_NAMES, "decoder.layers")
    # Gate before value, where ours is value before gate.
    layers = range(config.num_decoder_layers)
    swap_halves(folder, weights, [f"decoder.layers.{layer}.feed_forward.linear1.weight" for layer in layers])
    return config, weights
