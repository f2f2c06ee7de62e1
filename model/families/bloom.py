"""BLOOM (Scao et al. 2022, arXiv:2211.05100): ALiBi, and a norm on the embeddings."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, read_task, rename, strip_prefix
from .reorder import split_thirds
from .tokens import read_tokens

_NAMES = {
    "word_embeddings": "decoder.embedding.token",
    "word_embeddings_layernorm": "decoder.embedding.norm",
    "ln_f": "decoder.norm",
    "lm_head": "decoder.head",
}

_LAYER_NAMES = {
    "h.*.input_layernorm": "self_attn_residual.norm",
    "h.*.self_attention.query_key_value": "self_attn.in_proj",
    "h.*.self_attention.dense": "self_attn.out_proj",
    "h.*.post_attention_layernorm": "feed_forward_residual.norm",
    "h.*.mlp.dense_h_to_4h": "feed_forward.linear1",
    "h.*.mlp.dense_4h_to_h": "feed_forward.linear2",
}

_LONGEST = 2048
"""It was trained at; its configuration need not say."""


def convert_bloom(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a BloomForCausalLM; each of its heads has its queries, keys and values beside each other."""
    values = values.of("Bloom")
    check_options(values, {"apply_residual_connection_post_layernorm": [False]})
    read_task(values, "Bloom", ("ForCausalLM", "Model"))
    width = values.size("n_embed" if values.has("n_embed") else "hidden_size")
    config = TransformerConfig(
        kind="decoder",
        vocab_size=values.vocabulary(),
        d_model=width,
        nhead=values.size("num_attention_heads" if values.has("num_attention_heads") else "n_head"),
        num_decoder_layers=values.layers("num_hidden_layers" if values.has("num_hidden_layers") else "n_layer"),
        dim_feedforward=4 * width,
        dropout=values.share("hidden_dropout", 0.0),
        # In transformers' code, not in the configuration.
        activation="gelu_tanh",
        norm_first=True,
        layer_norm_eps=values.number("layer_norm_epsilon", 1e-5, most=1.0),
        positions="alibi",
        max_positions=values.optional_size("seq_length") or _LONGEST,
        scale_embeddings=False,
        embedding_norm=True,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        head_bias=False,
        **read_tokens(values),
    )
    weights = rename(strip_prefix(weights, "transformer."), _NAMES, _LAYER_NAMES, "decoder.layers")
    # ALiBi has no table: that of the slopes follows from the number of heads.
    for layer in range(config.num_decoder_layers):
        split_thirds(folder, weights, f"decoder.layers.{layer}.self_attn.in_proj", config.nhead)
    return config, weights
