"""Sweeps of attention: forms of masks × lengths × past × heads × head sizes × scale × soft cap, float32.

What is exported is `SelfAttention` and `CrossAttention`, whose projections change nothing; a
graph has an output per mask that its code can have, so that few exports carry the whole product. Lengths and what the
masks hold are fed.

Shapes: B batch, S query length, T key length, N heads, K key/value heads, H head size.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfm.model import (
    CrossAttention,
    SelfAttention,
    TransformerConfig,
    causal_mask,
    merge_heads,
    padding_mask,
    split_heads,
)
from tfm.ops import oracles

from ..graphs import Value
from .pairs import all_pairs, product
from .subjects import Array, Case, Check, OpGraph, Source, limits_of

FACTORS: dict[str, Sequence[Any]] = {
    "heads": ((1, 1), (3, 3), (6, 2), (4, 1)),  # N over K
    "layout": ("self", "cross"),
    "softcap": (None, 5.0),
    # 20 fills no whole number of AVX vectors (8 or 16 floats).
    "size": (8, 20, 64, 128),
    "scale": (None, 0.3),
}
"""What differs between graphs; in this order, all pairs are met by 16 of the 128."""

LENGTHS: dict[str, tuple[tuple[int, int, int], ...]] = {
    # Odd lengths and one token; of a source, longer and shorter than the query.
    "self": ((2, 5, 0), (3, 1, 0), (1, 17, 0)),
    "cross": ((2, 5, 9), (2, 9, 4), (2, 1, 6), (3, 3, 1)),
}
"""What is fed: B and S, with a source's T."""

WINDOW = 3
"""Keys that a query sees where the window slides, itself included."""

FORMS = (
    "none",
    "bool",
    "float",
    "float, -inf",
    "float, finfo.min",
    "bool, whole rows",
    "float, -inf, whole rows",
    "float, finfo.min, whole rows",
    "causal",
    "causal (is_causal)",
    "causal + padding",
    f"sliding window of {WINDOW}",
)
"""Forms of masks, in the order of the table; "whole rows": some queries may attend nowhere."""

_LARGE = 30.0
"""Factor on queries that makes a softmax sharp."""

_LEAST = float(np.finfo(np.float32).min)


