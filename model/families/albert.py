"""ALBERT (Lan et al. 2020, arXiv:1909.11942) as Hugging Face writes it: BERT whose layers are one."""

from pathlib import Path

from tfm.errors import NotNativeError

from ..config import TransformerConfig
from ..fields import Fields
from .bert import CONSTANTS, EMBEDDING_NAMES, head_options, modern_names, pack_layers, read_config, take_output_bias
from .common import Weights, check_options, drop, read_task, rename, strip_prefix
from .pooling import read_pooling

_NAMES = EMBEDDING_NAMES | {"encoder.embedding_hidden_mapping_in": "encoder.embedding.project"}

_LAYER = "encoder.albert_layer_groups.0.albert_layers.0."

_LAYER_NAMES = {
    "layer.*.attention": "self_attn.in_proj",
    "layer.*.attention.dense": "self_attn.out_proj",
    "layer.*.attention.LayerNorm": "self_attn_residual.norm",
    "layer.*.ffn": "feed_forward.linear1",
    "layer.*.ffn_output": "feed_forward.linear2",
    "layer.*.full_layer_layer_norm": "feed_forward_residual.norm",
}

_HEADS: dict[str | None, dict[str, str]] = {
    "ForMaskedLM": {
        "predictions.dense": "head.hidden",
        "predictions.LayerNorm": "head.norm",
        "predictions.decoder": "head.output",
    },
    "ForSequenceClassification": {"pooler": "head.hidden", "classifier": "head.output"},
    "ForTokenClassification": {"classifier": "head.output"},
}

_UNUSED = {
    "Model": ("predictions.", "sop_classifier."),
    "ForMaskedLM": ("pooler.", "sop_classifier."),
    "ForTokenClassification": ("pooler.",),
}
"""What a checkpoint may hold beside what the class it names has."""


def convert_albert(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an AlbertModel, or one with a head for masked tokens, sequences or tokens, as `architectures` says.

    Of an AlbertForPreTraining, the head for masked tokens is taken. Sentence-transformers' pooling, where modules.json
    asks for it, takes the place of pooler and head.
    """
    values = values.of("ALBERT")
    # Several groups would be several layers, each of them run more than once.
    check_options(values, {"num_hidden_groups": [1], "inner_group_num": [1]})
    known = ("Model", "ForPreTraining", *(task for task in _HEADS if task))
    task, pooling = read_task(values, "Albert", known), read_pooling(folder)
    task = "ForMaskedLM" if task == "ForPreTraining" else task
    weights = modern_names(strip_prefix(weights, "albert."))
    # What sentence-transformers does not run is dropped, or it would be told as left over.
    if pooling:
        task, weights = None, drop(weights, ("pooler.", "predictions.", "sop_classifier.", "classifier."))
    weights = drop(weights, CONSTANTS + _UNUSED.get(task or "", ()))
    options = head_options(task, values, two_layers="tanh") | pooling
    # Under a head for sequences the pooler is its first layer.
    if options.get("head") is None:
        options["pooler"] = "pooler.weight" in weights
    config = read_config(values, embedding_size=_embedding_size(values), shared_layers=True, **options)
    if task == "ForMaskedLM":
        take_output_bias(folder, weights, config, "predictions.bias", "predictions.decoder.bias")
    # "layer.0.", so that the name has one number: that of the layer.
    weights = {name.replace(_LAYER, "layer.0.", 1): weight for name, weight in weights.items()}
    # The first layer's, which all others share.
    pack_layers(
        folder, weights, TransformerConfig(kind="encoder", vocab_size=1, num_encoder_layers=1), "layer.{}.attention"
    )
    return config, rename(weights, _NAMES | (_HEADS.get(task) or {}), _LAYER_NAMES, "encoder.layers")


def _embedding_size(values: Fields) -> int:
    narrow, width = values.size("embedding_size", 128), values.size("hidden_size")
    # There is a projection between the two all the same, and ours has none.
    if narrow == width:
        raise NotNativeError(f"{values.source}: ALBERT with embedding_size = hidden_size = {width} is not supported")
    return narrow
