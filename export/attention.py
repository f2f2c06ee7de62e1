"""Our translation of `F.scaled_dot_product_attention` to ONNX-23 `Attention`, and of a few ops near it.

As torch translates it, a [B, 1, 1, T] padding mask makes onnxruntime fail when run, since its kernel wants the mask
in full; and below opset 23 it becomes a chain that no onnxruntime fusion matches. Semantics: ONNX operator
specification, Attention-23.

A query that may attend nowhere gets from eager PyTorch zeros where the mask is False or -inf, and the mean of all
values where it is a large finite number, which swallows the scores. onnxruntime 1.32 gives the same, but takes the
least float32 of all, `finfo.min`, for -inf. So what is finite in a float mask is raised to at least half of that, which
swallows the scores just as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset23 as op

import tfm.model  # noqa: F401  (defines the op that torch has no function for)
from tfm.errors import ExportError

_LEAST = torch.finfo(torch.float32).min


def _scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    softcap: float = 0.0,
) -> Any:
    """Queries (B, N, S, H), keys and values (B, K, T, H), or without B; the mask broadcasts to (B, N, S, T)."""
    # Attention groups heads by their numbers.
    del enable_gqa
    # ONNX's Attention has no dropout: leaving it out would export another function.
    if dropout_p:
        raise ExportError(f"an attention drops out {dropout_p:g} of its weights even in eval mode, which is random")
    # Attention reads three dimensions as (B, S, N·H): a query without a batch, (N, S, H), gets one
    # of 1, and loses it at the end.
    rank = len(query.shape)
    if rank not in (3, 4):
        raise ExportError(f"an attention has queries of {rank} dimensions; 3 or 4 can be exported")
    # Which Attention would read as (B, S, N·H).
    if rank == 3:
        first: Any = op.Constant(value_ints=[0])
        query, key, value = (op.Unsqueeze(x, first) for x in (query, key, value))
        # A mask (N, S, T) goes along; one (S, T) broadcasts as it is.
        attn_mask = op.Unsqueeze(attn_mask, first) if attn_mask is not None and len(attn_mask.shape) == 3 else attn_mask
    # Told before the mask is rewritten: the shape of what _without_least gives may not be known
    # yet.
    full = attn_mask is None or _is_full(attn_mask.shape, query.shape, key.shape)
    if attn_mask is not None and attn_mask.dtype == ir.DataType.FLOAT:
        attn_mask = _without_least(attn_mask)
    if not full:
        # (.., 1 or S, 1 or T) → (.., S, T). Expand broadcasts both ways, so the two ones leave the
        # mask's own batch and heads alone. The lengths are read off Q and K, as they are dynamic.
        one: Any = op.Constant(value_ints=[1, 1])
        length_S: Any = op.Shape(query, start=2, end=3)
        length_T: Any = op.Shape(key, start=2, end=3)
        shape: Any = op.Concat(one, length_S, length_T, axis=0)
        attn_mask = op.Expand(attn_mask, shape)
    output, *_ = op.Attention(query, key, value, attn_mask, is_causal=int(is_causal), scale=scale, softcap=softcap)
    return op.Squeeze(output, first) if rank == 3 else output


def _without_least(mask: Any) -> Any:
    # -inf must stay -inf, and Max would raise it: a query that may attend nowhere gives zeros only
    # then.
    half: Any = op.Constant(value_float=_LEAST / 2)
    return op.Where(op.IsInf(mask), mask, op.Max(mask, half))


def _is_full(mask: ir.Shape | None, query: ir.Shape | None, key: ir.Shape | None) -> bool:
    if mask is None or query is None or key is None or mask.rank() != 4:
        return False
    # Dimensions are numbers or symbols; torch gives two of the same length the same symbol.
    return bool(mask[2] == query[2] and mask[3] == key[2])


def _softcapped_attention(query: Any, key: Any, value: Any, mask: Any, scale: float, softcap: float) -> Any:
    """`tfm.model.attention.softcapped_attention`: the scores' cap is an attribute of Attention."""
    return _scaled_dot_product_attention(query, key, value, mask, scale=scale, softcap=softcap)


def _rms_norm(x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    """`F.rms_norm` over the last dimensions, ONNX-23 RMSNormalization."""
    # What F.rms_norm takes where it is given none.
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return op.RMSNormalization(x, weight, axis=-len(normalized_shape), epsilon=eps)


def _cached_attention(
    query: Any,
    key: Any,
    value: Any,
    past_key: Any,
    past_value: Any,
    mask: Any,
    scale: float,
    softcap: float,
) -> Any:
    """`tfm.model.attention.cached_attention`: what `UseGroupQueryAttention` reads, and writes otherwise."""
    count, size = int(past_key.shape[1]), int(past_key.shape[3])
    heads = {"q_num_heads": int(query.shape[2]) // size, "kv_num_heads": count}
    arguments = query, key, value, mask, past_key, past_value
    return op.Attention(*arguments, is_causal=1, scale=scale, softcap=softcap, **heads)[:3]


def _last_tokens(x: Any, count: Any) -> Any:
    """`tfm.model.attention.last_tokens`: from -count on, which of 0 is from the start on."""
    one: Any = op.Constant(value_ints=[1])
    end: Any = op.Constant(value_ints=[(1 << 63) - 1])
    return op.Slice(x, op.Reshape(op.Neg(count), one), end, one)


def _rotate(x: Any, cos: Any, sin: Any, nhead: int) -> Any:
    """`tfm.model.positions.rotate`, ONNX-23 RotaryEmbedding."""
    # cos is (B or 1, S, I) with I pairs, 2I of a head's H entries. 0 is the op's way to say "all of
    # them".
    size = 2 * cos.shape[-1]
    whole = size * nhead == x.shape[-1]
    return op.RotaryEmbedding(x, cos, sin, num_heads=nhead, rotary_embedding_dim=0 if whole else size)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _scaled_dot_product_attention,
    torch.ops.tfm.softcapped_attention.default: _softcapped_attention,
    torch.ops.tfm.cached_attention.default: _cached_attention,
    torch.ops.tfm.last_tokens.default: _last_tokens,
    torch.ops.tfm.rotate.default: _rotate,
    torch.ops.aten.rms_norm.default: _rms_norm,
}
"""For `torch.onnx.export(custom_translation_table=…)`."""
