"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): pre-norm and gated, rotary, most layers see a window only."""

from pathlib import Path
from typing import Any

from tfm.errors import NotNativeError
from tfm.ops import activation_by_any_name, gated_by

from ..config import TransformerConfig
from ..fields import Fields, shown
from .bert import head_options
from .common import Weights, check_options, drop, read_task, rename, strip_prefix
from .llama import read_sliding
from .pooling import read_pooling
from .reorder import swap_halves
from .rotary import read_local_rotary

_NAMES = {
    "embeddings.tok_embeddings": "encoder.embedding.token",
    "embeddings.norm": "encoder.embedding.norm",
    "final_norm": "encoder.norm",
    "head.dense": "head.hidden",
    "decoder": "head.output",
    "classifier": "head.output",
}

_LAYER_NAMES = {
    "layers.*.attn_norm": "self_attn_residual.norm",
    "layers.*.attn.Wqkv": "self_attn.in_proj",
    "layers.*.attn.Wo": "self_attn.out_proj",
    "layers.*.mlp_norm": "feed_forward_residual.norm",
    "layers.*.mlp.Wi": "feed_forward.linear1",
    "layers.*.mlp.Wo": "feed_forward.linear2",
}

_TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")

_PRETRAINING = ("head.", "decoder.", "classifier.")


def convert_modernbert(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a ModernBertModel, or one with a head for masked tokens, sequences or tokens, as `architectures` says.

    A pretraining head is dropped where `architectures` is ModernBertModel. Sentence-transformers' pooling, where
    modules.json asks for it, takes the place of the head.
    """
    values = values.of("ModernBERT")
    check_options(values, {})
    task, pooling = read_task(values, "ModernBert", ("Model", *_TASKS)), read_pooling(folder)
    weights = strip_prefix(weights, "model.")
    # A head that is left from pretraining is nothing that either of the two runs.
    if pooling or task == "Model":
        task, weights = None, drop(weights, _PRETRAINING)
    name = gated_by(activation_by_any_name(values.text("hidden_activation", "gelu")))
    if name is None:
        raise NotNativeError(
            f"ModernBERT with hidden_activation = {shown(values.any('hidden_activation'))} is not supported"
        )
    bias = values.flag("attention_bias")
    config = TransformerConfig(
        kind="encoder",
        vocab_size=values.vocabulary(),
        d_model=values.size("hidden_size"),
        nhead=values.size("num_attention_heads"),
        num_encoder_layers=values.layers("num_hidden_layers"),
        dim_feedforward=values.size("intermediate_size"),
        dropout=values.share("mlp_dropout", 0.0),
        activation=name,
        norm_first=True,
        # The norm on the embeddings stands in its place.
        first_norm=False,
        layer_norm_eps=values.number("norm_eps", 1e-5, most=1.0),
        norm_bias=values.flag("norm_bias"),
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=values.flag("mlp_bias"),
        scale_embeddings=False,
        embedding_norm=True,
        pad_token_id=values.token("pad_token_id"),
        **_windows(values),
        **_head(task, values),
        **pooling,
    )
    # What is activated before what it multiplies, where ours has it behind.
    layers = range(config.num_encoder_layers)
    swap_halves(folder, weights, [f"layers.{layer}.mlp.Wi.{kind}" for layer in layers for kind in ("weight", "bias")])
    return config, rename(weights, _NAMES, _LAYER_NAMES, "encoder.layers")


def _windows(values: Fields) -> dict[str, Any]:
    """Read positions, and which layers see local_attention / 2 tokens to either side only."""
    every, depth = values.size("global_attn_every_n_layers", 3), values.layers("num_hidden_layers")
    # Ours counts the token itself.
    values = values.replaced(sliding_window=values.size("local_attention", 128) // 2 + 1)
    sliding = read_sliding(values, default=[layer % every != 0 for layer in range(depth)])
    rotary = read_local_rotary(
        values, whole=("global_rope_theta", 160000.0), local=("local_rope_theta", 10000.0), scales_local=True
    )
    # A base for layers that there are none of would be refused.
    if not sliding:
        del rotary["local_rotary_base"]
    return rotary | sliding


def _head(task: str | None, values: Fields) -> dict[str, Any]:
    options = head_options(task, values, two_layers="gelu")
    if not options:
        return {}
    # Both kinds of head are the same two layers, of which pretraining's has made the first.
    options["head_activation"] = activation_by_any_name(values.text("classifier_activation", "gelu"))
    options["head_hidden_bias"] = values.flag("classifier_bias")
    # Its norm is that of every head for masked tokens.
    if task == "ForMaskedLM":
        return options | {"head_bias": values.flag("decoder_bias", True)}
    options["head_norm"] = True
    if task == "ForSequenceClassification":
        options["head_pooling"] = values.choice("classifier_pooling", ("cls", "mean"), "cls")
    return options
