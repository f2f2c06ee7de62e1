"""DistilBERT (Sanh et al. 2019) as Hugging Face writes it: BERT without segments and pooler, under names of its own."""

from pathlib import Path

from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields
from .bert import CONSTANTS, head_options, pack_layers
from .common import Weights, check_options, drop, read_task, rename, strip_prefix
from .pooling import read_pooling

_NAMES = {
    "embeddings.word_embeddings": "encoder.embedding.token",
    "embeddings.position_embeddings.weight": "encoder.embedding.position",
    "embeddings.LayerNorm": "encoder.embedding.norm",
}

_LAYER_NAMES = {
    "transformer.layer.*.attention": "self_attn.in_proj",
    "transformer.layer.*.attention.out_lin": "self_attn.out_proj",
    "transformer.layer.*.sa_layer_norm": "self_attn_residual.norm",
    "transformer.layer.*.ffn.lin1": "feed_forward.linear1",
    "transformer.layer.*.ffn.lin2": "feed_forward.linear2",
    "transformer.layer.*.output_layer_norm": "feed_forward_residual.norm",
}

_HEADS: dict[str | None, dict[str, str]] = {
    "ForMaskedLM": {
        "vocab_transform": "head.hidden",
        "vocab_layer_norm": "head.norm",
        "vocab_projector": "head.output",
    },
    "ForSequenceClassification": {"pre_classifier": "head.hidden", "classifier": "head.output"},
    "ForTokenClassification": {"classifier": "head.output"},
    "ForQuestionAnswering": {"qa_outputs": "head.output"},
}

_PRETRAINING = ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.")


def convert_distilbert(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a DistilBertModel, or one with a head for masked tokens, sequences, tokens or answers: `architectures` says.

    A pretraining head is dropped where `architectures` is DistilBertModel. Sentence-transformers' pooling, where
    modules.json asks for it, takes the place of the head.
    """
    values = values.of("DistilBERT")
    task, pooling = read_task(values, "DistilBert", ("Model", *(task for task in _HEADS if task))), read_pooling(folder)
    weights = strip_prefix(weights, "distilbert.")
    if pooling:
        task, weights = None, drop(weights, (*_PRETRAINING, "pre_classifier.", "classifier.", "qa_outputs."))
    weights = drop(weights, CONSTANTS + (_PRETRAINING if task == "Model" else ()))
    check_options(values, {"pruned_heads": [{}]})
    config = TransformerConfig(
        kind="encoder",
        vocab_size=values.vocabulary(),
        d_model=values.size("dim"),
        nhead=values.size("n_heads"),
        num_encoder_layers=values.layers("n_layers"),
        dim_feedforward=values.size("hidden_dim"),
        dropout=values.share("dropout", 0.1),
        activation=activation_by_any_name(values.text("activation")),
        # DistilBERT's configuration has no ε: it is in transformers' code.
        layer_norm_eps=1e-12,
        positions="learned",  # or fixed, by sinusoidal_pos_embds: a checkpoint holds that table all the same
        max_positions=values.size("max_position_embeddings"),
        scale_embeddings=False,
        embedding_norm=True,
        pad_token_id=values.token("pad_token_id"),
        **(head_options(task, values, two_layers="relu") | pooling),
    )
    pack_layers(folder, weights, config, "transformer.layer.{}.attention", ("q_lin", "k_lin", "v_lin"))
    return config, rename(weights, _NAMES | _HEADS.get(task, {}), _LAYER_NAMES, "encoder.layers")
