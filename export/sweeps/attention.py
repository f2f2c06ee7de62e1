"""Sweeps of attention: forms of masks × lengths × past × heads × head sizes × scale × soft cap, float32.

What is exported is `SelfAttention`, alone and over a cache, and `CrossAttention`, whose projections change nothing; a
graph has an output per mask that its code can have, so that few exports carry the whole product. Lengths and what the
masks hold are fed.

Shapes: B batch, S query length, T key length, P past length, N heads, K key/value heads, H head size.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfm.model import TransformerConfig
from tfm.model.attention import CrossAttention, SelfAttention, causal_mask, merge_heads, padding_mask, split_heads

from ..graphs import Value
from . import oracles
from .pairs import all_pairs, product
from .subjects import Array, Case, Check, OpGraph, Subject

FACTORS: dict[str, Sequence[Any]] = {
    "layout": ("self", "cached", "cross"),
    "heads": ((1, 1), (3, 3), (6, 2), (4, 1)),  # N over K
    "size": (8, 20, 64, 128),
    "softcap": (None, 5.0),
    "scale": (None, 0.3),
}
"""What differs between graphs."""

LENGTHS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "self": ((2, 5, 0), (3, 1, 0), (1, 17, 0)),
    "cached": tuple((2, length, past) for length in (4, 1) for past in (0, 1, 7)),
    "cross": ((2, 5, 9), (2, 9, 4), (2, 1, 6), (3, 3, 1)),
}
"""What is fed: B and S with P, or with the source's T."""

WINDOW = 3
LEAST = float(np.finfo(np.float32).min)


