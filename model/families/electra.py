"""ELECTRA (Clark et al. 2020) as Hugging Face writes it: BERT whose embeddings may be narrower than its layers."""

from pathlib import Path

from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields
from .bert import CONSTANTS, EMBEDDING_NAMES, LAYER_NAMES, head_options, modern_names, pack_layers, read_config
from .common import Weights, drop, read_task, rename, strip_prefix
from .pooling import read_pooling

_NAMES = EMBEDDING_NAMES | {"embeddings_project": "encoder.embedding.project"}

_HEADS: dict[str | None, dict[str, str]] = {
    "ForMaskedLM": {
        "generator_predictions.dense": "head.hidden",
        "generator_predictions.LayerNorm": "head.norm",
        "generator_lm_head": "head.output",
    },
    "ForPreTraining": {
        "discriminator_predictions.dense": "head.hidden",
        "discriminator_predictions.dense_prediction": "head.output",
    },
    "ForSequenceClassification": {"classifier.dense": "head.hidden", "classifier.out_proj": "head.output"},
    "ForTokenClassification": {"classifier": "head.output"},
    "ForQuestionAnswering": {"qa_outputs": "head.output"},
}

_PRETRAINING = ("generator_predictions.", "generator_lm_head.", "discriminator_predictions.")


def convert_electra(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an ElectraModel, or one with a head for masked tokens, sequences, tokens or answers, as `architectures` says.

    ElectraForPreTraining, the discriminator, has a head for tokens with the one label "replaced". A pretraining head is
    dropped where `architectures` is ElectraModel. Sentence-transformers' pooling, where modules.json asks for it, takes
    the place of the head.
    """
    values = values.of("ELECTRA")
    task, pooling = read_task(values, "Electra", ("Model", *(task for task in _HEADS if task))), read_pooling(folder)
    weights = modern_names(strip_prefix(weights, "electra."))
    if pooling:
        task, weights = None, drop(weights, (*_PRETRAINING, "classifier.", "qa_outputs."))
    weights = drop(weights, CONSTANTS + (_PRETRAINING if task == "Model" else ()))
    options = head_options(task, values, two_layers="gelu") | pooling
    if task == "ForMaskedLM":
        options["head_activation"] = "gelu"  # whatever hidden_act is
    if task == "ForPreTraining":
        # The discriminator tells of each token whether it was replaced: one logit each.
        options |= {"head": "token", "labels": ("replaced",)}
        options["head_activation"] = activation_by_any_name(values.text("hidden_act"))
    config = read_config(values, embedding_size=values.size("embedding_size"), **options)
    pack_layers(folder, weights, config)
    return config, rename(weights, _NAMES | _HEADS.get(task, {}), LAYER_NAMES, "encoder.layers")
