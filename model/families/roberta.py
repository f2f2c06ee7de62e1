"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020) as Hugging Face writes them."""

import dataclasses
from pathlib import Path

from tfm.errors import ConfigError

from ..config import TransformerConfig
from ..fields import Fields
from .bert import (
    CONSTANTS,
    EMBEDDING_NAMES,
    LAYER_NAMES,
    head_options,
    modern_names,
    pack_layers,
    read_config,
    take_output_bias,
)
from .common import Weights, drop, read_task, rename, strip_prefix
from .pooling import read_pooling

_POOLER = {"pooler.dense": "pooler"}

HEADS: dict[str | None, dict[str, str]] = {
    "ForMaskedLM": {
        "lm_head.dense": "head.hidden",
        "lm_head.layer_norm": "head.norm",
        "lm_head.decoder": "head.output",
    },
    "ForSequenceClassification": {"classifier.dense": "head.hidden", "classifier.out_proj": "head.output"},
    "ForTokenClassification": {"classifier": "head.output"},
    "ForQuestionAnswering": {"qa_outputs": "head.output"},
}


def convert_roberta(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a RobertaModel, or one with a head for masked tokens, sequences, tokens or answers, as `architectures` says.

    Its position table begins with rows that no token has, up to that of padding: they are dropped, so that tokens
    count from one, wherever padding stands. Its only segment, where there is one, is added to the
    table, so that the model reads no segment ids. A pretraining head is dropped where `architectures` is RobertaModel.
    Sentence-transformers' pooling, where modules.json asks for it, takes the place of pooler and head.
    """
    return _convert(folder, values.of("RoBERTa"), weights, "Roberta")


def convert_camembert(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map CamemBERT (Martin et al. 2020): RoBERTa in French."""
    return _convert(folder, values.of("CamemBERT"), weights, "Camembert")


def convert_data2vec_text(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map data2vec's text model (Baevski et al. 2022): RoBERTa under a prefix of its own."""
    return _convert(folder, values.of("data2vec"), strip_prefix(weights, "data2vec_text."), "Data2VecText")


def convert_xlm_roberta(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map XLM-RoBERTa: RoBERTa with a vocabulary of many languages."""
    return _convert(folder, values.of("XLM-RoBERTa"), weights, "XLMRoberta")


def _convert(folder: Path, values: Fields, weights: Weights, prefix: str) -> tuple[TransformerConfig, Weights]:
    task, pooling = read_task(values, prefix, ("Model", *(task for task in HEADS if task))), read_pooling(folder)
    weights = modern_names(strip_prefix(weights, "roberta."))
    if pooling:
        task, weights = None, drop(weights, ("pooler.", "lm_head.", "classifier.", "qa_outputs."))
    unused: dict[str | None, tuple[str, ...]] = {None: (), "Model": ("lm_head.",)}
    weights = drop(weights, CONSTANTS + unused.get(task, ("pooler.",)))
    options = head_options(task, values, two_layers="tanh") | pooling
    if task == "ForMaskedLM":
        options["head_activation"] = "gelu"  # whatever hidden_act is
    config = read_config(values, pooler="pooler.dense.weight" in weights, **options)
    if task == "ForMaskedLM":
        take_output_bias(folder, weights, config, "lm_head.bias", "lm_head.decoder.bias")
    pack_layers(folder, weights, config)
    weights = rename(weights, EMBEDDING_NAMES | (HEADS.get(task) or _POOLER), LAYER_NAMES, "encoder.layers")
    return count_from_zero(values.form, config, weights), weights


def count_from_zero(family: str, config: TransformerConfig, weights: Weights) -> TransformerConfig:
    """Drop the position table's first rows, so that padding is 0, and put an only segment into the others."""
    if config.pad_token_id is None or config.max_positions <= config.pad_token_id + 1:
        raise ConfigError(
            f"{family} counts {config.max_positions} positions from pad_token_id + 1, but pad_token_id is "
            f"{config.pad_token_id}"
        )
    # The padding id is the position of padding too, and tokens begin behind it; the rows before are never read.
    start = config.pad_token_id
    table, segment = weights.get("encoder.embedding.position"), weights.get("encoder.embedding.segment.weight")
    if table is not None and (table.ndim != 2 or len(table) != config.max_positions):
        found = len(table) if table.ndim == 2 else "no table of"
        raise ConfigError(f"{family} has {found} positions, but max_position_embeddings is {config.max_positions}")
    only = segment is not None and config.type_vocab_size == 1
    if table is not None and segment is not None and only and segment.shape == (1, table.size(1)):
        # In float32: half precision would round the sum.
        table = table.float() + weights.pop("encoder.embedding.segment.weight").float()
        config = dataclasses.replace(config, type_vocab_size=0)
    if table is not None:
        weights["encoder.embedding.position"] = table[start:]
    return dataclasses.replace(config, max_positions=config.max_positions - start - 1, count_tokens=True)
