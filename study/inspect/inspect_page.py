"""Draw what `tfm inspect` saw as one HTML file: a map per head, units per layer, and the residual stream."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.report import Label, check_schema, numbers, png, write_page

from .insight import SCHEMA
from .inspect_stream import draw_stream, shorten

_REFUSAL = "drawn from a look of schema {known}, and this one is of schema {found}: look again"

_MOST_TOKENS = 64
_MOST_LABELS = 48
_CELL = 14
_OPEN = 2
"""How many attentions of a stack show their heads without being asked."""

_SHARES = ("dead", "saturated", "near_zero", "zero")

Maps = Mapping[str, npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Axes:
    """What stands beside the maps of one pair of sequences: drawn once, and used by every head.

    Attributes:
        anchor: Its name in the page.
        cut: What of the maps is shown, "" where all.
        left: Room for the labels of the queries.
        top: Room for the labels of the keys, which lean to the right by half of it.
        width: Of a map, in its own units.
        height: Likewise.
    """

    anchor: str
    cut: str
    shape: tuple[int, int]
    left: float
    top: float
    width: float
    height: float
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]

    @property
    def across(self) -> float:
        """Width of map and labels."""
        return self.left + self.width + self.top / 2


@dataclasses.dataclass(frozen=True)
class HeadPicture:
    """One head: its map, what it attends to, and the strongest key of each query."""

    number: int
    picture: str
    label: str
    entropy: str
    relative: str
    open: bool
    strongest: tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True)
class AttentionPanel:
    """One attention and all its heads."""

    op: str
    summary: str
    open: bool
    axes: Axes
    heads: tuple[HeadPicture, ...]


def write_inspect(path: Path, content: Mapping[str, Any], maps: Maps) -> None:
    """Write a look inside as one HTML file that refers to no other: no network, no script, no font.

    Args:
        path: The file.
        content: What `tfm inspect --json` prints (`tfm.study.inspect.Insight.to_json`).
        maps: The attention weights, (N, S, T), by op.

    Raises:
        BundleError: The content is of another version of the schema.
    """
    check_schema(path, content, (SCHEMA,), _REFUSAL)
    tokens = {stack["role"]: stack["tokens"] for stack in content["stacks"]}
    counter = itertools.count()
    axes = {
        pair: draw_axes(f"axes{next(counter)}", tokens[pair[0]], tokens[pair[1]])
        for pair in dict.fromkeys((s["role"], a["over"]) for s in content["stacks"] for a in s["attentions"])
    }
    stacks = [
        {
            "role": stack["role"],
            "tokens": stack["tokens"],
            "attentions": [
                draw_attention(
                    attention,
                    maps[attention["op"]],
                    stack["tokens"],
                    tokens[attention["over"]],
                    axes[stack["role"], attention["over"]],
                    index < _OPEN,
                )
                for index, attention in enumerate(stack["attentions"])
            ],
            "units": [
                (one["op"], f"{one['units']:,}", [(100 * one[name], numbers.percent(one[name])) for name in _SHARES])
                for one in stack["feed_forwards"]
            ],
            "stream": draw_stream(stack) if stack["residual"]["sublayers"] else None,
        }
        for stack in content["stacks"]
    ]
    write_page(
        path,
        Path(__file__).with_name("inspect.html.j2"),
        content=content,
        stacks=stacks,
        axes=list(axes.values()),
        tiles=list(_tiles(content)),
    )


def name_heads(heads: Iterable[Mapping[str, Any]]) -> str:
    """How many heads attend to what, the most first, as "3 first token, 2 mixed"."""
    counts = Counter(head["label"] for head in heads)
    mixed = counts.pop("", 0)
    named = [f"{count} {label}" for label, count in counts.most_common()]
    return ", ".join([*named, *([f"{mixed} mixed"] if mixed else [])])


def draw_axes(anchor: str, queries: Sequence[str], keys: Sequence[str]) -> Axes:
    """Lay out the labels of the maps of these queries over these keys."""
    s, t = min(len(queries), _MOST_TOKENS), min(len(keys), _MOST_TOKENS)
    whole = (s, t) == (len(queries), len(keys))
    cut = "" if whole else f"Shown: the first {s} of {len(queries)} queries and {t} of {len(keys)} keys."
    # Beyond that, letters would be too small to be read.
    labeled = max(s, t) <= _MOST_LABELS
    cell = _CELL if labeled else _CELL * _MOST_LABELS / max(s, t)
    rows, columns = (
        tuple(Label(shorten(token), (i + 0.5) * cell) for i, token in enumerate(tokens[:count])) if labeled else ()
        for tokens, count in ((queries, s), (keys, t))
    )
    # As wide as the longest label, at about 6.2 units a letter.
    left, top = (6.2 * max(len(label.text) for label in labels) + 14 if labels else 0 for labels in (rows, columns))
    return Axes(anchor, cut, (s, t), left, top, t * cell, s * cell, rows, columns)


def draw_attention(
    attention: Mapping[str, Any],
    weights_NST: npt.NDArray[np.float32],
    queries: Sequence[str],
    keys: Sequence[str],
    axes: Axes,
    is_open: bool,
) -> AttentionPanel:
    """Draw one attention: every head small, and the most decided of those that have a name large."""
    s, t = axes.shape
    heads = attention["heads"]
    # Of those with a name, the one that gives most of its attention to the place of that name.
    decided = max(range(len(heads)), key=lambda index: heads[index]["share"] or 0.0)
    pictures = []
    for index, (head, weights_ST) in enumerate(zip(heads, weights_NST, strict=True)):
        shown = weights_ST[:s, :t]
        strongest = tuple(
            (queries[query], keys[key], numbers.percent(float(weights_ST[query, key])))
            for query, key in enumerate(head["strongest"][:s])
        )
        share = "" if head["share"] is None else f" {numbers.percent(head['share'])}"
        pictures.append(
            HeadPicture(
                number=index + 1,
                # Each head by its own largest weight: an even one would be blank beside a decided
                # one.
                picture=png.data_uri(shown, float(shown.max())),
                label=f"{head['label']}{share}" or "mixed",
                entropy=f"{head['entropy']:.2f}",
                relative=_relative(head["relative_entropy"]),
                open=index == decided,
                strongest=strongest,
            )
        )
    relative = [head["relative_entropy"] for head in heads if head["relative_entropy"] is not None]
    mean = f"entropy {_relative(sum(relative) / len(relative))} · " if relative else ""
    return AttentionPanel(attention["op"], mean + name_heads(heads), is_open, axes, tuple(pictures))


def _tiles(content: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Figure and label of what stands at the top."""
    stacks = content["stacks"]
    for stack in stacks:
        whose = "" if len(stacks) == 1 else f", {stack['role']}"
        yield str(len(stack["tokens"])), f"token{'s' if len(stack['tokens']) != 1 else ''}{whose}"
    yield from _tiles_of_heads(stacks)
    yield from _tiles_of_units(stacks)


def _tiles_of_heads(stacks: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    heads = [head for stack in stacks for attention in stack["attentions"] for head in attention["heads"]]
    if heads:
        named = sum(1 for head in heads if head["label"])
        yield f"{named} of {len(heads)}", "heads attend to something that has a name"


def _tiles_of_units(stacks: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    layers = [one for stack in stacks for one in stack["feed_forwards"]]
    if layers:
        units = sum(one["units"] for one in layers)
        for name in ("dead", "near_zero"):
            # Weighted by units, as layers may be of different width.
            share = sum(one[name] * one["units"] for one in layers) / units
            yield numbers.percent(share), "of units are dead" if name == "dead" else "of hidden values are near zero"


def _relative(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.0f}\N{NO-BREAK SPACE}%"
