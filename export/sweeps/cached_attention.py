"""Sweeps of attention over a cache: masks × lengths × past × room × heads × head sizes × scale × soft cap, float32.

What is exported is `tfm.model.attention.cached_attention` alone, once for every kind of mask that a decoder has. Head
sizes that are no multiple of 8 have another form than others, which makes a new cache each time, and has no room.

Shapes: B batch, S new tokens, P past tokens, T all of them, C length of the cache, N heads, K key/value heads, H size.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tfm.model import cached_attention, causal_mask, padding_mask
from tfm.ops import oracles

from ..graphs import Value
from ..passes.use_group_query_attention import has_groups
from .pairs import all_pairs, product
from .subjects import Array, Case, Check, OpGraph, Source, limits_of

FACTORS: dict[str, Sequence[Any]] = {
    "softcap": (None, 5.0),
    "heads": ((1, 1), (3, 3), (6, 2), (4, 1)),  # N over K
    # 20 has no GroupQueryAttention.
    "size": (8, 20, 64, 128),
    "scale": (None, 0.3),
}
"""What differs between graphs."""


class Lengths(NamedTuple):
    """What is fed: B, S, P, and how many places the cache has beyond the past."""

    batch: int
    new: int
    past: int
    room: int


LENGTHS = (
    # From an empty cache rows of any length go together; over a past, several tokens of one row.
    *(Lengths(3, 5, 0, room) for room in (0, 7)),
    *(Lengths(1, 4, past, room) for past in (1, 7) for room in (0, 6)),
    *(Lengths(2, 1, past, room) for past in (0, 1, 7) for room in (0, 3)),
)

WINDOW = 3
"""Keys that a query sees where the window slides, itself included."""

FORMS = (
    "causal",
    "padding on the left",
    "gaps",
    "padding on the right",
    f"sliding window of {WINDOW}",
    "float",
    "float, -inf",
    "float, finfo.min",
    "keys and values kept",
)
"""Forms of masks, in the order of the table, all of them causal; and what the cache holds afterwards."""

_LARGE = 30.0
"""Factor on queries that makes a softmax sharp."""

_LOW = {"float": None, "float, -inf": -np.inf, "float, finfo.min": float(np.finfo(np.float32).min)}


class _Cached(nn.Module):
    """The attention of one input under every mask."""

    def __init__(self, scale: float, softcap: float | None) -> None:
        super().__init__()
        self.scale, self.softcap = scale, softcap

    def forward(
        self, q_BSD: Tensor, k_BSD: Tensor, v_BSD: Tensor, key: Tensor, value: Tensor, real_BT: Tensor, *bias: Tensor
    ) -> tuple[Tensor, ...]:
        new, total = q_BSD.size(1), real_BT.size(1)
        key_T = torch.arange(total)
        query_1S = (torch.arange(new) + (total - new))[None]
        # As decoders have it: padding sees itself.
        real = padding_mask(real_BT, new) | (key_T == query_1S[:, :, None])[:, None]
        window = causal_mask(query_1S, key_T, WINDOW) & real
        attend = functools.partial(cached_attention, q_BSD, k_BSD, v_BSD, key, value)
        options = self.scale, self.softcap or 0.0
        # One of the two forms wants its cache to be read, so each gives it out.
        masks = (real, torch.ones_like(real), window, *bias)
        return tuple(result for mask in masks for result in attend(mask, *options))


def subjects(*, full: bool) -> list[Source]:
    """List the sweeps: the whole product of `FACTORS`, or combinations in which every two choices meet."""
    return [
        Source(
            group="cached_attention",
            op="cached_attention",
            tolerances=limits_of("attention"),
            title=f"cached {describe(**row)}",
            make=functools.partial(make_graph, **row),
            cases=functools.partial(_cases, row),
        )
        for row in (product(FACTORS) if full else all_pairs(FACTORS))
    ]


def describe(softcap: float | None, heads: tuple[int, int], size: int, scale: float | None) -> str:
    """Name a graph."""
    options = [f"scale {scale:g}"] if scale is not None else []
    options += [f"softcap {softcap:g}"] if softcap is not None else []
    return " ".join([f"{heads[0]}/{heads[1]}×{size}", *options])


def make_graph(softcap: float | None, heads: tuple[int, int], size: int, scale: float | None) -> OpGraph:
    """Build the graph of one combination."""
    count, shared = heads
    total, present = ("total", "present") if has_groups(size) else ("past_sequence + sequence",) * 2
    shapes: dict[str, tuple[str | int, ...]] = {"q": ("batch", "sequence", count * size)}
    shapes |= dict.fromkeys(("k", "v"), ("batch", "sequence", shared * size))
    shapes |= dict.fromkeys(("key", "value"), ("batch", shared, "past_sequence", size))
    shapes["real"] = ("batch", total)
    # The soft-capped form takes a mask of booleans alone.
    if softcap is None:
        shapes["bias"] = ("batch", count, "sequence", total)
    results: dict[str, tuple[str | int, ...]] = {}
    for mask in ("real", "causal", "window", *(("bias",) if softcap is None else ())):
        results[f"y_{mask}"] = shapes["q"]
        results |= {f"present_{name}_{mask}": ("batch", shared, present, size) for name in ("key", "value")}
    inputs = tuple(
        Value(name=name, dtype="bool" if name == "real" else "float32", shape=shape) for name, shape in shapes.items()
    )
    outputs = tuple(Value(name=name, dtype="float32", shape=shape) for name, shape in results.items())

    def draw(generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
        sizes = {"batch": batch, "sequence": length, "past_sequence": past, total: past + length}
        tensors = [
            torch.randn([dim if isinstance(dim, int) else sizes[dim] for dim in value.shape], generator=generator)
            for value in inputs
        ]
        return [x > -1.0 if value.dtype == "bool" else x for value, x in zip(inputs, tensors, strict=True)]

    return OpGraph(_Cached(size**-0.5 if scale is None else scale, softcap), inputs, outputs, draw)


def _cases(row: dict[str, Any], graph: OpGraph, dtype: str) -> Iterator[Case]:
    """Every length, with masks of every kind; the last length with large scores."""
    del dtype
    random = np.random.default_rng(0)
    for lengths in LENGTHS:
        if has_groups(row["size"]) or not lengths.room:
            yield from _cases_of(row, graph, lengths, random)


def _cases_of(row: dict[str, Any], graph: OpGraph, lengths: Lengths, random: np.random.Generator) -> Iterator[Case]:
    (count, _), size = row["heads"], row["size"]
    batch, new, past, room = lengths
    large = lengths == LENGTHS[-1]
    feeds, kept, (q, k, v) = _tensors(row, lengths, random, _LARGE if large else 1.0)
    factor = size**-0.5 if row["scale"] is None else row["scale"]
    groups = q.shape[1] // k.shape[1]
    top = float(np.abs(np.einsum("bnsh,bnth->bnst", q, np.repeat(k, groups, axis=1))).max()) * factor
    exact = [x.astype(np.float64) for x in (q, k, v)]
    attend = functools.partial(oracles.attention, *exact, scale=factor, softcap=row["softcap"])
    make_check = functools.partial(
        Check,
        unit=float((1.0 + top) * np.abs(v).max()),
        where=f"{describe(**row)}, S={new}, past {past}, room {room}" + (f", {_LARGE:g}·Q" if large else ""),
    )
    seen_ST, itself_ST = np.tri(new, past + new, past, dtype=bool), np.eye(new, past + new, past, dtype=bool)
    window_ST = seen_ST & ~np.tri(new, past + new, past - WINDOW, dtype=bool)
    outputs = {value.name for value in graph.outputs}
    for form, low, real_BT in _masks(random, batch, past + new):
        allowed_BST = seen_ST & (real_BT[:, None] | itself_ST)
        bias = random.standard_normal((batch, count, new, past + new), dtype=np.float32)
        if low is not None:
            bias = np.where((real_BT[:, None] | itself_ST)[:, None], bias, np.float32(low))
        wanted = {"y_real": (form, allowed_BST[:, None])}
        if form in _LOW:
            wanted = {"y_bias": (form, np.where(seen_ST, bias.astype(np.float64), -np.inf))}
        elif form == FORMS[1]:  # once a length
            wanted |= {"y_window": (FORMS[4], (window_ST & allowed_BST)[:, None]), "y_causal": (FORMS[0], seen_ST)}
        checks = [make_check(form=f, output=o, expected=_merge(attend(mask=m))) for o, (f, m) in wanted.items()]
        if form == FORMS[1]:
            checks += [make_check(form=FORMS[-1], output=name, expected=array) for name, array in kept.items()]
        checks = [check for check in checks if check.output in outputs]
        fed = feeds | {"real": real_BT, "bias": bias}
        if checks:
            yield Case(
                feeds=tuple(np.ascontiguousarray(fed[value.name]) for value in graph.inputs), checks=tuple(checks)
            )


def _tensors(
    row: dict[str, Any], lengths: Lengths, random: np.random.Generator, sharpness: float
) -> tuple[dict[str, Array], dict[str, npt.NDArray[np.float64]], list[Array]]:
    """What is fed; what the cache must hold then; and queries, keys and values by heads, the past in front."""
    (count, shared), size = row["heads"], row["size"]
    batch, new, past, room = lengths
    shapes = [(batch, count, new, size), *[(batch, shared, past + new, size)] * 2]
    q, k, v = (random.standard_normal(shape, dtype=np.float32) for shape in shapes)
    q *= np.float32(sharpness)
    # What is in the room must not be seen: large numbers would show.
    spare = np.full((batch, shared, room, size), 50.0, np.float32)
    empty = np.zeros((batch, shared, max(room - new, 0), size), np.float32)
    feeds = {"q": _merge(q), "k": _merge(k[:, :, past:]), "v": _merge(v[:, :, past:])}
    feeds |= {name: np.concatenate([x[:, :, :past], spare], 2) for name, x in (("key", k), ("value", v))}
    kept = {
        f"present_{name}_real": np.concatenate([x, empty], 2).astype(np.float64)
        for name, x in (("key", k), ("value", v))
    }
    return feeds, kept, [q, k, v]


def _masks(
    random: np.random.Generator, batch: int, total: int
) -> Iterator[tuple[str, float | None, npt.NDArray[np.bool_]]]:
    """Form, what a float mask adds to keys that are not real (None: nothing), and which are real, (B, T)."""
    place_T = np.arange(total)
    start_B1 = random.integers(total, size=(batch, 1))
    yield FORMS[1], None, place_T >= start_B1
    gaps_BT = random.random((batch, total)) < 0.6
    yield FORMS[2], None, gaps_BT
    yield FORMS[3], None, place_T <= start_B1
    for form, low in _LOW.items():
        yield form, low, gaps_BT


def _merge(y_BNSH: Array) -> Array:
    """(B, N, S, H) → (B, S, N·H)."""
    batch, count, length, size = y_BNSH.shape
    return y_BNSH.transpose(0, 2, 1, 3).reshape(batch, length, count * size)
