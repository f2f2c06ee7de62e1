"""OLMo (Groeneveld et al. 2024, arXiv:2402.00838): Llama with layer norms that have no weights."""

from pathlib import Path

import torch

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options
from .llama import read_llama_like, rename_llama_like


def convert_olmo(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an OlmoForCausalLM."""
    # Its ε is in transformers' code, not in the configuration.
    values = values.of("Olmo").replaced(layer_norm_eps=1e-5)
    # It would clip queries, keys and values, which ours does not.
    check_options(values, {"clip_qkv": []})
    bias = values.flag("attention_bias")
    config = read_llama_like(values, epsilon="layer_norm_eps", norm="layer", qkv_bias=bias, out_bias=bias)
    weights = rename_llama_like(folder, weights, config)
    # A norm without weights is one that multiplies by 1 and adds 0. As wide as the embedding is, not as the
    # configuration says before anything has been compared with it.
    embedding = weights.get("decoder.embedding.token.weight")
    width = embedding.size(-1) if embedding is not None and embedding.ndim else 0
    layers = [f"decoder.layers.{layer}" for layer in range(config.num_decoder_layers)]
    parts = [f"{layer}.{part}_residual.norm" for layer in layers for part in ("self_attn", "feed_forward")]
    for norm in ["decoder.norm", *parts]:
        weights[f"{norm}.weight"], weights[f"{norm}.bias"] = torch.ones(width), torch.zeros(width)
    return config, weights
