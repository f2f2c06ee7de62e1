"""GPT-J (Wang & Komatsuzaki 2021) as Hugging Face writes it: parallel blocks, and neighbors that turn together."""

from pathlib import Path

from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields
from .common import Weights, check_options, pack, read_task, rename, strip_prefix
from .reorder import halves
from .tokens import read_tokens

_NAMES = {"wte": "decoder.embedding.token", "ln_f": "decoder.norm", "lm_head": "decoder.head"}

_LAYER_NAMES = {
    "h.*.ln_1": "self_attn_residual.norm",
    "h.*.attn": "self_attn.in_proj",
    "h.*.attn.out_proj": "self_attn.out_proj",
    "h.*.mlp.fc_in": "feed_forward.linear1",
    "h.*.mlp.fc_out": "feed_forward.linear2",
}


_CONSTANTS = (".attn.bias", ".attn.masked_bias", ".attn.embed_positions", ".attn.causal_mask")
"""What old versions saved, though it is no weight."""


def convert_gptj(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a GPTJForCausalLM."""
    config = read_gptj_like(values.of("GPTJ"))
    weights = strip_prefix(drop_constants(weights), "transformer.")
    for layer in range(config.num_decoder_layers):
        place = f"h.{layer}.attn"
        # Neighbors turn together, where ours turns an entry with one half a head away.
        for name in (f"{place}.{part}_proj.weight" for part in "qk"):
            if name in weights:
                weights[name] = halves(folder, name, weights[name], config.nhead, config.rotary_dim)
        pack(folder, weights, [f"{place}.{part}_proj" for part in "qkv"], place, bias=False)
    return config, rename_gptj_like(weights)


def read_gptj_like(values: Fields, rotary_dim: int | None = None) -> TransformerConfig:
    """Read the configuration of GPT-J or one of its kind; `rotary_dim` is for where it does not say how much turns."""
    check_options(values, {})
    read_task(values, values.form, ("ForCausalLM", "Model"))
    return TransformerConfig(
        kind="decoder",
        vocab_size=values.vocabulary(),
        d_model=values.size("n_embd"),
        nhead=values.size("n_head"),
        num_decoder_layers=values.layers("n_layer"),
        dim_feedforward=values.optional_size("n_inner") or 4 * values.size("n_embd"),
        dropout=values.share("resid_pdrop", 0.0),
        activation=activation_by_any_name(values.text("activation_function", "gelu_new")),
        norm_first=True,
        parallel_blocks=True,
        layer_norm_eps=values.number("layer_norm_epsilon", 1e-5, most=1.0),
        qkv_bias=False,
        out_bias=False,
        positions="rotary",
        rotary_dim=values.optional_size("rotary_dim") or rotary_dim,
        max_positions=values.size("n_positions"),
        scale_embeddings=False,
        tie_embeddings=values.flag("tie_word_embeddings"),
        head_bias=True,
        **read_tokens(values),
    )


def drop_constants(weights: Weights) -> Weights:
    """Leave out what is no weight."""
    return {name: weight for name, weight in weights.items() if not name.endswith(_CONSTANTS)}


def rename_gptj_like(weights: Weights) -> Weights:
    """Give the weights our names."""
    return rename(weights, _NAMES, _LAYER_NAMES, "decoder.layers")
