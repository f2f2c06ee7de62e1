"""litgpt's checkpoints: `lit_model.pth` beside `model_config.yaml`."""

import math
from pathlib import Path
from typing import Any

import torch

from tfm.errors import CheckpointError, ConfigError

from ..config import RotaryScaling, TransformerConfig
from ..families.common import Weights, pack, rename
from ..families.reorder import halves
from ..fields import MOST_TOKENS, Fields, shown

_NAMES = {
    "transformer.wte": "decoder.embedding.token",
    "transformer.ln_f": "decoder.norm",
    "lm_head": "decoder.head",
}

_LAYER = {
    "norm_1": "self_attn_residual.norm",
    "attn.qkv": "self_attn.in_proj",
    "attn.attn": "self_attn.interleaved",
    "attn.proj": "self_attn.out_proj",
    "attn.norm_q": "self_attn.q_norm",
    "attn.norm_k": "self_attn.k_norm",
    "post_attention_norm": "self_attn_residual.inner",
    "norm_2": "feed_forward_residual.norm",
    "mlp.fc": "feed_forward.linear1",
    "mlp.fc_1": "feed_forward.gate",
    "mlp.fc_2": "feed_forward.value",
    "mlp.proj": "feed_forward.linear2",
    "post_mlp_norm": "feed_forward_residual.inner",
}

_ACTIVATIONS = {
    ("GptNeoxMLP", "none"): "gelu",
    ("GptNeoxMLP", "tanh"): "gelu_tanh",
    ("GemmaMLP", "none"): "geglu",
    ("GemmaMLP", "tanh"): "geglu_tanh",
}
"""(mlp_class_name, gelu_approximate) → ours."""

_FIELDS = (
    "name hf_config block_size n_layer n_embd vocab_size padding_multiple padded_vocab_size norm_class_name "
    "norm_eps norm_qk norm_qk_type post_attention_norm post_mlp_norm parallel_residual shared_attention_norm "
    "n_head head_size n_query_groups attn_bias attention_scores_scalar sliding_window_size sliding_window_indices "
    "norm_1 norm_2 attention_logit_softcapping rope_base rotary_percentage rope_condense_ratio rope_adjustments "
    "rope_interleave intermediate_size bias mlp_class_name gelu_approximate scale_embeddings lm_head_bias "
    "final_logit_softcapping routed_scaling_factor"
)
"""Fields that are read, or have no effect on a model without experts."""

_DEFAULTS: dict[str, Any] = {
    "name": "",
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "parallel_residual": True,
    "rotary_percentage": 0.25,
    "rope_base": 10000,
    "rope_condense_ratio": 1,
    "bias": True,
    "mlp_class_name": "GptNeoxMLP",
    "gelu_approximate": "none",
    "norm_qk_type": "default",
    "norm_1": True,
    "norm_2": True,
}
"""litgpt's own, of the fields that its files may leave out."""

_MOST_YAML = 1 << 16
"""Bytes of a file of YAML."""

_MOST_BRACKETS = 100
"""In such a file: what reads them takes time by the square of how deep they nest, 10 s of 5,000."""


