"""Llama as its authors write it (`consolidated.*.pth` and params.json), and as llama2.c's train.py does.

Both turn neighboring entries of a head, where ours pairs the first half with the second: queries and keys are
reordered. A length is in llama2.c's configuration only; elsewhere it is 2048 unless `max_seq_len` says otherwise.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm.errors import CheckpointError

from ..config import RotaryScaling, TransformerConfig
from ..families.common import Weights, matrix, pack, rename, same
from ..families.reorder import halves
from ..fields import MOST_TOKENS, Fields

_NAMES = {"tok_embeddings": "decoder.embedding.token", "norm": "decoder.norm", "output": "decoder.head"}

_LAYER = {
    "layers.*.attention_norm": "self_attn_residual.norm",
    "layers.*.attention.wq": "self_attn.wq",
    "layers.*.attention.wk": "self_attn.wk",
    "layers.*.attention.wv": "self_attn.wv",
    "layers.*.attention.wo": "self_attn.out_proj",
    "layers.*.ffn_norm": "feed_forward_residual.norm",
    "layers.*.feed_forward.w1": "feed_forward.w1",
    "layers.*.feed_forward.w3": "feed_forward.w3",
    "layers.*.feed_forward.w2": "feed_forward.linear2",
}

_FIELDS = (
    "dim n_layers n_heads n_kv_heads head_dim hidden_dim vocab_size multiple_of ffn_dim_multiplier norm_eps "
    "rope_theta use_scaled_rope rope_scaling_factor rope_high_freq_factor max_seq_len max_batch_size dropout "
    "sliding_window"
)

_TABLES = ("rope.freqs", "freqs_cos", "freqs_sin")
"""Constants that some versions saved."""


def is_llama(weights: Weights) -> bool:
    """Whether the weights have the names of Llama's authors."""
    return "tok_embeddings.weight" in weights and "layers.0.attention.wq.weight" in weights


def convert_llama(
    file: Path, parameters: dict[str, Any], weights: Weights, source: Path | None = None
) -> tuple[TransformerConfig, Weights]:
    """Map Llama's parameters, params.json or llama2.c's model_args, and its whole weights to ours.

    `source` is the parameters' file, where it is another than the weights'.
    """
    values = Fields(file if source is None else source, "Llama", parameters)
    values.refuse_unknown(_FIELDS)
    weights = {name: tensor for name, tensor in weights.items() if name not in _TABLES}
    # Sizes are read off the weights: params.json may have a vocab_size of -1, and gives the
    # feed-forward's by a rule.
    up = matrix(file, weights, "layers.0.feed_forward.w1.weight")
    embedding, head = weights["tok_embeddings.weight"], weights.get("output.weight")
    if embedding.ndim != 2:
        raise CheckpointError(f"{file}: tok_embeddings.weight has {embedding.ndim} dimensions, not 2")
    tied = head is None or same(head, embedding)
    if tied:
        weights.pop("output.weight", None)
    values.size("vocab_size", -1, least=-1, most=MOST_TOKENS)  # -1 leaves it to the tokenizer
    config = TransformerConfig(
        kind="decoder",
        vocab_size=len(embedding),
        d_model=values.size("dim"),
        nhead=values.size("n_heads", most=1 << 16),
        num_kv_heads=values.optional_size("n_kv_heads", most=1 << 16),
        head_dim=values.optional_size("head_dim"),
        num_decoder_layers=values.layers("n_layers"),
        dim_feedforward=len(up),
        dropout=values.share("dropout", 0.0),
        activation="swiglu",
        norm="rms",
        norm_first=True,
        layer_norm_eps=values.number("norm_eps", 1e-5, most=1.0),
        qkv_bias=False,
        out_bias=False,
        feed_forward_bias=False,
        sliding_window=values.optional_size("sliding_window", most=MOST_TOKENS),
        positions="rotary",
        max_positions=values.optional_size("max_seq_len") or 2048,
        rotary_base=values.number("rope_theta", 10000.0),
        rotary_scaling=_scaling(values),
        scale_embeddings=False,
        tie_embeddings=tied,
        head_bias=False,
    )
    weights = rename(weights, _NAMES, _LAYER, "decoder.layers")
    for layer in range(config.num_decoder_layers):
        _pack_layer(file, config, weights, f"decoder.layers.{layer}")
    return config, weights


