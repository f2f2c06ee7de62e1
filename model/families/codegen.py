"""CodeGen (Nijkamp et al. 2022, arXiv:2203.13474) as Hugging Face writes it: GPT-J, packed for four devices."""

from pathlib import Path

import torch

from tfm.errors import CheckpointError

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, strip_prefix
from .gptj import drop_constants, read_gptj_like, rename_gptj_like
from .reorder import halves

_DEVICES = 4
"""It was trained on: each has its part of the queries, of the values and of the keys, one after another."""


def convert_codegen(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a CodeGenForCausalLM."""
    config = read_gptj_like(values.of("CodeGen"), rotary_dim=64)
    weights = strip_prefix(drop_constants(weights), "transformer.")
    for layer in range(config.num_decoder_layers):
        name = f"h.{layer}.attn.qkv_proj.weight"
        if name not in weights:
            raise CheckpointError(f"{folder}: the weights lack {name}")
        weight = weights.pop(name)
        if weight.ndim != 2 or len(weight) != 3 * config.d_model or config.d_model % _DEVICES:
            raise CheckpointError(
                f"{folder}: {name} of shape {tuple(weight.shape)} is not queries, values and keys of size "
                f"{config.d_model} for each of {_DEVICES} devices"
            )
        # (devices, 3, D / devices, D): queries, values, keys, where ours has the values last.
        q, v, k = weight.view(_DEVICES, 3, -1, weight.size(1)).unbind(1)
        q, k = (halves(folder, name, part.flatten(0, 1), config.nhead, config.rotary_dim) for part in (q, k))
        weights[f"h.{layer}.attn.weight"] = torch.cat([q, k, v.flatten(0, 1)])
    return config, rename_gptj_like(weights)
