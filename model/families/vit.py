"""ViT (Dosovitskiy et al. 2021) as Hugging Face writes it."""

from pathlib import Path
from typing import Any

from tfm.errors import NotNativeError
from tfm.ops import activation_by_any_name

from ..config import TransformerConfig
from ..fields import Fields, shown
from .bert import pack_layers
from .common import (
    Weights,
    check_options,
    drop,
    read_labels,
    read_task,
    rename,
    strip_prefix,
)

_NAMES = {
    "embeddings.cls_token": "encoder.embedding.cls_token",
    "embeddings.patch_embeddings.projection": "encoder.embedding.patch",
    "embeddings.position_embeddings": "encoder.embedding.position",
    "layernorm": "encoder.norm",
}

_LAYER_NAMES = {
    "encoder.layer.*.attention.attention": "self_attn.in_proj",
    "encoder.layer.*.attention.output.dense": "self_attn.out_proj",
    "encoder.layer.*.layernorm_before": "self_attn_residual.norm",
    "encoder.layer.*.intermediate.dense": "feed_forward.linear1",
    "encoder.layer.*.output.dense": "feed_forward.linear2",
    "encoder.layer.*.layernorm_after": "feed_forward_residual.norm",
    # from transformers 5 on, in a state_dict that save_pretrained did not write
    "layers.*.attention": "self_attn.in_proj",
    "layers.*.attention.o_proj": "self_attn.out_proj",
    "layers.*.layernorm_before": "self_attn_residual.norm",
    "layers.*.mlp.fc1": "feed_forward.linear1",
    "layers.*.mlp.fc2": "feed_forward.linear2",
    "layers.*.layernorm_after": "feed_forward_residual.norm",
}

_LONGEST_SIDE = 1 << 16


def convert_vit(folder: Path, values: Fields, weights: Weights) -> tuple[TransformerConfig, Weights]:
    """Map a ViTModel or a ViTForImageClassification, as `architectures` says."""
    values = values.of("ViT")
    task = read_task(values, "ViT", ("Model", "ForImageClassification"))
    weights = drop(strip_prefix(weights, "vit."), ("embeddings.mask_token",))  # for pretraining alone
    options: dict[str, Any] = {"pooler": "pooler.dense.weight" in weights}
    if task == "ForImageClassification":
        weights = drop(weights, ("pooler.",))
        options = {"head": "sequence", "labels": read_labels(values)}
    width = values.size("hidden_size")
    check_options(values, {"pooler_act": ["tanh"], "pooler_output_size": [width], "pruned_heads": [{}]})
    image_size, patch_size = (_side(values, name) for name in ("image_size", "patch_size"))
    config = TransformerConfig(
        kind="encoder",
        vocab_size=1,  # it reads no tokens
        d_model=width,
        nhead=values.size("num_attention_heads"),
        num_encoder_layers=values.layers("num_hidden_layers"),
        dim_feedforward=values.size("intermediate_size"),
        dropout=values.share("hidden_dropout_prob", 0.0),
        activation=activation_by_any_name(values.text("hidden_act")),
        norm_first=True,
        layer_norm_eps=values.number("layer_norm_eps", 1e-12, most=1.0),
        qkv_bias=values.flag("qkv_bias", True),
        positions="learned",
        max_positions=1 + (image_size // patch_size) ** 2,
        image_size=image_size,
        patch_size=patch_size,
        num_channels=values.size("num_channels", 3),
        **options,
    )
    if any(name.startswith("layers.") for name in weights):
        pack_layers(folder, weights, config, "layers.{}.attention", ("q_proj", "k_proj", "v_proj"))
    else:
        pack_layers(folder, weights, config, "encoder.layer.{}.attention.attention")
    names = _NAMES | ({"pooler.dense": "pooler"} if config.head is None else {"classifier": "head.output"})
    weights = rename(weights, names, _LAYER_NAMES, "encoder.layers")
    # Hugging Face keeps the axis of the batch, ours does not.
    table = weights.get("encoder.embedding.position")
    if table is not None and table.ndim == 3:  # (1, 1 + patches, D)
        weights["encoder.embedding.position"] = table.flatten(0, 1)
    return config, weights


def _side(values: Fields, name: str) -> int:
    """Read the side of a square, given as one number or as two equal ones."""
    size = values.any(name)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is not int or not 1 <= size <= _LONGEST_SIDE:
        raise NotNativeError(
            f"{values.source}: ViT with {name} = {shown(values.any(name))} is not supported; expected the side of a "
            "square"
        )
    return size
