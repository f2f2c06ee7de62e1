"""T5 (Raffel et al. 2020, arXiv:1910.10683), 1.0 and 1.1, as Hugging Face writes it.

T5 has relative positions and no longest sequence: `max_positions` is the config's n_positions, 512 where there is none.
"""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, pack, read_task, rename, same, take_embeddings
from .start import read_start
from .tokens import read_tokens

_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "gated-relu": "reglu",
    "gated-gelu": "geglu_tanh",  # the one name that does not mean what it says
    "gated-gelu_new": "geglu_tanh",
    "gated-silu": "swiglu",
    "gated-swish": "swiglu",
}
"""Hugging Face's `feed_forward_proj` → ours."""

_ATTENTION = {
    "layer.0.layer_norm": "self_attn_residual.norm",
    "layer.0.SelfAttention.q": "self_attn.q",
    "layer.0.SelfAttention.k": "self_attn.k",
    "layer.0.SelfAttention.v": "self_attn.v",
    "layer.0.SelfAttention.o": "self_attn.out_proj",
}

_CROSS_ATTENTION = {
    "layer.1.layer_norm": "cross_attn_residual.norm",
    "layer.1.EncDecAttention.q": "cross_attn.q_proj",
    "layer.1.EncDecAttention.k": "cross_attn.k",
    "layer.1.EncDecAttention.v": "cross_attn.v",
    "layer.1.EncDecAttention.o": "cross_attn.out_proj",
}

_FEED_FORWARD = {
    "layer_norm": "feed_forward_residual.norm",
    "DenseReluDense.wi": "feed_forward.linear1",
    "DenseReluDense.wi_0": "feed_forward.gate",
    "DenseReluDense.wi_1": "feed_forward.value",
    "DenseReluDense.wo": "feed_forward.linear2",
}

_BLOCKS = {
    "encoder": _ATTENTION | {f"layer.1.{name}": ours for name, ours in _FEED_FORWARD.items()},
    "decoder": _ATTENTION | _CROSS_ATTENTION | {f"layer.2.{name}": ours for name, ours in _FEED_FORWARD.items()},
}


def convert_t5(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a T5ForConditionalGeneration's configuration and weights to ours; a T5EncoderModel's, to an encoder's."""
    return _convert(folder, values.of("T5"), weights)


def convert_mt5(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map mT5 (Xue et al. 2021, arXiv:2010.11934): T5 1.1 in many languages, whose last state is never scaled."""
    gated = values.text("feed_forward_proj", "gated-gelu")
    return _convert(folder, values.of("MT5").replaced(scale_decoder_outputs=False, feed_forward_proj=gated), weights)


def _convert(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    decodes = any(name.startswith("decoder.") for name in weights)
    check_options(values, {"is_encoder_decoder": (True,), "is_decoder": (False,)} if decodes else {})
    read_task(values, values.form, ("ForConditionalGeneration", "WithLMHeadModel", "Model", "EncoderModel"))
    activation = values.choice("feed_forward_proj", _ACTIVATIONS, "relu")
    weights, tied = _embeddings(folder, dict(weights), decodes)
    # 1.0 scales the last state; what tells it from 1.1 has two names
    said = values.flag("tie_word_embeddings", True) if values.has("tie_word_embeddings") else True
    scales = values.flag("scale_decoder_outputs", said)
    start = values.token("pad_token_id") if "pad_token_id" in values.values else 0
    config = TransformerConfig(
        kind="encoder-decoder" if decodes else "encoder",
        vocab_size=values.vocabulary(),
        d_model=values.size("d_model"),
        nhead=values.size("num_heads"),
        head_dim=values.size("d_kv"),
        num_encoder_layers=values.layers("num_layers"),
        num_decoder_layers=values.layers("num_decoder_layers" if values.has("num_decoder_layers") else "num_layers"),
        dim_feedforward=values.size("d_ff"),
        dropout=values.share("dropout_rate", 0.1),
        activation=_ACTIVATIONS[activation],
        norm="rms",
        norm_first=True,
        layer_norm_eps=values.number("layer_norm_epsilon", 1e-6, most=1.0),
        qkv_bias=False,
        out_bias=False,
        feed_forward_bias=False,
        # T5 does not divide its scores by √H.
        attention_scale=1.0,
        positions="relative",
        max_positions=values.optional_size("n_positions") or 512,
        relative_buckets=values.size("relative_attention_num_buckets", 32),
        relative_max_distance=values.size("relative_attention_max_distance", 128),
        scale_embeddings=False,
        tie_embeddings=tied,
        head_bias=False,
        logit_scale=values.size("d_model") ** -0.5 if scales else 1.0,
        **read_tokens(values, pad_token_id=0, eos_token_id=1)
        | {"bos_token_id": read_start(folder, values, default=start)},
    )
    for side in ("encoder", "decoder") if decodes else ("encoder",):
        names = {
            f"{side}.final_layer_norm": f"{side}.norm",
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias": f"{side}.bias",
        }
        # Only the first block has the bias of positions, which all layers share.
        blocks = {f"{side}.block.*.{name}": ours for name, ours in _BLOCKS[side].items()}
        weights = rename(weights, names, blocks, f"{side}.layers")
        for layer in range(config.num_encoder_layers if side == "encoder" else config.num_decoder_layers):
            _pack_layer(folder, weights, f"{side}.layers.{layer}", activation.startswith("gated-"))
    return config, weights


def _pack_layer(folder: Path, weights: Weights, place: str, gated: bool) -> None:
    pack(folder, weights, [f"{place}.self_attn.{part}" for part in "qkv"], f"{place}.self_attn.in_proj", bias=False)
    if place.startswith("decoder."):
        pack(
            folder, weights, [f"{place}.cross_attn.{part}" for part in "kv"], f"{place}.cross_attn.kv_proj", bias=False
        )
    if gated:
        parts = [f"{place}.feed_forward.{part}" for part in ("value", "gate")]
        pack(folder, weights, parts, f"{place}.feed_forward.linear1", bias=False)


def _embeddings(folder: Path, weights: Weights, decodes: bool) -> tuple[Weights, bool]:
    """Give source, target and output embeddings our names; tell whether all three are one."""
    source, target, head = take_embeddings(folder, weights)
    # the oldest files hold a bias for cross-attention, which never had a use
    weights.pop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", None)
    weights["encoder.embedding.token.weight"] = source
    if not decodes:
        return weights, False
    if same(target, source) and same(head, source):
        return weights, True
    weights["decoder.embedding.token.weight"], weights["decoder.head.weight"] = target, head
    return weights, False
