"""OPT (Zhang et al. 2022, arXiv:2205.01068) as Hugging Face writes it."""

from pathlib import Path

from tfm.errors import NotNativeError
from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, pack, read_task, rename, strip_prefix
from .reorder import skip_rows
from .tokens import read_tokens

_NAMES = {
    "decoder.embed_tokens": "decoder.embedding.token",
    "decoder.embed_positions.weight": "decoder.embedding.position",
    "decoder.final_layer_norm": "decoder.norm",
    "lm_head": "decoder.head",
}

_LAYER_NAMES = {
    "decoder.layers.*.self_attn_layer_norm": "self_attn_residual.norm",
    "decoder.layers.*.self_attn.out_proj": "self_attn.out_proj",
    "decoder.layers.*.final_layer_norm": "feed_forward_residual.norm",
    "decoder.layers.*.fc1": "feed_forward.linear1",
    "decoder.layers.*.fc2": "feed_forward.linear2",
}

_OFFSET = 2
"""Rows of the table of positions before that of position 0."""


def convert_opt(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an OPTForCausalLM; one whose embeddings are narrower than its layers (opt-350m) is refused."""
    values = values.of("OPT")
    check_options(values, {"layer_norm_elementwise_affine": [True]})
    read_task(values, "OPT", ("ForCausalLM", "Model"))
    width, first = values.size("hidden_size"), values.flag("do_layer_norm_before", True)
    if (narrow := values.optional_size("word_embed_proj_dim")) not in (None, width):
        raise NotNativeError(
            f"{values.source}: OPT with word_embed_proj_dim = {narrow} and hidden_size = {width} is not "
            "supported; expected the same"
        )
    # Narrower embeddings have a projection on either side, and the output is tied behind the second.
    bias = values.flag("enable_bias", True)
    config = TransformerConfig(
        kind="decoder",
        vocab_size=values.vocabulary(),
        d_model=width,
        nhead=values.size("num_attention_heads"),
        num_decoder_layers=values.layers("num_hidden_layers"),
        dim_feedforward=values.size("ffn_dim"),
        dropout=values.share("dropout", 0.1),
        activation=activation_by_any_name(values.text("activation_function", "relu")),
        norm_first=first,
        final_norm=first and not values.flag("_remove_final_layer_norm"),
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=bias,
        positions="learned",
        max_positions=values.size("max_position_embeddings"),
        scale_embeddings=False,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        head_bias=False,
        **read_tokens(values),
    )
    # Packed before they are renamed: the three names have no place of ours.
    weights = strip_prefix(weights, "model.")
    for layer in range(config.num_decoder_layers):
        place = f"decoder.layers.{layer}.self_attn"
        pack(folder, weights, [f"{place}.{part}_proj" for part in "qkv"], f"{place}.in_proj", bias=bias)
    weights = rename(weights, _NAMES, _LAYER_NAMES, "decoder.layers")
    skip_rows(weights, ("decoder.embedding.position",), _OFFSET)
    return config, weights
