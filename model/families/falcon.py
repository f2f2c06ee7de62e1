"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867): parallel blocks, and few or one head of keys and values."""

from pathlib import Path
from typing import Any

from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, read_task, rename, strip_prefix
from .reorder import split_groups, split_thirds
from .rotary import read_rotary
from .tokens import read_tokens

_NAMES = {"word_embeddings": "decoder.embedding.token", "ln_f": "decoder.norm", "lm_head": "decoder.head"}

_LAYER_NAMES = {
    "h.*.input_layernorm": "self_attn_residual.norm",
    "h.*.ln_attn": "self_attn_residual.norm",
    "h.*.ln_mlp": "parallel_norm",
    "h.*.post_attention_layernorm": "feed_forward_residual.norm",
    "h.*.self_attention.query_key_value": "self_attn.in_proj",
    "h.*.self_attention.dense": "self_attn.out_proj",
    "h.*.mlp.dense_h_to_4h": "feed_forward.linear1",
    "h.*.mlp.dense_4h_to_h": "feed_forward.linear2",
}


def convert_falcon(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a FalconForCausalLM of either architecture: 7B, or 40B and later, whose heads come in groups."""
    values = values.of("Falcon")
    grouped, one = values.flag("new_decoder_architecture"), values.flag("multi_query", True)
    # With ALiBi it scales the distances, too, which no other family does.
    check_options(values, {"alibi": [False]} | ({"parallel_attn": [True]} if grouped else {}))
    read_task(values, "Falcon", ("ForCausalLM", "Model"))
    heads = values.size("num_attention_heads")
    groups = values.optional_size("num_kv_heads") or heads
    config = TransformerConfig(
        kind="decoder",
        vocab_size=values.vocabulary(),
        d_model=values.size("hidden_size"),
        nhead=heads,
        num_kv_heads=groups if grouped else 1 if one else heads,
        num_decoder_layers=values.layers("num_hidden_layers"),
        dim_feedforward=values.optional_size("ffn_hidden_size") or 4 * values.size("hidden_size"),
        dropout=values.share("hidden_dropout", 0.0),
        activation=activation_by_any_name(values.text("activation", "gelu")),
        norm_first=True,
        layer_norm_eps=values.number("layer_norm_epsilon", 1e-5, most=1.0),
        **_blocks(values, grouped),
        **read_rotary(values.replaced(max_position_embeddings=values.size("max_position_embeddings", 2048))),
        scale_embeddings=False,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        head_bias=False,
        **read_tokens(values),
    )
    weights = rename(strip_prefix(weights, "transformer."), _NAMES, _LAYER_NAMES, "decoder.layers")
    for layer in range(config.num_decoder_layers):
        module = f"decoder.layers.{layer}.self_attn.in_proj"
        # Of one head of keys and values, the rows are in our order already.
        if grouped:
            split_groups(folder, weights, module, groups, heads // groups)
        elif not one:
            split_thirds(folder, weights, module, heads)
    return config, weights


def _blocks(values: Fields, grouped: bool) -> dict[str, Any]:
    """Read how attention and feed-forward stand to each other, and where there are biases."""
    parallel, bias = values.flag("parallel_attn", True), values.flag("bias")
    own = grouped and values.size("num_ln_in_parallel_attn", 2, most=2) == 2
    return {
        "parallel_blocks": parallel,
        "parallel_norms": own,
        "qkv_bias": bias,
        "out_bias": bias,
        "feed_forward_bias": bias,
    }
