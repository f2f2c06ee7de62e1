"""BERT (Devlin et al. 2019) as Hugging Face writes it, and sentence-transformers on top of it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm.errors import CheckpointError, ConfigError

from ..config import TransformerConfig
from .pooling import read_pooling

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Hugging Face's `hidden_act` → ours."""

_LAYER = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "feed_forward.linear1",
    "output.dense": "feed_forward.linear2",
    "output.LayerNorm": "norm2",
}

_EMBEDDINGS = {
    "word_embeddings.weight": "token.weight",
    "position_embeddings.weight": "position",
    "token_type_embeddings.weight": "segment.weight",
    "LayerNorm.weight": "norm.weight",
    "LayerNorm.bias": "norm.bias",
}


def convert_bert(
    folder: Path, values: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Map a BertModel's configuration and weights to ours.

    Sentence-transformers' pooling, where modules.json asks for it, takes the place of BERT's own pooler.
    """
    if values.get("is_decoder") or values.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError("only BERT encoders with absolute positions are supported")
    pooling = read_pooling(folder)
    weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    weights.pop("embeddings.position_ids", None)  # a constant that old versions saved
    if pooling:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    try:
        activation = str(values["hidden_act"])
        config = TransformerConfig(
            kind="encoder",
            vocab_size=values["vocab_size"],
            d_model=values["hidden_size"],
            nhead=values["num_attention_heads"],
            num_encoder_layers=values["num_hidden_layers"],
            dim_feedforward=values["intermediate_size"],
            dropout=values.get("hidden_dropout_prob", 0.1),
            activation=_ACTIVATIONS.get(activation, activation),
            layer_norm_eps=values.get("layer_norm_eps", 1e-12),
            positions="learned",
            max_positions=values["max_position_embeddings"],
            scale_embeddings=False,
            type_vocab_size=values["type_vocab_size"],
            embedding_norm=True,
            pooler="pooler.dense.weight" in weights,
            pad_token_id=values.get("pad_token_id"),
            **pooling,
        )
    except KeyError as error:
        raise ConfigError(f"a BERT configuration needs {error.args[0]!r}, which this one lacks") from error
    mapped = {_rename(name): tensor for name, tensor in weights.items()}
    for layer in range(config.num_encoder_layers):
        _pack(folder, mapped, f"encoder.layers.{layer}.self_attn")
    return config, mapped


def _rename(name: str) -> str:
    if name.startswith("embeddings."):
        part = name.removeprefix("embeddings.")
        return f"encoder.embedding.{_EMBEDDINGS.get(part, part)}"
    if name.startswith("encoder.layer."):
        layer, _, part = name.removeprefix("encoder.layer.").partition(".")
        module, _, kind = part.rpartition(".")
        module = module.replace("attention.self.", "self_attn.")
        return f"encoder.layers.{layer}.{_LAYER.get(module, module)}.{kind}"
    return name.replace("pooler.dense.", "pooler.")


def _pack(folder: Path, weights: dict[str, Tensor], attention: str) -> None:
    """Replace the projections of query, key and value by the one that our attention has."""
    for kind in ("weight", "bias"):
        names = [f"{attention}.{part}.{kind}" for part in ("query", "key", "value")]
        absent = [name for name in names if name not in weights]
        if absent:
            raise CheckpointError(
                f"{folder}: the weights lack {absent[0]} (an attention without {kind}s is not supported)"
            )
        parts = [weights.pop(name) for name in names]
        if len({part.shape for part in parts}) > 1 or parts[0].ndim == 0:
            raise CheckpointError(
                f"{folder}: {', '.join(names)} differ in shape: {[tuple(part.shape) for part in parts]}"
            )
        weights[f"{attention}.in_proj.{kind}"] = torch.cat(parts)
