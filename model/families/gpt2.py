"""GPT-2 (Radford et al. 2019) as Hugging Face writes it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, read_task, rename, strip_prefix
from .tokens import read_tokens

CONSTANTS = (".attn.bias", ".attn.masked_bias")
"""What old versions saved, though it is no weight."""

_SUPPORTED: dict[str, list[Any]] = {"add_cross_attention": [False], "scale_attn_by_inverse_layer_idx": [False]}

NAMES = {
    "wte": "decoder.embedding.token",
    "wpe.weight": "decoder.embedding.position",
    "ln_f": "decoder.norm",
    "lm_head": "decoder.head",
}

LAYER_NAMES = {
    "h.*.ln_1": "self_attn_residual.norm",
    "h.*.attn.c_attn": "self_attn.in_proj",
    "h.*.attn.c_proj": "self_attn.out_proj",
    "h.*.ln_2": "feed_forward_residual.norm",
    "h.*.mlp.c_fc": "feed_forward.linear1",
    "h.*.mlp.c_proj": "feed_forward.linear2",
}


def convert_gpt2(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a GPT2LMHeadModel; its projections are stored transposed."""
    del folder
    values = values.of("GPT2")
    check_options(values, _SUPPORTED)
    config = read_gpt2_like(values, ("LMHeadModel", "Model"))
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(CONSTANTS)}
    # GPT-2's Conv1D has (inputs, outputs), a linear layer (outputs, inputs).
    weights = {name: w.T.contiguous() if _is_transposed(name, w) else w for name, w in weights.items()}
    return config, rename(strip_prefix(weights, "transformer."), NAMES, LAYER_NAMES, "decoder.layers")


def read_gpt2_like(values: Fields, classes: Collection[str], **options: Any) -> TransformerConfig:
    """Read the configuration of a pre-norm decoder with learned positions.

    Args:
        values: The fields of config.json; the name of their form is what its class names begin with, e.g. "GPT2".
        classes: What they end with.
        **options: Further fields of `TransformerConfig`.
    """
    read_task(values, values.form, classes)
    return TransformerConfig(
        kind="decoder",
        vocab_size=values.vocabulary(),
        d_model=values.size("n_embd"),
        nhead=values.size("n_head"),
        num_decoder_layers=values.layers("n_layer"),
        dim_feedforward=values.optional_size("n_inner") or 4 * values.size("n_embd"),
        dropout=values.share("resid_pdrop", 0.1),
        activation=activation_by_any_name(values.text("activation_function")),
        norm_first=True,
        layer_norm_eps=values.number("layer_norm_epsilon", most=1.0),
        attention_scale=None if values.flag("scale_attn_weights", True) else 1.0,
        positions="learned",
        max_positions=values.size("n_positions"),
        scale_embeddings=False,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        head_bias=False,
        **read_tokens(values),
        **options,
    )


def _is_transposed(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
