"""GPT-Neo (Black et al. 2021) as Hugging Face writes it: GPT-2 without a scale, in whose layers a window may slide."""

from pathlib import Path
from typing import Any

from tfm.errors import ConfigError
from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import MOST_TOKENS, Fields
from .common import Weights, check_options, pack, read_task, rename, strip_prefix
from .gpt2 import NAMES
from .tokens import read_tokens

_LAYER_NAMES = {
    "h.*.ln_1": "self_attn_residual.norm",
    "h.*.attn.attention.in_proj": "self_attn.in_proj",
    "h.*.attn.attention.out_proj": "self_attn.out_proj",
    "h.*.ln_2": "feed_forward_residual.norm",
    "h.*.mlp.c_fc": "feed_forward.linear1",
    "h.*.mlp.c_proj": "feed_forward.linear2",
}

_CONSTANTS = (".attn.attention.bias", ".attn.attention.masked_bias")
"""What old versions saved, though it is no weight."""


def convert_gpt_neo(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a GPTNeoForCausalLM."""
    values = values.of("GPTNeo")
    check_options(values, {})
    read_task(values, "GPTNeo", ("ForCausalLM", "Model"))
    depth = values.layers("num_layers")
    config = TransformerConfig(
        kind="decoder",
        vocab_size=values.vocabulary(),
        d_model=values.size("hidden_size"),
        nhead=values.size("num_heads"),
        num_decoder_layers=depth,
        dim_feedforward=values.optional_size("intermediate_size") or 4 * values.size("hidden_size"),
        dropout=values.share("resid_dropout", 0.0),
        activation=activation_by_any_name(values.text("activation_function", "gelu_new")),
        norm_first=True,
        layer_norm_eps=values.number("layer_norm_epsilon", 1e-5, most=1.0),
        attention_scale=1.0,  # it was trained so, says transformers' code; no configuration does
        qkv_bias=False,
        positions="learned",
        max_positions=values.size("max_position_embeddings"),
        **_windows(values, depth),
        scale_embeddings=False,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        head_bias=False,
        **read_tokens(values),
    )
    weights = {name: weight for name, weight in weights.items() if not name.endswith(_CONSTANTS)}
    weights = strip_prefix(weights, "transformer.")
    for layer in range(depth):
        place = f"h.{layer}.attn.attention"
        pack(folder, weights, [f"{place}.{part}_proj" for part in "qkv"], f"{place}.in_proj", bias=False)
    return config, rename(weights, NAMES, _LAYER_NAMES, "decoder.layers")


def _windows(values: Fields, depth: int) -> dict[str, Any]:
    """Read which layers see a window only: attention_types is a list of [kinds, how many times]."""
    told: Any = values.any("attention_types") if values.has("attention_types") else [[["global", "local"], depth // 2]]
    if not isinstance(told, list) or not all(_is_entry(entry) for entry in told):
        raise values.error("attention_types", 'a list such as [[["global", "local"], 6]]')
    slides: list[bool] = []
    for kinds, times in told:
        slides += [kind == "local" for kind in kinds] * min(times, depth)
    if len(slides) != depth:
        raise ConfigError(f"{values.source}: attention_types names {len(slides)} layers, but num_layers is {depth}")
    window = values.size("window_size", 256, most=MOST_TOKENS)
    layers = tuple(index for index, slide in enumerate(slides) if slide)
    return {"sliding_window": window, "sliding_layers": layers} if layers else {}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], list):
        return False
    return type(entry[1]) is int and entry[1] >= 0 and all(kind in ("global", "local") for kind in entry[0])