class _Self(nn.Module):
    """Self-attention of one input under every mask of the model's code."""

    def __init__(self, config: TransformerConfig, *, cached: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention.in_proj = self.attention.out_proj = nn.Identity()  # type: ignore[assignment]
        self.cached, self.heads = cached, [config.nhead * config.head_size, *[config.kv_heads * config.head_size] * 2]

    def forward(self, x_BSD: Tensor, real_BT: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        past = (rest[-2], rest[-1]) if self.cached else None
        past_length = 0 if past is None else past[0].size(2)
        query_S = torch.arange(x_BSD.size(1)) + past_length
        key_T = torch.arange(past_length + x_BSD.size(1))
        causal, padding = causal_mask(query_S, key_T), padding_mask(real_BT, x_BSD.size(1))
        masks = [None, padding, causal, causal & padding, causal_mask(query_S, key_T, WINDOW)]
        masks += [rest[0]] if self.attention.softcap is None else []
        results = [self.attention(x_BSD, mask, past)[0] for mask in masks]
        if not self.cached and self.attention.softcap is None:
            results.append(self._is_causal(x_BSD))
        return tuple(results)

    def _is_causal(self, x_BSD: Tensor) -> Tensor:
        """What modules of others call, where ours makes a mask."""
        attention = self.attention
        q, k, v = x_BSD.split(self.heads, dim=-1)
        q, k, v = split_heads(q, attention.nhead), split_heads(k, attention.kv_heads), split_heads(v, attention.kv_heads)
        y_BNSH = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scale, enable_gqa=True)
        return merge_heads(y_BNSH)


class _Cross(nn.Module):
    """Cross-attention of one input and one source under every mask."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = CrossAttention(config)
        self.attention.q_proj = self.attention.out_proj = nn.Identity()  # type: ignore[assignment]
        del self.attention.kv_proj

    def forward(self, x_BSD: Tensor, real_BT: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        source = (rest[-2], rest[-1])
        masks = [None, padding_mask(real_BT, x_BSD.size(1))]
        masks += [rest[0]] if self.attention.softcap is None else []
        return tuple(self.attention(x_BSD, source, mask) for mask in masks)


def subjects(*, full: bool) -> list[Subject]:
    """List the sweeps: the whole product of `FACTORS`, or combinations in which every two choices meet."""
    return [
        Subject(
            group="attention",
            op="attention",
            kind="attention",
            title=describe(**row),
            make=functools.partial(make_graph, **row),
            cases=functools.partial(_cases, row),
        )
        for row in (product(FACTORS) if full else all_pairs(FACTORS))
    ]


def describe(layout: str, heads: tuple[int, int], size: int, softcap: float | None, scale: float | None) -> str:
    """Name a graph."""
    options = [f"scale {scale:g}"] if scale is not None else []
    options += [f"softcap {softcap:g}"] if softcap is not None else []
    count, shared = heads
    return " ".join([layout, f"{count}×{size}" if count == shared else f"{count}/{shared}×{size}", *options])


def make_graph(
    layout: str, heads: tuple[int, int], size: int, softcap: float | None, scale: float | None
) -> OpGraph:
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
    total = {"self": "sequence", "cached": "past_sequence + sequence", "cross": "source"}[layout]
    width = count * size + (0 if layout == "cross" else 2 * shared * size)
    shapes: dict[str, tuple[str | int, ...]] = {"x": ("batch", "sequence", width), "real": ("batch", total)}
    if softcap is None:
        shapes["bias"] = ("batch", count, "sequence", total)
    if layout != "self":
        length = "source" if layout == "cross" else "past_sequence"
        shapes |= dict.fromkeys(("key", "value"), ("batch", shared, length, size))
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
        sizes = {"batch": batch, "sequence": length, "past_sequence": past, "source": length + past}
        sizes["past_sequence + sequence"] = length + past
        tensors = [
            torch.randn([dim if isinstance(dim, int) else sizes[dim] for dim in value.shape], generator=generator)
            for value in inputs
        ]
        return [tensor > -1.0 if value.dtype == "bool" else tensor for value, tensor in zip(inputs, tensors, strict=True)]

    module = _Cross(config) if layout == "cross" else _Self(config, cached=layout == "cached")
    return OpGraph(module, inputs, outputs, draw)


def _cases(row: dict[str, Any], graph: OpGraph, dtype: str) -> Iterator[Case]:
    """Every length, fed with masks of every kind; scores of ordinary size, and once of 30 times that."""
    del dtype
    layout, (count, shared), size, softcap, scale = (row[name] for name in FACTORS)
    random, title = np.random.default_rng(0), describe(**row)
    has = {value.name for value in (*graph.inputs, *graph.outputs)}
    for number, (batch, length, other) in enumerate(LENGTHS[layout]):
        past, total = (0, other) if layout == "cross" else (other, other + length)

        def normal(*shape: int) -> Array:
            return random.standard_normal(shape, dtype=np.float32)

        q, k, v = normal(batch, count, length, size), normal(batch, shared, total, size), normal(batch, shared, total, size)
        if number == 2:
            q = q * np.float32(30.0)
        new = [_merge(q)] if layout == "cross" else [np.concatenate([_merge(x[:, :, -length:]) for x in (q, k, v)], -1)]
        kept = {"self": [], "cached": [k[:, :, :past], v[:, :, :past]], "cross": [k, v]}[layout]
        where = f"{title}, S={length}" + (f", past {past}" if layout == "cached" else f", T={total}")
        seen = np.arange(total)[None, :] <= np.arange(past, total)[:, None] if layout != "cross" else None
        exact = [x.astype(np.float64) for x in (q, k, v)]
        factor = size**-0.5 if scale is None else scale
        score = np.abs(np.einsum("bnsh,bnth->bnst", exact[0], np.repeat(exact[1], count // shared, 1))).max() * factor
        unit = float((1.0 + min(score, softcap or np.inf)) * np.abs(v).max())

        def check(form: str, output: str, mask: npt.NDArray[Any] | None) -> Check:
            y = _merge(oracles.attention(*exact, mask, factor, softcap))
            return Check(form=form, output=f"y_{output}", expected=y, unit=unit, where=where)

        for real_BT, low, form, empty in _masks(random, batch, total):
            padding = real_BT[:, None, None, :]
            bias = (normal(batch, count, length, total) if low is None else np.float32(0.0)) + np.where(
                padding, np.float32(0.0), np.float32(0.0 if low is None else low)
            )
            bias = np.broadcast_to(bias, (batch, count, length, total)).astype(np.float32)
            checks = [check(f"float: {form}", "bias", bias)] if "bias" in has else []
            checks.append(check(f"bool: {empty}", "padding", padding))
            if low is None:
                checks.append(check("none", "none", None))
            if seen is not None:
                checks.append(check("causal + padding", "causal_padding", seen & padding))
                if low is None:
                    window = seen & ~np.tri(length, total, past - WINDOW, dtype=bool)
                    checks.append(check("causal", "causal", seen))
                    checks.append(check(f"sliding window of {WINDOW}", "sliding", window))
                    checks += [check("causal (is_causal)", "is_causal", seen)] if "y_is_causal" in has else []
            feeds = (*new, real_BT, *([bias] if "bias" in has else []), *kept)
            yield Case(feeds=tuple(np.ascontiguousarray(x) for x in feeds), checks=tuple(checks))


def _masks(
    random: np.random.Generator, batch: int, total: int
) -> Iterator[tuple[npt.NDArray[np.bool_], float | None, str, str]]:
    """Real keys (B, T), what a float mask adds to the others (None: numbers everywhere), and the names of both forms."""
    ragged = random.random((batch, total)) < 0.6
    ragged[:, random.integers(total)] = True
    empty = ragged.copy()
    empty[0] = False
    yield ragged, None, "numbers", "padding"
    for low, name in ((-np.inf, "-inf"), (LEAST, "finfo.min")):
        yield ragged, low, name, "padding"
        yield empty, low, f"{name}, rows masked whole", "rows masked whole"


def _merge(y_BNSH: Array) -> Array:
    """(B, N, S, H) → (B, S, N·H)."""
    batch, count, length, size = y_BNSH.shape
    return y_BNSH.transpose(0, 2, 1, 3).reshape(batch, length, count * size)
