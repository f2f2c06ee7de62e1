"""Llama (Touvron et al. 2023), and what the families that descend from it share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm.errors import ConfigError

from ..config import TransformerConfig
from .common import Weights, check_options, pack, read_activation, read_task, rename, required_keys, strip_prefix
from .rotary import read_rotary
from .tokens import read_tokens

NAMES = {"embed_tokens": "decoder.embedding.token", "norm": "decoder.norm", "lm_head": "decoder.head"}

LAYER_NAMES = {
    "layers.*.input_layernorm": "self_attn_residual.norm",
    "layers.*.self_attn.q_proj": "self_attn.q_proj",
    "layers.*.self_attn.k_proj": "self_attn.k_proj",
    "layers.*.self_attn.v_proj": "self_attn.v_proj",
    "layers.*.self_attn.o_proj": "self_attn.out_proj",
    "layers.*.self_attn.q_norm": "self_attn.q_norm",
    "layers.*.self_attn.k_norm": "self_attn.k_norm",
    "layers.*.post_attention_layernorm": "feed_forward_residual.norm",
    "layers.*.mlp.up_proj": "feed_forward.up_proj",
    "layers.*.mlp.gate_proj": "feed_forward.gate_proj",
    "layers.*.mlp.down_proj": "feed_forward.linear2",
}

_GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu", "sigmoid": "glu"}
"""Our activation of the gate → the feed-forward's."""


def convert_llama(folder: Path, values: dict[str, Any], weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a LlamaForCausalLM, which SmolLM2 and many others are too."""
    bias = bool(values.get("attention_bias"))
    config = read_llama_like(
        "Llama",
        values,
        qkv_bias=bias,
        out_bias=bias,
        feed_forward_bias=bool(values.get("mlp_bias")),
    )
    return config, rename_llama_like(folder, weights, config)


def read_llama_like(
    family: str, values: Mapping[str, Any], *, activation: str = "hidden_act", tied: bool = False, **options: Any
) -> TransformerConfig:
    """Read the configuration of a pre-norm decoder with RMS norms, rotary positions and a gated feed-forward.

    Args:
        family: What its class names begin with, e.g. "Llama".
        values: The values of config.json.
        activation: Key of the gate's activation.
        tied: Whether embeddings are tied where config.json does not say.
        **options: Further fields of `TransformerConfig`.
    """
    check_options(family, values, {})
    read_task(values, family, ("ForCausalLM", "Model"))
    with required_keys(family):
        ours = read_activation(values[activation])
        if ours not in _GATED:
            raise ConfigError(f"{family} with {activation} = {values[activation]!r} is not supported")
        fields: dict[str, Any] = {
            "vocab_size": values["vocab_size"],
            "d_model": values["hidden_size"],
            "nhead": values["num_attention_heads"],
            "num_kv_heads": values.get("num_key_value_heads"),
            "head_dim": values.get("head_dim"),
            "num_decoder_layers": values["num_hidden_layers"],
            "dim_feedforward": values["intermediate_size"],
            "activation": _GATED[ours],
            "layer_norm_eps": values["rms_norm_eps"],
            **read_rotary(family, values),
        }
    fields |= {
        "dropout": 0.0,
        "norm": "rms",
        "norm_first": True,
        "qkv_bias": False,
        "out_bias": False,
        "feed_forward_bias": False,
        "scale_embeddings": False,
        "tie_embeddings": values.get("tie_word_embeddings", tied),
        "head_bias": False,
        **read_tokens(values),
    }
    return TransformerConfig(kind="decoder", **(fields | options))


def rename_llama_like(
    folder: Path, weights: Weights, config: TransformerConfig, layer_names: Mapping[str, str] = LAYER_NAMES
) -> Weights:
    """Give the weights our names, queries, keys and values packed, and the gated half of the feed-forward."""
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(".rotary_emb.inv_freq")}
    weights = rename(strip_prefix(weights, "model."), NAMES, layer_names, "decoder.layers")
    for layer in range(config.num_decoder_layers):
        attention, feed_forward = f"decoder.layers.{layer}.self_attn", f"decoder.layers.{layer}.feed_forward"
        parts = [f"{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj")]
        pack(folder, weights, parts, f"{attention}.in_proj", bias=config.qkv_bias)
        parts = [f"{feed_forward}.{part}" for part in ("up_proj", "gate_proj")]
        pack(folder, weights, parts, f"{feed_forward}.linear1", bias=config.feed_forward_bias)
    return weights


def read_sliding(family: str, values: Mapping[str, Any], *, default: list[bool]) -> dict[str, Any]:
    """Read which layers see a window only: `layer_types` where there is one, else `default`.

    Returns:
        Fields of `TransformerConfig`: sliding_window and sliding_layers, or none where no layer slides.
    """
    slides = default
    if values.get("layer_types") is not None:
        kinds = {"sliding_attention": True, "full_attention": False}
        types = values["layer_types"]
        if not isinstance(types, list) or any(kind not in kinds for kind in types) or len(types) != len(default):
            raise ConfigError(
                f"{family} with layer_types = {types!r} is not supported; expected one of {', '.join(kinds)} for each "
                f"of {len(default)} layers"
            )
        slides = [kinds[kind] for kind in types]
    if not any(slides):
        return {}
    if values.get("sliding_window") is None:
        raise ConfigError(f"{family} with sliding layers needs a sliding_window, which this configuration lacks")
    layers = None if all(slides) else tuple(index for index, slide in enumerate(slides) if slide)
    return {"sliding_window": values["sliding_window"], "sliding_layers": layers}
