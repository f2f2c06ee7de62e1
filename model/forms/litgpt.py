"""litgpt's checkpoints: `lit_model.pth` beside `model_config.yaml`."""

import math
from pathlib import Path
from typing import Any

import torch

from tfm.errors import CheckpointError, ConfigError

from ..config import RotaryScaling, TransformerConfig
from ..families.common import Weights, pack, rename, required_keys
from .fields import check_fields
from .llama import halves

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


def is_litgpt(weights: Weights) -> bool:
    """Whether the weights have litgpt's names."""
    return "transformer.h.0.norm_1.weight" in weights and "transformer.wte.weight" in weights


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of plain values.

    Raises:
        CheckpointError: It is missing or none, or the package that reads YAML is.
    """
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise CheckpointError(f"reading {path} needs the package PyYAML: pip install pyyaml") from error
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is missing or not YAML of plain values: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not the fields of litgpt's Config")
    return values


def convert_litgpt(file: Path, values: dict[str, Any], weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map litgpt's GPT: Llama's kind, and others without experts whose blocks ours can say."""
    check_fields(file, "litgpt", values, _FIELDS)
    values = _DEFAULTS | {key: value for key, value in values.items() if value is not None}
    _refuse(file, values)
    gelu, mlp, norm = values["gelu_approximate"], values["mlp_class_name"], values["norm_class_name"]
    with required_keys("litgpt"):
        width, heads, depth = values["n_embd"], values["n_head"], values["n_layer"]
        size = values.get("head_size") or width // heads
        slides = values.get("sliding_window_indices") or [1] * depth
        window = values.get("sliding_window_size") if any(slides[:depth]) else None
        bias, scalar = bool(values["bias"]), values.get("attention_scores_scalar")
        config = TransformerConfig(
            kind="decoder",
            vocab_size=len(weights["transformer.wte.weight"]),  # padded
            d_model=width,
            nhead=heads,
            num_kv_heads=values.get("n_query_groups"),
            head_dim=size,
            num_decoder_layers=depth,
            dim_feedforward=values.get("intermediate_size") or 4 * width,
            dropout=0.0,
            activation=_ACTIVATIONS.get((mlp, gelu), "swiglu"),
            norm="rms" if norm == "RMSNorm" else "layer",
            norm_first=True,
            sandwich_norm=bool(values.get("post_attention_norm")),
            parallel_blocks=bool(values["parallel_residual"]),
            layer_norm_eps=values["norm_eps"],
            qkv_bias=bias or bool(values.get("attn_bias")),
            out_bias=bias,
            feed_forward_bias=bias,
            qk_norm=bool(values.get("norm_qk")),
            attention_scale=None if scalar is None else 1.0 / math.sqrt(scalar),
            attention_softcap=values.get("attention_logit_softcapping"),
            sliding_window=window,
            sliding_layers=None
            if window is None or all(slides[:depth])
            else tuple(layer for layer, slide in enumerate(slides[:depth]) if slide),
            positions="rotary",
            max_positions=values["block_size"],
            rotary_base=float(values["rope_base"]),
            rotary_dim=int(values["rotary_percentage"] * size),
            rotary_scaling=_scaling(file, values),
            scale_embeddings=bool(values.get("scale_embeddings")),
            head_bias=bool(values.get("lm_head_bias")),
            logit_softcap=values.get("final_logit_softcapping"),
        )
    layers = {f"transformer.h.*.{name}": ours for name, ours in _LAYER.items()}
    weights = rename(weights, _NAMES, layers, "decoder.layers")
    for layer in range(depth):
        _attention(file, config, weights, f"decoder.layers.{layer}.self_attn", values)
        if mlp != "GptNeoxMLP":
            ffn = f"decoder.layers.{layer}.feed_forward"
            pack(file, weights, [f"{ffn}.value", f"{ffn}.gate"], f"{ffn}.linear1", bias=bias)
    if norm == "RMSNorm" and "Gemma" in values["name"]:  # whose norms multiply by 1 + weight
        weights = {name: tensor + 1 if _is_norm(name) else tensor for name, tensor in weights.items()}
    return config, weights


def _is_norm(name: str) -> bool:
    return name.endswith(("norm.weight", "inner.weight"))


def _refuse(file: Path, values: dict[str, Any]) -> None:
    norm, mlp = values["norm_class_name"], values["mlp_class_name"]
    faults = {
        f"mlp_class_name = {mlp!r}": mlp not in ("GptNeoxMLP", "LLaMAMLP", "GemmaMLP"),
        f"norm_class_name = {norm!r}": norm not in ("LayerNorm", "RMSNorm"),
        f"gelu_approximate = {values['gelu_approximate']!r}": values["gelu_approximate"] not in ("none", "tanh"),
        "parallel_residual and a norm for each of the blocks": values["parallel_residual"]
        and not values.get("shared_attention_norm"),
        "norms without weights (OLMo)": norm == "LayerNorm" and "OLMo" in str(values["name"]),
        "norm_1 or norm_2 left out": not (values["norm_1"] and values["norm_2"]),
        "norm_qk by LayerNorm or as OLMo 2 has it": values.get("norm_qk")
        and (norm != "RMSNorm" or values["norm_qk_type"] != "default"),
        "a norm after only one of the blocks": bool(values.get("post_attention_norm"))
        != bool(values.get("post_mlp_norm")),
    }
    for fault, present in faults.items():
        if present:
            raise ConfigError(f"{file}: litgpt with {fault} is not supported")


def _scaling(file: Path, values: dict[str, Any]) -> RotaryScaling | None:
    adjusted, ratio = dict(values.get("rope_adjustments") or {}), float(values["rope_condense_ratio"])
    if not adjusted:
        return None if ratio == 1.0 else RotaryScaling(kind="linear", factor=ratio, original_max_positions=1)
    known = "factor low_freq_factor high_freq_factor original_max_seq_len"
    check_fields(file, "litgpt's rope_adjustments", adjusted, known)
    if ratio != 1.0:
        raise ConfigError(f"{file}: litgpt with both rope_condense_ratio and rope_adjustments is not supported")
    with required_keys("litgpt"):
        if len(adjusted) == 1:
            return RotaryScaling(kind="linear", factor=float(adjusted["factor"]), original_max_positions=1)
        return RotaryScaling(
            kind="llama3",
            factor=float(adjusted["factor"]),
            low_frequency_factor=float(adjusted["low_freq_factor"]),
            high_frequency_factor=float(adjusted["high_freq_factor"]),
            original_max_positions=adjusted["original_max_seq_len"],
        )


def _attention(file: Path, config: TransformerConfig, weights: Weights, attention: str, values: dict[str, Any]) -> None:
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
            grouped = weights.pop(old).reshape(groups, rows // groups, *given.shape[1:])
            parts = [share.flatten(0, 1) for share in torch.split(grouped, [own // groups, size, size], dim=1)]
        if values.get("rope_interleave"):
            parts[0] = halves(file, name, parts[0], config.nhead, config.rotary_size)
            parts[1] = halves(file, name, parts[1], groups, config.rotary_size)
        if name not in weights or values.get("rope_interleave"):
            weights[name] = torch.cat(parts)
