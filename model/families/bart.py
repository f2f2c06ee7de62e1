"""BART (Lewis et al. 2020, arXiv:1910.13461) as Hugging Face writes it; Marian differs from it in little (`marian`)."""

from pathlib import Path

from tfm.errors import NotNativeError
from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields
from .common import (
    Weights,
    check_options,
    pack,
    read_task,
    rename,
    same,
    strip_prefix,
    take_embeddings,
)
from .reorder import skip_rows
from .start import read_start
from .tokens import read_tokens

_LAYER = {
    "self_attn.q_proj": "self_attn.q",
    "self_attn.k_proj": "self_attn.k",
    "self_attn.v_proj": "self_attn.v",
    "self_attn.out_proj": "self_attn.out_proj",
    "self_attn_layer_norm": "self_attn_residual.norm",
    "encoder_attn.q_proj": "cross_attn.q_proj",
    "encoder_attn.k_proj": "cross_attn.k",
    "encoder_attn.v_proj": "cross_attn.v",
    "encoder_attn.out_proj": "cross_attn.out_proj",
    "encoder_attn_layer_norm": "cross_attn_residual.norm",
    "fc1": "feed_forward.linear1",
    "fc2": "feed_forward.linear2",
    "final_layer_norm": "feed_forward_residual.norm",
}

OFFSET = 2
"""Rows of a table of positions before that of position 0."""

TABLES = ("encoder.embedding.position", "decoder.embedding.position")
"""The tables of positions, under our names."""


def convert_bart(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a BartForConditionalGeneration's configuration and weights to ours."""
    values = values.of("BART")
    check_options(values, {"normalize_embedding": (True,)})
    read_task(values, "Bart", ("ForConditionalGeneration", "Model"))
    config, weights = convert_like_bart(folder, values, weights, embedding_norm=True)
    skip_rows(weights, TABLES, OFFSET)
    return config, weights


def convert_like_bart(
    folder: Path, values: Fields, weights: Weights, *, embedding_norm: bool, norm_first: bool = False
) -> tuple[TransformerConfig, Weights]:
    """Map BART or one of its kind, all but its positions."""
    weights = _name(folder, weights)
    config = _config(folder, values, weights, embedding_norm=embedding_norm, norm_first=norm_first)
    for side, depth in {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}.items():
        for layer in range(depth):
            place = f"{side}.layers.{layer}"
            pack(folder, weights, [f"{place}.self_attn.{part}" for part in "qkv"], f"{place}.self_attn.in_proj")
            if side == "decoder":
                pack(folder, weights, [f"{place}.cross_attn.{part}" for part in "kv"], f"{place}.cross_attn.kv_proj")
    return config, weights


def _config(
    folder: Path, values: Fields, weights: Weights, *, embedding_norm: bool, norm_first: bool
) -> TransformerConfig:
    check_options(
        values,
        {"normalize_before": (norm_first,), "add_final_layer_norm": (norm_first,)}
        | {"is_decoder": (False,), "is_encoder_decoder": (True,)},
    )
    for size in ("ffn_dim", "attention_heads"):
        one, other = values.size(f"encoder_{size}"), values.size(f"decoder_{size}")
        if one != other:
            raise NotNativeError(
                f"{values.form} with encoder_{size} = {one} and decoder_{size} = {other} is not supported; expected "
                "the same on both sides"
            )
    # `_name` has left a table of the target only where not all embeddings are one.
    target = weights.get("decoder.embedding.token.weight")
    activation = values.text("activation_function", "gelu")
    start = read_start(folder, values, default=values.token("bos_token_id"))
    return TransformerConfig(
        kind="encoder-decoder",
        vocab_size=values.vocabulary(),
        tgt_vocab_size=None if target is None or target.ndim == 0 else target.size(0),
        d_model=values.size("d_model"),
        nhead=values.size("encoder_attention_heads"),
        num_encoder_layers=values.layers("encoder_layers"),
        num_decoder_layers=values.layers("decoder_layers"),
        dim_feedforward=values.size("encoder_ffn_dim"),
        dropout=values.share("dropout", 0.1),
        activation=activation_by_any_name(activation),
        norm_first=norm_first,
        positions="learned",
        max_positions=values.size("max_position_embeddings"),
        scale_embeddings=values.flag("scale_embedding"),
        embedding_norm=embedding_norm,
        tie_embeddings="decoder.head.weight" not in weights,
        head_bias="decoder.head.bias" in weights,
        **read_tokens(values) | {"bos_token_id": start},
    )


def _name(folder: Path, weights: Weights) -> Weights:
    """Give the weights our names; an embedding that serves twice appears once."""
    weights = strip_prefix(weights, "model.")
    source, target, head = take_embeddings(folder, weights)
    bias = weights.pop("final_logits_bias", None)
    for side in ("encoder", "decoder"):
        names = {
            f"{side}.embed_positions.weight": f"{side}.embedding.position",
            f"{side}.layernorm_embedding": f"{side}.embedding.norm",
            f"{side}.layer_norm": f"{side}.norm",
        }
        layers = {f"{side}.layers.*.{name}": ours for name, ours in _LAYER.items()}
        weights = rename(weights, names, layers, f"{side}.layers")
    weights["encoder.embedding.token.weight"] = source
    if not (same(source, target) and same(target, head)):
        weights["decoder.embedding.token.weight"] = target
    if not same(target, head):
        weights["decoder.head.weight"] = head
    # Zeros need no bias. One without any numbers is kept, for the loader to refuse.
    if bias is not None and (bias.any() or not bias.numel()):
        weights["decoder.head.bias"] = bias.flatten()
    return weights
