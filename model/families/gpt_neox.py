"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745), which Pythia is too: parallel blocks, each with a norm of its own."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, rename, strip_prefix
from .llama import read_llama_like
from .reorder import split_thirds
from .rotary import read_rotary

_NAMES = {
    "embed_in": "decoder.embedding.token",
    "final_layer_norm": "decoder.norm",
    "embed_out": "decoder.head",
    "lm_head": "decoder.head",
}

_LAYER_NAMES = {
    "layers.*.input_layernorm": "self_attn_residual.norm",
    "layers.*.attention.query_key_value": "self_attn.in_proj",
    "layers.*.attention.dense": "self_attn.out_proj",
    "layers.*.mlp.dense_h_to_4h": "feed_forward.linear1",
    "layers.*.mlp.dense_4h_to_h": "feed_forward.linear2",
}

_CONSTANTS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""What old versions saved, though it is no weight."""


def convert_gpt_neox(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a GPTNeoXForCausalLM; each of its heads has its queries, keys and values beside each other."""
    values = values.of("GPTNeoX")
    check_options(values, {"is_decoder": [True, False]})
    bias, parallel = values.flag("attention_bias", True), values.flag("use_parallel_residual", True)
    # Its own name for the base, from before others had one.
    if not values.has("rope_parameters") and not values.has("rope_theta"):
        values = values.replaced(rope_theta=values.number("rotary_emb_base", 10000.0))
    config = read_llama_like(
        values,
        epsilon="layer_norm_eps",
        gated=False,
        norm="layer",
        num_kv_heads=None,
        head_dim=None,
        parallel_blocks=parallel,
        parallel_norms=parallel,
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=True,
        **read_rotary(values, head_size=values.size("hidden_size") // values.size("num_attention_heads"), share=0.25),
    )
    weights = {name: weight for name, weight in weights.items() if not name.endswith(_CONSTANTS)}
    # One after the other it is Llama's second norm; side by side it is the feed-forward's own.
    second = "parallel_norm" if parallel else "feed_forward_residual.norm"
    layers = _LAYER_NAMES | {"layers.*.post_attention_layernorm": second}
    weights = rename(strip_prefix(weights, "gpt_neox."), _NAMES, layers, "decoder.layers")
    for layer in range(config.num_decoder_layers):
        split_thirds(folder, weights, f"decoder.layers.{layer}.self_attn.in_proj", config.nhead)
    return config, weights
