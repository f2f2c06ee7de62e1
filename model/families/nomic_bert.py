"""Nomic BERT (Nussbaum et al. 2024, arXiv:2402.01613) as transformers has it: BERT, gated, rotary, without biases."""

from pathlib import Path

from tfm.errors import NotNativeError
from tfm.ops import activation_by_any_name, gated_by

from ..config import TransformerConfig
from ..fields import Fields, shown
from .bert import CONSTANTS, EMBEDDING_NAMES, HEADS, head_options, pack_layers, read_config, take_output_bias
from .common import Weights, drop, pack, read_task, rename, strip_prefix
from .pooling import read_pooling
from .rotary import read_rotary

_NAMES = EMBEDDING_NAMES | {"emb_ln": "encoder.embedding.norm", "cls.predictions.transform.layer_norm": "head.norm"}

_LAYER_NAMES = {
    "layers.*.self_attn": "self_attn.in_proj",
    "layers.*.self_attn.o_proj": "self_attn.out_proj",
    "layers.*.post_attention_layernorm": "self_attn_residual.norm",
    "layers.*.mlp": "feed_forward.linear1",
    "layers.*.mlp.down_proj": "feed_forward.linear2",
    "layers.*.post_mlp_layernorm": "feed_forward_residual.norm",
}

_OLDER = {
    "attn.Wqkv": "self_attn",
    "attn.out_proj": "self_attn.o_proj",
    "norm1": "post_attention_layernorm",
    "mlp.fc11": "mlp.up_proj",
    "mlp.fc12": "mlp.gate_proj",
    "mlp.fc2": "mlp.down_proj",
    "norm2": "post_mlp_layernorm",
}
"""The names of its authors' own code, which transformers saves too → those of its modules."""


def convert_nomic_bert(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a NomicBertModel, or one with a head for masked tokens, sequences or tokens, as `architectures` says.

    A pretraining head is dropped where `architectures` is NomicBertModel. Sentence-transformers' pooling, where
    modules.json asks for it, takes the place of pooler and head.
    """
    values = values.of("NomicBERT")
    task, pooling = read_task(values, "NomicBert", ("Model", *(task for task in HEADS if task))), read_pooling(folder)
    weights = _newer_names(strip_prefix(weights, "nomic_bert."))
    if pooling:
        task, weights = None, drop(weights, ("pooler.", "cls.", "classifier.", "qa_outputs."))
    unused: dict[str | None, tuple[str, ...]] = {"Model": ("cls.",), "ForSequenceClassification": (), None: ()}
    weights = drop(weights, CONSTANTS + unused.get(task, ("pooler.",)))
    options = head_options(task, values, two_layers="tanh") | pooling
    # transformers makes a pooler only under a head for sequences; a file may hold one all the same.
    if options.get("head") is None:
        options["pooler"] = "pooler.dense.weight" in weights
    config = read_config(
        values,
        **read_rotary(_with_theta(values)),
        head_dim=values.optional_size("head_dim"),
        activation=_activation(values),
        qkv_bias=False,
        out_bias=False,
        feed_forward_bias=False,
        **options,
    )
    if task == "ForMaskedLM":
        take_output_bias(folder, weights, config, "cls.predictions.bias", "cls.predictions.decoder.bias")
    # Its authors' code has the three packed already, in this order.
    if "layers.0.self_attn.weight" not in weights:
        pack_layers(folder, weights, config, "layers.{}.self_attn", ("q_proj", "k_proj", "v_proj"))
    for layer in range(config.num_encoder_layers):
        parts = [f"layers.{layer}.mlp.{part}_proj" for part in ("up", "gate")]  # value, then gate
        pack(folder, weights, parts, f"layers.{layer}.mlp", bias=False)
    names = _NAMES | ({"pooler.dense": "pooler"} if task in (None, "Model") else HEADS[task])
    return config, rename(
        weights, names | {"cls.predictions.transform.layer_norm": "head.norm"}, _LAYER_NAMES, "encoder.layers"
    )


def _with_theta(values: Fields) -> Fields:
    # Its base is ten times less than all others', where the configuration does not say.
    if values.has("rope_parameters") or values.has("rope_theta"):
        return values
    return values.replaced(rope_theta=1000.0)


def _activation(values: Fields) -> str:
    name = gated_by(activation_by_any_name(values.text("hidden_act", "silu")))
    if name is None:
        raise NotNativeError(f"NomicBERT with hidden_act = {shown(values.any('hidden_act'))} is not supported")
    return name


def _newer_names(weights: Weights) -> Weights:
    """Give weights under its authors' names those that transformers' modules have."""
    found: Weights = {}
    for name, weight in weights.items():
        name = name.removeprefix("encoder.") if name.startswith("encoder.layers.") else name
        for older, newer in _OLDER.items():
            name = name.replace(f".{older}.", f".{newer}.", 1) if name.startswith("layers.") else name
        found[name] = weight
    return found
