"""Llama (Touvron et al. 2023), and what the families that descend from it share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm.errors import ConfigError, NotNativeError
from tfm.ops import activation_by_any_name, gated_by, is_gated

from ..config import TransformerConfig
from ..fields import MOST_TOKENS, Fields, shown
from .common import Weights, check_options, pack, read_task, rename, strip_prefix
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


def convert_llama(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a LlamaForCausalLM, which SmolLM2 and many others are too."""
    values = values.of("Llama")
    bias = values.flag("attention_bias")
    config = read_llama_like(values, qkv_bias=bias, out_bias=bias, feed_forward_bias=values.flag("mlp_bias"))
    return config, rename_llama_like(folder, weights, config)


def read_llama_like(
    values: Fields,
    *,
    activation: str = "hidden_act",
    epsilon: str = "rms_norm_eps",
    gated: bool = True,
    tied: bool = False,
    **options: Any,
) -> TransformerConfig:
    """Read the configuration of a pre-norm decoder with RMS norms, rotary positions and a gated feed-forward.

    Args:
        values: The fields of config.json; the name of their form is what its class names begin with, e.g. "Llama".
        activation: Key of the gate's activation, or of the only one.
        epsilon: Key of the norms' ε.
        gated: Whether that is a gate's.
        tied: Whether embeddings are tied where config.json does not say.
        **options: Further fields of `TransformerConfig`, in the place of what is read here.
    """
    check_options(values, {})
    read_task(values, values.form, ("ForCausalLM", "Model"))
    plain = activation_by_any_name(values.text(activation))
    name = gated_by(plain) if gated else plain
    if name is None:
        raise NotNativeError(f"{values.form} with {activation} = {shown(values.any(activation))} is not supported")
    fields: dict[str, Any] = {
        "vocab_size": values.vocabulary(),
        "d_model": values.size("hidden_size"),
        "nhead": values.size("num_attention_heads"),
        "num_kv_heads": values.optional_size("num_key_value_heads"),
        "head_dim": values.optional_size("head_dim"),
        "num_decoder_layers": values.layers("num_hidden_layers"),
        "dim_feedforward": values.size("intermediate_size"),
        "activation": name,
        "layer_norm_eps": values.number(epsilon, most=1.0),
        **({} if "positions" in options else read_rotary(values)),
        "dropout": 0.0,
        "norm": "rms",
        "norm_first": True,
        "qkv_bias": False,
        "out_bias": False,
        "feed_forward_bias": False,
        "scale_embeddings": False,
        "tie_embeddings": values.flag("tie_word_embeddings", tied),
        "head_bias": False,
        **read_tokens(values),
    }
    return TransformerConfig(kind="decoder", **(fields | options))


def rename_llama_like(
    folder: Path,
    weights: Weights,
    config: TransformerConfig,
    layer_names: Mapping[str, str] = LAYER_NAMES,
    names: Mapping[str, str] = NAMES,
) -> Weights:
    """Give the weights our names, queries, keys and values packed, and the gated half of the feed-forward."""
    # Older versions saved these, though the configuration says all of them.
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(".rotary_emb.inv_freq")}
    weights = rename(strip_prefix(weights, "model."), names, layer_names, "decoder.layers")
    for layer in range(config.num_decoder_layers):
        attention, feed_forward = f"decoder.layers.{layer}.self_attn", f"decoder.layers.{layer}.feed_forward"
        parts = [f"{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj")]
        pack(folder, weights, parts, f"{attention}.in_proj", bias=config.qkv_bias)
        if not is_gated(config.activation):
            continue
        # Value before gate, as `FeedForward` cuts them.
        parts = [f"{feed_forward}.{part}" for part in ("up_proj", "gate_proj")]
        pack(folder, weights, parts, f"{feed_forward}.linear1", bias=config.feed_forward_bias)
    return weights


def read_sliding(values: Fields, *, default: list[bool]) -> dict[str, Any]:
    """Read which layers see a window only, by `layer_types` or else `default`: fields of ours, if any does."""
    slides = _listed(values, len(default)) if values.has("layer_types") else default
    if not any(slides):
        return {}
    window = values.optional_size("sliding_window", most=MOST_TOKENS)
    if window is None:
        raise ConfigError(f"{values.form} with sliding layers needs a sliding_window, which this configuration lacks")
    layers = None if all(slides) else tuple(index for index, slide in enumerate(slides) if slide)
    return {"sliding_window": window, "sliding_layers": layers}


def _listed(values: Fields, depth: int) -> list[bool]:
    kinds = {"sliding_attention": True, "full_attention": False}
    types = values.texts("layer_types")
    if any(kind not in kinds for kind in types) or len(types) != depth:
        raise NotNativeError(
            f"{values.source}: {values.form} with layer_types = {shown(types)} is not supported; expected one of "
            f"{', '.join(kinds)} for each of {depth} layers"
        )
    return [kinds[kind] for kind in types]
