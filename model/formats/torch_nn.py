"""A bare state_dict of torch.nn.TransformerEncoder, or of torch.nn.Transformer: a model that reads vectors, not tokens.

Sizes, depths, biases and final norms are read off the weights. The number of heads is told. What no weight shows is as
torch.nn has it by default (relu, norms after the sub-layers, ε 1e-5), unless a configuration says otherwise; it may
also say `kind: "decoder"` of a TransformerEncoder that was trained under a causal mask.
"""

import re
from pathlib import Path
from typing import Any

from tfm.errors import CheckpointError

from ..config import TransformerConfig
from ..families.common import Weights, matrix

_LAYER = re.compile(r"((?:en|de)coder\.)?layers\.([0-9]{1,6})\.(.*)")

_MODULES = {
    "self_attn.in_proj_": "self_attn.in_proj.",
    "self_attn.out_proj.": "self_attn.out_proj.",
    "multihead_attn.out_proj.": "cross_attn.out_proj.",
    "linear1.": "feed_forward.linear1.",
    "linear2.": "feed_forward.linear2.",
    "norm1.": "self_attn_residual.norm.",
}

_OWN_MODULE = "export the module that computes with it by --model package.module:factory"


def is_torch_nn(weights: Weights) -> bool:
    """Whether there are weights of a layer of torch.nn.Transformer's."""
    return any(name.endswith("layers.0.self_attn.in_proj_weight") for name in weights)


def convert_torch_nn(
    file: Path, values: dict[str, Any], weights: Weights, nhead: int | None
) -> tuple[TransformerConfig, Weights]:
    """Map torch.nn's names to ours; `values` are the fields of `TransformerConfig` that no weight shows."""
    whole = any(name.startswith(("encoder.", "decoder.")) for name in weights)
    _check_module(file, weights, whole)
    if nhead is None and "nhead" not in values:
        raise CheckpointError(
            f"{file} is a state_dict of torch.nn.Transformer's layers, whose weights do not show the number of heads: "
            "tell it with --nhead"
        )
    # What is told goes before what was inferred.
    given = values if nhead is None else values | {"nhead": nhead}
    config = TransformerConfig.from_dict(_infer(file, weights, whole, values.get("kind", "encoder")) | given)
    place = "" if whole else "decoder." if config.kind == "decoder" else "encoder."
    mapped: Weights = {}
    for name, tensor in weights.items():
        # torch.nn packs all three; here the queries are of the target and the rest of the source.
        crosses = re.fullmatch(r"(decoder\.layers\.\d+\.)multihead_attn\.in_proj_(weight|bias)", name)
        if crosses and tensor.ndim:
            mapped[f"{crosses[1]}cross_attn.q_proj.{crosses[2]}"] = tensor[: config.d_model]
            mapped[f"{crosses[1]}cross_attn.kv_proj.{crosses[2]}"] = tensor[config.d_model :]
        else:
            mapped[place + _rename(name)] = tensor
    return config, mapped


def _check_module(file: Path, weights: Weights, whole: bool) -> None:
    """Refuse weights of another module, or of half of one."""
    # Other weights, such as an embedding, belong to a module whose forward is not known here.
    foreign = [name for name in weights if not _LAYER.fullmatch(name) and not re.fullmatch(_norm(whole), name)]
    if foreign:
        raise CheckpointError(
            f"{file} holds {foreign[0]} beside the weights of torch.nn.Transformer's layers; {_OWN_MODULE}"
        )
    # A TransformerEncoder's names begin with its layers, those of a Transformer with either side;
    # only the latter may have attention to another sequence.
    sides = {name.partition(".")[0] for name in weights}
    crossed = any(".multihead_attn." in name for name in weights)
    if sides not in ({"encoder", "decoder"}, {"layers"}, {"layers", "norm"}) or crossed != whole:
        raise CheckpointError(
            f"{file} is a torch.nn.TransformerDecoder or half of a torch.nn.Transformer, which needs a memory from "
            f"elsewhere; {_OWN_MODULE}"
        )


def _infer(file: Path, weights: Weights, whole: bool, kind: str) -> dict[str, Any]:
    """Read what weights show of the configuration.

    A bare TransformerEncoder may be a decoder by its causal mask, which no weight shows: `kind` says that.
    """
    encoder, decoder = ("encoder.", "decoder.") if whole else ("", "")
    # (F, D) shows both sizes; the loader compares all other layers with them.
    first = matrix(file, weights, f"{encoder}layers.0.linear1.weight")
    bias = any(name.endswith("linear1.bias") for name in weights)
    return {
        "kind": "encoder-decoder" if whole else kind,
        "vocab_size": 0,
        "d_model": first.size(1),
        "num_encoder_layers": _depth(weights, encoder),
        "num_decoder_layers": _depth(weights, decoder),
        "dim_feedforward": first.size(0),
        "activation": "relu",
        "final_norm": f"{encoder}norm.weight" in weights,
        **dict.fromkeys(("norm_bias", "qkv_bias", "out_bias", "feed_forward_bias"), bias),
        "positions": "none",
    }


def _norm(whole: bool) -> str:
    return r"(en|de)coder\.norm\.(weight|bias)" if whole else r"norm\.(weight|bias)"


def _depth(weights: Weights, side: str) -> int:
    found = [_LAYER.fullmatch(name) for name in weights]
    return max((int(match[2]) + 1 for match in found if match and (match[1] or "") == side), default=1)


def _rename(name: str) -> str:
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    side, layer, part = match[1] or "", match[2], match[3]
    # A decoder's second norm is of the cross-attention that an encoder does not have.
    modules = _MODULES | (
        {"norm2.": "cross_attn_residual.norm.", "norm3.": "feed_forward_residual.norm."}
        if side == "decoder."
        else {"norm2.": "feed_forward_residual.norm."}
    )
    for theirs, ours in modules.items():
        if part.startswith(theirs):
            return f"{side}layers.{layer}.{ours}{part.removeprefix(theirs)}"
    return name
