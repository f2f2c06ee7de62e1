"""BERT (Devlin et al. 2019) as Hugging Face writes it, and sentence-transformers on top of it."""

from pathlib import Path
from typing import Any

from tfm.errors import CheckpointError
from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields
from .common import (
    Weights,
    check_options,
    drop,
    pack,
    read_labels,
    read_task,
    rename,
    same,
    strip_prefix,
)
from .pooling import read_pooling

EMBEDDING_NAMES = {
    "embeddings.word_embeddings": "encoder.embedding.token",
    "embeddings.position_embeddings.weight": "encoder.embedding.position",
    "embeddings.token_type_embeddings": "encoder.embedding.segment",
    "embeddings.LayerNorm": "encoder.embedding.norm",
}

LAYER_NAMES = {
    "encoder.layer.*.attention.self": "self_attn.in_proj",
    "encoder.layer.*.attention.output.dense": "self_attn.out_proj",
    "encoder.layer.*.attention.output.LayerNorm": "self_attn_residual.norm",
    "encoder.layer.*.intermediate.dense": "feed_forward.linear1",
    "encoder.layer.*.output.dense": "feed_forward.linear2",
    "encoder.layer.*.output.LayerNorm": "feed_forward_residual.norm",
}

CONSTANTS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""What old versions saved, though it is no weight."""

_SUPPORTED: dict[str, list[Any]] = {
    "is_decoder": [False],
    "add_cross_attention": [False],
    "position_embedding_type": ["absolute"],
    "pruned_heads": [{}],
}

_POOLER = {"pooler.dense": "pooler"}

HEADS: dict[str | None, dict[str, str]] = {
    "ForMaskedLM": {
        "cls.predictions.transform.dense": "head.hidden",
        "cls.predictions.transform.LayerNorm": "head.norm",
        "cls.predictions.decoder": "head.output",
    },
    "ForSequenceClassification": {"pooler.dense": "head.hidden", "classifier": "head.output"},
    "ForTokenClassification": {"classifier": "head.output"},
    "ForQuestionAnswering": {"qa_outputs": "head.output"},
}

_UNUSED = {
    "Model": ("cls.",),
    "ForMaskedLM": ("pooler.", "cls.seq_relationship."),
    "ForTokenClassification": ("pooler.",),
    "ForQuestionAnswering": ("pooler.",),
}
"""What a checkpoint may hold beside what the class it names has."""


def convert_bert(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a BertModel, or one with a head for masked tokens, sequences, tokens or answers, as `architectures` says.

    Of a BertForPreTraining, the head for masked tokens is taken. A pretraining head is dropped where `architectures`
    is BertModel. Sentence-transformers' pooling, where modules.json asks for it, takes the place of pooler and head.
    """
    values = values.of("BERT")
    known = ("Model", "ForPreTraining", *(task for task in HEADS if task))
    task, pooling = read_task(values, "Bert", known), read_pooling(folder)
    task = "ForMaskedLM" if task == "ForPreTraining" else task
    weights = modern_names(strip_prefix(weights, "bert."))
    if pooling:
        task, weights = None, drop(weights, ("pooler.", "cls.", "classifier.", "qa_outputs."))
    weights = drop(weights, CONSTANTS + _UNUSED.get(task or "", ()))
    options = head_options(task, values, two_layers="tanh") | pooling
    # A head for sequences has the pooler as its first layer; other heads do not read it.
    if options.get("head") is None:
        options["pooler"] = "pooler.dense.weight" in weights
    config = read_config(values, **options)
    if task == "ForMaskedLM":
        take_output_bias(folder, weights, config, "cls.predictions.bias", "cls.predictions.decoder.bias")
    pack_layers(folder, weights, config)
    return config, rename(weights, EMBEDDING_NAMES | (HEADS.get(task) or _POOLER), LAYER_NAMES, "encoder.layers")


def modern_names(weights: Weights) -> Weights:
    """Give norms that were saved under TensorFlow's names, gamma and beta, those of torch."""
    kinds = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    for old, new in kinds.items():
        weights = {name.removesuffix(old) + new if name.endswith(old) else name: w for name, w in weights.items()}
    return weights


def head_options(task: str | None, values: Fields, *, two_layers: str) -> dict[str, Any]:
    """Say which head a class has, by the rest of its name, such as "ForTokenClassification": fields of ours.

    `two_layers` is the activation between the two layers of a head for sequences.
    """
    if task == "ForMaskedLM":
        tied = values.flag("tie_word_embeddings", True)
        return {"head": "masked-lm", "tie_embeddings": tied, "head_bias": True}
    if task == "ForSequenceClassification":
        return {"head": "sequence", "head_activation": two_layers, "labels": read_labels(values)}
    if task == "ForTokenClassification":
        return {"head": "token", "labels": read_labels(values)}
    if task == "ForQuestionAnswering":
        # A start and an end; other numbers are of models with further outputs.
        values.supports("num_labels", [2])
        return {"head": "question-answering"}
    return {}


def read_config(values: Fields, **options: Any) -> TransformerConfig:
    """Read the configuration of BERT and of what descends from it; `options` are further fields."""
    check_options(values, _SUPPORTED)
    fields: dict[str, Any] = {
        "vocab_size": values.vocabulary(),
        "d_model": values.size("hidden_size"),
        "nhead": values.size("num_attention_heads"),
        "num_encoder_layers": values.layers("num_hidden_layers"),
        "dim_feedforward": values.size("intermediate_size"),
        "dropout": values.share("hidden_dropout_prob", 0.1),
        "activation": activation_by_any_name(values.text("hidden_act")),
        "layer_norm_eps": values.number("layer_norm_eps", 1e-12, most=1.0),
        "positions": "learned",
        "max_positions": values.size("max_position_embeddings"),
        "scale_embeddings": False,
        "type_vocab_size": values.size("type_vocab_size", least=0),
        "embedding_norm": True,
        "pad_token_id": values.token("pad_token_id"),
    }
    return TransformerConfig(kind="encoder", **(fields | options))


def take_output_bias(folder: Path, weights: Weights, config: TransformerConfig, shared: str, own: str) -> None:
    """Make one of the two names that the bias of a head for masked tokens is saved under.

    Untied, only the projection's own bias is in use; tied, the two are one.
    """
    if shared not in weights:
        return
    bias = weights.pop(shared)
    if config.tie_embeddings and own in weights and not same(weights[own], bias):
        raise CheckpointError(f"{folder}: {shared} and {own} are one bias, but differ")
    weights.setdefault(own, bias)


def pack_layers(
    folder: Path,
    weights: Weights,
    config: TransformerConfig,
    attention: str = "encoder.layer.{}.attention.self",
    parts: tuple[str, str, str] = ("query", "key", "value"),
) -> None:
    """Pack each layer's projections to queries, keys and values, `parts` of `attention`, into one of its name."""
    for layer in range(config.num_encoder_layers):
        module = attention.format(layer)
        pack(folder, weights, [f"{module}.{part}" for part in parts], module, bias=config.qkv_bias)
