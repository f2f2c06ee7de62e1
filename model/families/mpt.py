"""MPT (MosaicML 2023) as Hugging Face writes it: ALiBi, and no bias anywhere."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, read_task, rename, strip_prefix
from .reorder import add_zero_biases
from .tokens import read_tokens

_NAMES = {"wte": "decoder.embedding.token", "norm_f": "decoder.norm", "lm_head": "decoder.head"}

_LAYER_NAMES = {
    "blocks.*.norm_1": "self_attn_residual.norm",
    "blocks.*.attn.Wqkv": "self_attn.in_proj",
    "blocks.*.attn.out_proj": "self_attn.out_proj",
    "blocks.*.norm_2": "feed_forward_residual.norm",
    "blocks.*.ffn.up_proj": "feed_forward.linear1",
    "blocks.*.ffn.down_proj": "feed_forward.linear2",
}


def convert_mpt(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an MptForCausalLM; its slopes are BLOOM's for any number of heads, told in another order."""
    del folder
    values = values.of("Mpt")
    attention = values.inner("attn_config")
    check_options(values, {})
    # What transformers' code heeds; the rest of the configuration it does not, alibi and no_bias among it.
    check_options(attention, {"clip_qkv": [0], "qk_ln": [False], "prefix_lm": [False]})
    read_task(values, "Mpt", ("ForCausalLM", "Model"))
    width = values.size("d_model")
    config = TransformerConfig(
        kind="decoder",
        vocab_size=values.vocabulary(),
        d_model=width,
        nhead=values.size("n_heads"),
        num_decoder_layers=values.layers("n_layers"),
        dim_feedforward=4 * width,
        dropout=values.share("resid_pdrop", 0.0),
        activation="gelu",
        norm_first=True,
        layer_norm_eps=values.number("layer_norm_epsilon", 1e-5, most=1.0),
        attention_scale=attention.optional_number("softmax_scale"),
        qkv_bias=False,
        out_bias=False,
        feed_forward_bias=False,
        positions="alibi",
        max_positions=values.size("max_seq_len"),
        scale_embeddings=False,
        tie_embeddings=values.flag("tie_word_embeddings", True),
        head_bias=False,
        **read_tokens(values),
    )
    weights = rename(strip_prefix(weights, "transformer."), _NAMES, _LAYER_NAMES, "decoder.layers")
    return config, add_zero_biases(weights)
