"""StarCoder 2 (Lozhkov et al. 2024, arXiv:2402.19173): rotary and sliding, with layer norms, biases and no gate."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import MOST_TOKENS, Fields
from .common import Weights
from .llama import LAYER_NAMES, read_llama_like, rename_llama_like

_LAYER_NAMES = LAYER_NAMES | {
    "layers.*.mlp.c_fc": "feed_forward.linear1",
    "layers.*.mlp.c_proj": "feed_forward.linear2",
}


def convert_starcoder2(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a Starcoder2ForCausalLM."""
    values = values.of("Starcoder2")
    bias = values.flag("use_bias", True)
    config = read_llama_like(
        values,
        epsilon="norm_epsilon",
        gated=False,
        tied=True,
        norm="layer",
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=bias,
        sliding_window=values.optional_size("sliding_window", most=MOST_TOKENS),
    )
    return config, rename_llama_like(folder, weights, config, _LAYER_NAMES)
