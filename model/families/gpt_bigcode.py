"""StarCoder and SantaCoder (Li et al. 2023, arXiv:2305.06161): GPT-2 with one head of keys and values."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, rename, strip_prefix
from .gpt2 import CONSTANTS, LAYER_NAMES, NAMES, read_gpt2_like
from .reorder import split_thirds


def convert_gpt_bigcode(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a GPTBigCodeForCausalLM."""
    values = values.of("GPTBigCode")
    check_options(values, {"add_cross_attention": [False]})
    one = values.flag("multi_query", True)
    config = read_gpt2_like(values, ("ForCausalLM", "Model"), num_kv_heads=1 if one else None)
    weights = {name: weight for name, weight in weights.items() if not name.endswith(CONSTANTS)}
    weights = rename(strip_prefix(weights, "transformer."), NAMES, LAYER_NAMES, "decoder.layers")
    # Where each head has keys and values of its own, they are beside its queries.
    for layer in range(0 if one else config.num_decoder_layers):
        split_thirds(folder, weights, f"decoder.layers.{layer}.self_attn.in_proj", config.nhead)
    return config, weights
