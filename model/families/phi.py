"""Phi 1, 1.5 and 2 (Li et al. 2023, arXiv:2309.05463): parallel blocks, biases throughout, part of a head turns."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options
from .llama import LAYER_NAMES, NAMES, read_llama_like, rename_llama_like
from .rotary import read_rotary

_NAMES = NAMES | {"final_layernorm": "decoder.norm"}

_LAYER_NAMES = LAYER_NAMES | {
    "layers.*.self_attn.dense": "self_attn.out_proj",
    "layers.*.mlp.fc1": "feed_forward.linear1",
    "layers.*.mlp.fc2": "feed_forward.linear2",
}


def convert_phi(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a PhiForCausalLM."""
    values = values.of("Phi")
    # It would be a layer norm on each head, which ours does not have.
    check_options(values, {"qk_layernorm": [False]})
    head_size = values.optional_size("head_dim")
    config = read_llama_like(
        values,
        epsilon="layer_norm_eps",
        gated=False,
        norm="layer",
        parallel_blocks=True,
        qkv_bias=True,
        out_bias=True,
        feed_forward_bias=True,
        head_bias=True,
        **read_rotary(
            values,
            head_size=head_size or values.size("hidden_size") // values.size("num_attention_heads"),
            share=0.5,
        ),
    )
    return config, rename_llama_like(folder, weights, config, _LAYER_NAMES, _NAMES)