class _Self(nn.Module):
    """Self-attention of one input under every mask of the model's code."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        # Q, K and V are fed side by side, as the projection would give them, so that nothing but
        # the attention is compared.
        self.attention.in_proj = self.attention.out_proj = nn.Identity()  # type: ignore[assignment]
        self.heads = (config.nhead, config.kv_heads, config.kv_heads)

    def forward(self, x_BSD: Tensor, real_BT: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        place_S = torch.arange(x_BSD.size(1))
        causal, padding = causal_mask(place_S[None], place_S), padding_mask(real_BT, x_BSD.size(1))
        masks = [None, padding, causal, causal & padding, causal_mask(place_S[None], place_S, WINDOW)]
        # The soft-capped op takes a mask of booleans alone.
        masks += [rest[0]] if self.attention.softcap is None else []
        results = [self.attention(x_BSD, mask)[0] for mask in masks]
        if self.attention.softcap is None:
            results.append(self._is_causal(x_BSD))
        return tuple(results)

    def _is_causal(self, x_BSD: Tensor) -> Tensor:
        """What modules of others call, where ours makes a mask."""
        attention = self.attention
        # (B, S, (N + 2K) · H) → (B, N, S, H) and twice (B, K, S, H).
        parts = torch.split_with_sizes(x_BSD, [count * attention.head_size for count in self.heads], dim=-1)
        q, k, v = (split_heads(part, count) for part, count in zip(parts, self.heads, strict=True))
        y_BNSH = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scale, enable_gqa=True)
        return merge_heads(y_BNSH)


class _Cross(nn.Module):
    """Cross-attention of one input and one source under every mask."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = CrossAttention(config)
        self.attention.q_proj = self.attention.out_proj = nn.Identity()  # type: ignore[assignment]
        # Keys and values are inputs; a weight that nothing reads has no place in the graph.
        del self.attention.kv_proj

    def forward(self, x_BSD: Tensor, real_BT: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        source = (rest[-2], rest[-1])
        masks = [None, padding_mask(real_BT, x_BSD.size(1))]
        masks += [rest[0]] if self.attention.softcap is None else []
        return tuple(self.attention(x_BSD, source, mask) for mask in masks)


def subjects(*, full: bool) -> list[Source]:
    """List the sweeps: the whole product of `FACTORS`, or combinations in which every two choices meet."""
    return [
        Source(
            group="attention",
            op="attention",
            tolerances=limits_of("attention"),
            title=describe(**row),
            make=functools.partial(make_graph, **row),
            cases=functools.partial(_cases, row),
        )
        # 128 exports take long; the 16 meet every pair of options, and masks and lengths are fed in
        # full to each.
        for row in (product(FACTORS) if full else all_pairs(FACTORS))
    ]


def describe(layout: str, softcap: float | None, heads: tuple[int, int], size: int, scale: float | None) -> str:
    """Name a graph."""
    options = [f"scale {scale:g}"] if scale is not None else []
    options += [f"softcap {softcap:g}"] if softcap is not None else []
    count, shared = heads
    return " ".join([layout, f"{count}×{size}" if count == shared else f"{count}/{shared}×{size}", *options])


def make_graph(layout: str, softcap: float | None, heads: tuple[int, int], size: int, scale: float | None) -> OpGraph:
    """Build the graph of one combination."""
    count, shared = heads
    config = TransformerConfig(
        kind="decoder",
        vocab_size=1,
        d_model=count * size,
        nhead=count,
        num_kv_heads=shared,
        attention_softcap=softcap,
        attention_scale=scale,
    )
    # The length of the keys.
    total = "sequence" if layout == "self" else "source"
    width = count * size + (0 if layout == "cross" else 2 * shared * size)
    shapes: dict[str, tuple[str | int, ...]] = {"x": ("batch", "sequence", width), "real": ("batch", total)}
    if softcap is None:
        shapes["bias"] = ("batch", count, "sequence", total)
    if layout == "cross":
        shapes |= dict.fromkeys(("key", "value"), ("batch", shared, "source", size))
    names = ["none", "padding"]
    names += [] if layout == "cross" else ["causal", "causal_padding", "sliding"]
    names += ["bias"] if softcap is None else []
    names += ["is_causal"] if softcap is None and layout == "self" else []
    inputs = tuple(
        Value(name=name, dtype="bool" if name == "real" else "float32", shape=shape) for name, shape in shapes.items()
    )
    out = ("batch", "sequence", count * size)
    outputs = tuple(Value(name=f"y_{name}", dtype="float32", shape=out) for name in names)

    def draw(generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
        sizes = {"batch": batch, "sequence": length, "source": length + past}
        tensors = [
            torch.randn([dim if isinstance(dim, int) else sizes[dim] for dim in value.shape], generator=generator)
            for value in inputs
        ]
        # Most are real, whatever the seed: these are inputs to trace with, not to compare.
        return [
            tensor > -1.0 if value.dtype == "bool" else tensor for value, tensor in zip(inputs, tensors, strict=True)
        ]

    module = _Cross(config) if layout == "cross" else _Self(config)
    return OpGraph(module, inputs, outputs, draw)


def _cases(row: dict[str, Any], graph: OpGraph, dtype: str) -> Iterator[Case]:
    """Every length, fed with masks of every kind; the last length with large scores."""
    del dtype
    (count, shared), layout, softcap, size, scale = (row[name] for name in FACTORS)
    outputs = {value.name for value in graph.outputs}
    random = np.random.default_rng(0)
    for batch, length, other in LENGTHS[layout]:
        # One length of each layout has a sharp softmax, where one key takes all the weight.
        large = (batch, length, other) == LENGTHS[layout][-1]
        total = other if layout == "cross" else length
        shapes = [(batch, count, length, size), (batch, shared, total, size), (batch, shared, total, size)]
        # The oracle's inputs: (B, N, S, H), and (B, K, T, H).
        q, k, v = (random.standard_normal(shape, dtype=np.float32) for shape in shapes)
        q *= np.float32(_LARGE if large else 1.0)
        # The graph's: merged, (B, S, (N + 2K) · H), but for a source's, which are by heads.
        merged = [_merge(x) for x in ([q] if layout == "cross" else [q, k, v])]
        feeds = {"x": np.concatenate(merged, axis=-1)}
        if layout == "cross":
            feeds |= {"key": k, "value": v}
        factor = size**-0.5 if scale is None else scale
        # The largest score before its cap: an error in it becomes a relative one of the weight.
        top = float(np.abs(np.einsum("bnsh,bnth->bnst", q, np.repeat(k, count // shared, axis=1))).max()) * factor
        attend = functools.partial(
            oracles.attention, *(x.astype(np.float64) for x in (q, k, v)), scale=factor, softcap=softcap
        )
        make_check = functools.partial(
            Check,
            unit=float((1.0 + top) * np.abs(v).max()),
            where=f"{describe(**row)}, S={length}"
            + (f", T={total}" if layout == "cross" else "")
            + (f", {_LARGE:g}·Q" if large else ""),
        )
        # Query s sees keys 0 to s; of a window, only the last `WINDOW` of these.
        seen_ST = np.tri(length, total, dtype=bool)
        window_ST = seen_ST & ~np.tri(length, total, -WINDOW, dtype=bool)
        for real_BT, low, bias, names in _masks(random, batch, count, length, total):
            padding = real_BT[:, None, None, :]
            masks: dict[str, tuple[str, npt.NDArray[Any] | None]] = {
                "y_padding": (names[0], padding),
                "y_bias": (names[1], bias),
                "y_causal_padding": ("causal + padding", seen_ST & padding),
            }
            # Once a length: these masks do not depend on what is drawn.
            if low is None:
                masks |= {
                    "y_none": ("none", None),
                    "y_causal": ("causal", seen_ST),
                    "y_is_causal": ("causal (is_causal)", seen_ST),
                    "y_sliding": (f"sliding window of {WINDOW}", window_ST),
                }
            fed = feeds | {"real": real_BT, "bias": bias}
            yield Case(
                feeds=tuple(np.ascontiguousarray(fed[value.name]) for value in graph.inputs),
                checks=tuple(
                    make_check(form=form, output=output, expected=_merge(attend(mask=mask)))
                    for output, (form, mask) in masks.items()
                    if output in outputs
                ),
            )


def _masks(
    random: np.random.Generator, batch: int, count: int, length: int, total: int
) -> Iterator[tuple[npt.NDArray[np.bool_], float | None, Array, tuple[str, str]]]:
    """Real keys (B, T), what a float mask adds to others (None: numbers everywhere), that mask, names of both forms."""
    ragged_BT = random.random((batch, total)) < 0.6
    # At least one real key a row, so that "whole rows" below is the only case without.
    ragged_BT[:, random.integers(total)] = True
    empty_BT = ragged_BT.copy()
    empty_BT[0] = False
    shape = (batch, count, length, total)
    yield ragged_BT, None, random.standard_normal(shape, dtype=np.float32), ("bool", "float")
    # The two numbers that models mask with. They differ where a whole row is masked: zeros, and the
    # mean of the values.
    for low, name in ((-np.inf, "-inf"), (_LEAST, "finfo.min")):
        for real_BT, rows in ((ragged_BT, ""), (empty_BT, ", whole rows")):
            bias = np.where(real_BT[:, None, None, :], np.zeros(shape, np.float32), np.float32(low))
            yield real_BT, low, bias, (f"bool{rows}", f"float, {name}{rows}")


def _merge(y_BNSH: Array) -> Array:
    """(B, N, S, H) → (B, S, N·H)."""
    batch, count, length, size = y_BNSH.shape
    return y_BNSH.transpose(0, 2, 1, 3).reshape(batch, length, count * size)