def is_litgpt(weights: Weights) -> bool:
    """Whether the weights have litgpt's names."""
    return "transformer.h.0.norm_1.weight" in weights and "transformer.wte.weight" in weights


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of plain values."""
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise CheckpointError(f"reading {path} needs the package PyYAML: pip install pyyaml") from error
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a plain file, and so is not read as YAML")
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MOST_YAML + 1)
        if len(content) > _MOST_YAML:
            raise CheckpointError(f"{path} is larger than {_MOST_YAML >> 10} KiB, which no Config of litgpt's is")
        text = content.decode("utf-8")
        _check_yaml(yaml, text)
        values = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} is missing or not YAML of plain values: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not the fields of litgpt's Config")
    return values


def _check_yaml(yaml: Any, text: str) -> None:
    """Look at a text before anything is made of it.

    Aliases make a small file huge in memory, and odd tags make PyYAML raise KeyError or IndexError.
    """
    if text.count("[") + text.count("{") > _MOST_BRACKETS:
        raise ValueError("it is nested too deeply")
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it refers to parts of itself")
        if getattr(event, "tag", None):
            raise ValueError(f"it asks for {shown(event.tag)}")


def convert_litgpt(
    file: Path, written: dict[str, Any], weights: Weights, source: Path | None = None
) -> tuple[TransformerConfig, Weights]:
    """Map litgpt's GPT: Llama's kind, and others without experts whose blocks ours can say.

    `written` are the fields of litgpt's Config, and `source` is their file, where it is another than the weights'.
    """
    values = Fields(file if source is None else source, "litgpt", written)
    values.refuse_unknown(_FIELDS)
    values = _with_defaults(values)
    _refuse(values)
    config = _config(file, values, weights)
    norm, mlp, bias = (values.any(name) for name in ("norm_class_name", "mlp_class_name", "bias"))
    # Renamed first: what remains is the order of rows within each layer.
    layers = {f"transformer.h.*.{name}": ours for name, ours in _LAYER.items()}
    weights = rename(weights, _NAMES, layers, "decoder.layers")
    for layer in range(config.num_decoder_layers):
        _attention(file, config, weights, f"decoder.layers.{layer}.self_attn", values.flag("rope_interleave"))
        if mlp != "GptNeoxMLP":
            ffn = f"decoder.layers.{layer}.feed_forward"
            pack(file, weights, [f"{ffn}.value", f"{ffn}.gate"], f"{ffn}.linear1", bias=bias)
    if norm == "RMSNorm" and "Gemma" in values.text("name"):  # whose norms multiply by 1 + weight
        weights = {name: tensor + 1 if _is_norm(name) else tensor for name, tensor in weights.items()}
    return config, weights


def _with_defaults(values: Fields) -> Fields:
    # null counts as absent: litgpt's own default stands.
    known = {key: value for key, value in values.values.items() if value is not None}
    return Fields(values.source, "litgpt", _DEFAULTS | known)


def _config(file: Path, values: Fields, weights: Weights) -> TransformerConfig:
    table = weights["transformer.wte.weight"]
    if table.ndim != 2:
        raise CheckpointError(f"{file}: transformer.wte.weight has {table.ndim} dimensions, not 2")
    width, heads = values.size("n_embd"), values.size("n_head")
    size = values.optional_size("head_size") or width // heads
    if size < 1:
        raise values.error("n_head", f"at most n_embd, {width}")
    bias, scalar = values.flag("bias"), values.optional_number("attention_scores_scalar")
    mlp, gelu = values.text("mlp_class_name"), values.text("gelu_approximate")
    return TransformerConfig(
        kind="decoder",
        vocab_size=len(table),  # padded
        d_model=width,
        nhead=heads,
        num_kv_heads=values.optional_size("n_query_groups"),
        head_dim=size,
        num_decoder_layers=values.layers("n_layer"),
        dim_feedforward=values.optional_size("intermediate_size") or 4 * width,
        dropout=0.0,
        activation=_ACTIVATIONS.get((mlp, gelu), "swiglu"),
        norm="rms" if values.text("norm_class_name") == "RMSNorm" else "layer",
        norm_first=True,
        sandwich_norm=values.flag("post_attention_norm"),
        parallel_blocks=values.flag("parallel_residual"),
        layer_norm_eps=values.number("norm_eps", most=1.0),
        qkv_bias=bias or values.flag("attn_bias"),
        out_bias=bias,
        feed_forward_bias=bias,
        qk_norm=values.flag("norm_qk"),
        attention_scale=None if scalar is None else 1.0 / math.sqrt(scalar),
        attention_softcap=values.optional_number("attention_logit_softcapping"),
        **_sliding(values),
        positions="rotary",
        max_positions=values.size("block_size"),
        rotary_base=values.number("rope_base"),
        rotary_dim=int(values.number("rotary_percentage", most=1.0) * size),
        rotary_scaling=_scaling(values),
        scale_embeddings=values.flag("scale_embeddings"),
        head_bias=values.flag("lm_head_bias"),
        logit_softcap=values.optional_number("final_logit_softcapping"),
    )


def _sliding(values: Fields) -> dict[str, Any]:
    """Say which layers slide: the first `n_layer` numbers of a list, or all."""
    depth = values.layers("n_layer")
    slides = (values.flags("sliding_window_indices") or [True] * depth)[:depth]
    if len(slides) < depth:
        raise values.error("sliding_window_indices", f"as many as {depth} layers")
    # A size alone says nothing where no layer slides.
    window = values.optional_size("sliding_window_size", most=MOST_TOKENS) if any(slides) else None
    if window is None or all(slides):
        return {"sliding_window": window}
    return {"sliding_window": window, "sliding_layers": tuple(layer for layer, slide in enumerate(slides) if slide)}


def _is_norm(name: str) -> bool:
    return name.endswith(("norm.weight", "inner.weight"))


def _refuse(values: Fields) -> None:
    norm, mlp, gelu, kind = (
        values.text(name) for name in ("norm_class_name", "mlp_class_name", "gelu_approximate", "norm_qk_type")
    )
    faults = {
        f"mlp_class_name = {shown(mlp)}": mlp not in ("GptNeoxMLP", "LLaMAMLP", "GemmaMLP"),
        f"norm_class_name = {shown(norm)}": norm not in ("LayerNorm", "RMSNorm"),
        f"gelu_approximate = {shown(gelu)}": gelu not in ("none", "tanh"),
        "parallel_residual and a norm for each of the blocks": values.flag("parallel_residual")
        and not values.flag("shared_attention_norm"),
        "norms without weights (OLMo)": norm == "LayerNorm" and "OLMo" in values.text("name"),
        "norm_1 or norm_2 left out": not (values.flag("norm_1") and values.flag("norm_2")),
        "norm_qk by LayerNorm or as OLMo 2 has it": values.flag("norm_qk") and (norm != "RMSNorm" or kind != "default"),
        "a norm after only one of the blocks": values.flag("post_attention_norm") != values.flag("post_mlp_norm"),
    }
    for fault, present in faults.items():
        if present:
            raise ConfigError(f"{values.source}: litgpt with {fault} is not supported")


def _scaling(values: Fields) -> RotaryScaling | None:
    adjusted = values.inner("rope_adjustments")
    ratio = values.number("rope_condense_ratio", most=1e6)
    if not adjusted.values:
        # Linear scaling does not look at the trained length, which must be 1 at least.
        return None if ratio == 1.0 else RotaryScaling(kind="linear", factor=ratio, original_max_positions=1)
    adjusted.refuse_unknown("factor low_freq_factor high_freq_factor original_max_seq_len")
    if ratio != 1.0:
        raise ConfigError(
            f"{values.source}: litgpt with both rope_condense_ratio and rope_adjustments is not supported"
        )
    factor = adjusted.number("factor", least=1.0, most=1e6)
    if len(adjusted.values) == 1:
        return RotaryScaling(kind="linear", factor=factor, original_max_positions=1)
    return RotaryScaling(
        kind="llama3",
        factor=factor,
        low_frequency_factor=adjusted.number("low_freq_factor", most=1e6),
        high_frequency_factor=adjusted.number("high_freq_factor", most=1e6),
        original_max_positions=adjusted.size("original_max_seq_len"),
    )


def _attention(file: Path, config: TransformerConfig, weights: Weights, attention: str, interleaved: bool) -> None:
    """Bring queries, keys and values into our order of rows."""
    groups, size = config.kv_heads, config.head_size
    own, rows = config.nhead * size, (config.nhead + 2 * groups) * size
    for kind in ("weight", "bias"):
        name, old = f"{attention}.in_proj.{kind}", f"{attention}.interleaved.{kind}"
        given = weights.get(name, weights.get(old))
        if given is None or given.ndim == 0 or len(given) != rows:
            continue  # the loader names what is missing or misshapen
        parts = list(torch.split(given, [own, groups * size, groups * size]))
        if old in weights:  # before 2025: per group its queries, its key, its value
            # (K, (N / K + 2) · H, …)
            grouped = weights.pop(old).reshape(groups, rows // groups, *given.shape[1:])
            parts = [share.flatten(0, 1) for share in torch.split(grouped, [own // groups, size, size], dim=1)]
        # Values do not turn, and keep their rows.
        if interleaved:
            parts[0] = halves(file, name, parts[0], config.nhead, config.rotary_size)
            parts[1] = halves(file, name, parts[1], groups, config.rotary_size)
        if name not in weights or interleaved:
            weights[name] = torch.cat(parts)
