"""StableLM 2 and 3B (Bellagente et al. 2024, arXiv:2402.17834): Llama with layer norms, part of a head turns."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options
from .llama import read_llama_like, rename_llama_like
from .rotary import read_rotary


def convert_stablelm(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a StableLmForCausalLM; a norm on queries and keys, which has other weights for each head, is refused."""
    values = values.of("StableLm")
    check_options(values, {"qk_layernorm": [False]})
    # Its heads are D / N whatever the configuration says.
    config = read_llama_like(
        values,
        epsilon="layer_norm_eps",
        norm="layer",
        parallel_blocks=values.flag("use_parallel_residual"),
        qkv_bias=values.flag("use_qkv_bias"),
        head_dim=None,
        **read_rotary(values, head_size=values.size("hidden_size") // values.size("num_attention_heads"), share=0.25),
    )
    return config, rename_llama_like(folder, weights, config)