def _pack_layer(file: Path, config: TransformerConfig, weights: Weights, layer: str) -> None:
    attention, ffn = f"{layer}.self_attn", f"{layer}.feed_forward"
    # Reordered before they are packed, since values stay as they are.
    for name, heads in ((f"{attention}.wq.weight", config.nhead), (f"{attention}.wk.weight", config.kv_heads)):
        if name in weights:
            weights[name] = halves(file, name, weights[name], heads)
    pack(file, weights, [f"{attention}.w{part}" for part in "qkv"], f"{attention}.in_proj", bias=False)
    pack(file, weights, [f"{ffn}.w3", f"{ffn}.w1"], f"{ffn}.linear1", bias=False)  # value, then gate


def shards_of(file: Path) -> list[Path]:
    """List the files over which a model-parallel checkpoint is spread: `consolidated.00.pth` and so on."""
    pattern = re.compile(r"(consolidated\.)(\d+)(\.\w+)")
    match = pattern.fullmatch(file.name)
    if match is None:
        return [file]
    found = [
        other for path in file.parent.iterdir() if (other := pattern.fullmatch(path.name)) and other[3] == match[3]
    ]
    there, count = {other[0] for other in found}, 1 + max(int(other[2]) for other in found)
    names: list[str] = []
    for number in range(count):  # a number of many digits is no reason to list as many names
        names.append(f"{match[1]}{number:0{len(match[2])}}{match[3]}")
        if names[-1] not in there:
            raise CheckpointError(f"{file.parent} lacks {names[-1]}, one of {count} files of a checkpoint in parts")
    return [file.parent / name for name in names]


def merge(file: Path, values: dict[str, Any], shards: Sequence[Weights]) -> Weights:
    """Put together the weights that model parallelism has split by rows or by columns."""
    if len(shards) == 1:
        return shards[0]
    if any(shard.keys() != shards[0].keys() for shard in shards):
        raise CheckpointError(f"{file}: the files of a checkpoint in parts hold weights of different names")
    return {name: _join(file, name, [shard[name] for shard in shards], values.get("dim")) for name in shards[0]}


def _join(file: Path, name: str, parts: Sequence[Tensor], width: Any) -> Tensor:
    kind = name.split(".")[-2] if "." in name else name
    # Norms and tables are the same in every part.
    if parts[0].ndim < 2 or kind in _TABLES:
        return parts[0]
    # These two multiply what is spread over the parts. Embeddings were split by columns up to
    # Llama 2 and by rows since: the part's own width tells.
    dim = int(kind in ("wo", "w2") or (kind == "tok_embeddings" and parts[0].shape[1] != width))
    if len({(*part.shape[:dim], *part.shape[dim + 1 :]) for part in parts}) > 1:
        raise CheckpointError(f"{file}: the parts of {name} do not go together: {[tuple(p.shape) for p in parts]}")
    return torch.cat(list(parts), dim=dim)


def _scaling(values: Fields) -> RotaryScaling | None:
    """Llama 3.1's scaling; where params.json gives no numbers, they are those of its reference code."""
    if not values.flag("use_scaled_rope"):
        return None
    return RotaryScaling(
        kind="llama3",
        factor=values.optional_number("rope_scaling_factor", least=1.0, most=1e6) or 8.0,
        low_frequency_factor=1.0,
        high_frequency_factor=values.optional_number("rope_high_freq_factor", most=1e6) or 4.0,
        original_max_positions=8192,
    )
