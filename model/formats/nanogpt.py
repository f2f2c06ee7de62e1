"""nanoGPT's checkpoints: `{"model", "model_args", …}` as its train.py saves them."""

from pathlib import Path
from typing import Any

from ..config import TransformerConfig
from ..families.common import Weights, rename
from ..fields import Fields

_NAMES = {
    "transformer.wte": "decoder.embedding.token",
    "transformer.wpe.weight": "decoder.embedding.position",
    "transformer.ln_f": "decoder.norm",
    "lm_head": "decoder.head",
}

_LAYER = {
    "transformer.h.*.ln_1": "self_attn_residual.norm",
    "transformer.h.*.attn.c_attn": "self_attn.in_proj",
    "transformer.h.*.attn.c_proj": "self_attn.out_proj",
    "transformer.h.*.ln_2": "feed_forward_residual.norm",
    "transformer.h.*.mlp.c_fc": "feed_forward.linear1",
    "transformer.h.*.mlp.c_proj": "feed_forward.linear2",
}

_FIELDS = "n_layer n_head n_embd block_size bias vocab_size dropout"


def convert_nanogpt(file: Path, arguments: dict[str, Any], weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map nanoGPT's GPT; `arguments` are its model_args. Its activation is the exact GELU, since June 2023."""
    values = Fields(file, "nanoGPT", arguments)
    values.refuse_unknown(_FIELDS)
    bias = values.flag("bias", True)
    config = TransformerConfig(
        kind="decoder",
        vocab_size=values.vocabulary(),
        d_model=values.size("n_embd"),
        nhead=values.size("n_head"),
        num_decoder_layers=values.layers("n_layer"),
        dim_feedforward=4 * values.size("n_embd"),
        dropout=values.share("dropout", 0.0),
        activation="gelu",
        norm_first=True,
        norm_bias=bias,
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=bias,
        positions="learned",
        max_positions=values.size("block_size"),
        scale_embeddings=False,
        tie_embeddings=True,
        head_bias=False,
    )
    masks = {f"transformer.h.{layer}.attn.bias" for layer in range(config.num_decoder_layers)}  # the causal mask
    weights = {name: tensor for name, tensor in weights.items() if name not in masks}
    return config, rename(weights, _NAMES, _LAYER, "decoder.layers")
