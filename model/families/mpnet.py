"""MPNet (Song et al. 2020, arXiv:2004.09297) as Hugging Face writes it: RoBERTa with the bias of T5."""

from pathlib import Path

from ..config import TransformerConfig
from ..fields import Fields
from .bert import CONSTANTS, EMBEDDING_NAMES, head_options, modern_names, pack_layers, read_config, take_output_bias
from .common import Weights, check_options, drop, read_task, rename, strip_prefix
from .pooling import read_pooling
from .roberta import HEADS, count_from_zero

_NAMES = EMBEDDING_NAMES | {"encoder.relative_attention_bias": "encoder.bias"}

_LAYER_NAMES = {
    "encoder.layer.*.attention.attn": "self_attn.in_proj",
    "encoder.layer.*.attention.attn.o": "self_attn.out_proj",
    "encoder.layer.*.attention.LayerNorm": "self_attn_residual.norm",
    "encoder.layer.*.intermediate.dense": "feed_forward.linear1",
    "encoder.layer.*.output.dense": "feed_forward.linear2",
    "encoder.layer.*.output.LayerNorm": "feed_forward_residual.norm",
}


def convert_mpnet(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map an MPNetModel, or one with a head for masked tokens, sequences or tokens, as `architectures` says.

    Positions are counted as RoBERTa does. Sentence-transformers' pooling, where modules.json asks for it, takes the
    place of pooler and head.
    """
    values = values.of("MPNet")
    # Padding and buckets are numbers in transformers' code, whatever the configuration says.
    check_options(values, {"relative_attention_num_buckets": [32], "pad_token_id": [1]})
    task, pooling = read_task(values, "MPNet", ("Model", *(task for task in HEADS if task))), read_pooling(folder)
    weights = modern_names(strip_prefix(weights, "mpnet."))
    # A pooler or head that sentence-transformers does not run.
    if pooling:
        task, weights = None, drop(weights, ("pooler.", "lm_head.", "classifier.", "qa_outputs."))
    unused: dict[str | None, tuple[str, ...]] = {None: (), "Model": ("lm_head.",)}
    weights = drop(weights, CONSTANTS + unused.get(task, ("pooler.",)))
    options = head_options(task, values, two_layers="tanh") | pooling
    # Whatever hidden_act is: that of the head is in transformers' code.
    if task == "ForMaskedLM":
        options["head_activation"] = "gelu"
    # It has no segments, and its table counts from behind the padding.
    config = read_config(
        values.replaced(type_vocab_size=0, pad_token_id=1),
        positions="relative",
        position_table=True,
        pooler="pooler.dense.weight" in weights,
        **options,
    )
    if task == "ForMaskedLM":
        take_output_bias(folder, weights, config, "lm_head.bias", "lm_head.decoder.bias")
    pack_layers(folder, weights, config, "encoder.layer.{}.attention.attn", ("q", "k", "v"))
    weights = rename(weights, _NAMES | (HEADS.get(task) or {"pooler.dense": "pooler"}), _LAYER_NAMES, "encoder.layers")
    return count_from_zero(values.form, config, weights), weights
