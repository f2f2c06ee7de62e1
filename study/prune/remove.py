"""Which heads and units stay, and the smaller model of their weights.

A head or unit that is gone is one whose gate is 0: the smaller model computes the same function.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tfm.errors import ConfigError
from tfm.model import SelfAttention, Transformer

from .importance import Importance
from .parts import attentions, feed_forwards

Kept = Mapping[str, Sequence[int]]
"""Module name → the heads or units of it that stay, in rising order."""

MULTIPLE = 16
"""Units stay in so many: widths that kernels need no remainder for."""


def choose_by_share(
    model: Transformer, importance: Importance, *, heads: float, units: float, multiple: int = MULTIPLE
) -> Kept:
    """Keep shares of all heads and of all units, the most important wherever they are, and some in every layer.

    Args:
        model: What is cut.
        importance: Of its heads and units.
        heads: Share of all heads, in (0, 1]; those that share keys and values stay or go together.
        units: Share of all units, in (0, 1].
        multiple: Units stay in groups of so many, the most important first.

    Raises:
        ConfigError: A share is out of range, or the heads cannot be cut.
    """
    for name, share in (("heads", heads), ("units", units)):
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"the share of {name} to keep must be in (0, 1], but is {share}")
    _check_multiple(multiple)
    _check_heads(model, heads < 1.0)
    return _best(_head_groups(model, importance), heads) | _best(_unit_groups(importance, multiple), units)


def share_within(model: Transformer, importance: Importance, parameters: int, *, multiple: int = MULTIPLE) -> float:
    """Find the largest share, in thousandths, of heads and of units that leaves at most so many parameters.

    Raises:
        ConfigError: There is none, or the heads cannot be cut.
    """

    def left(thousandths: int) -> int:
        share = thousandths / 1000
        kept = choose_by_share(model, importance, heads=share, units=share, multiple=multiple)
        # Parameters are counted without memory for them.
        with torch.device("meta"):
            smaller = Transformer(dataclasses.replace(model.config, **_counts(model, kept)))
        return sum(parameter.numel() for parameter in smaller.parameters())

    # What is left grows with the share, so that it can be bisected.
    thousandths = bisect.bisect_right(range(1, 1001), parameters, key=left)
    if not thousandths:
        raise ConfigError(
            f"at most {parameters:,} parameters were asked for, but {left(1):,} are left by one head and "
            f"{multiple} units a layer"
        )
    return thousandths / 1000


def choose_by_count(
    model: Transformer,
    importance: Importance,
    *,
    heads: int | None = None,
    units: int | None = None,
    multiple: int = MULTIPLE,
) -> Kept:
    """Keep as many heads in every attention, and as many units in every feed-forward block: the most important.

    Args:
        model: What is cut.
        importance: Of its heads and units.
        heads: How many, a multiple of those that share keys and values; None: all. What has fewer is left alone.
        units: How many, a multiple of `multiple`; None: all.
        multiple: As in `choose_by_share`.

    Raises:
        ConfigError: A count is out of range or no such multiple, or the heads cannot be cut.
    """
    _check_multiple(multiple)
    # Only where something would really be cut.
    _check_heads(model, heads is not None and heads < max(map(len, importance.heads.values())))
    group = model.config.nhead // model.config.kv_heads
    for name, count, step, most in (
        ("heads", heads, group, max(map(len, importance.heads.values()))),
        ("units", units, multiple, max(map(len, importance.units.values()))),
    ):
        if count is not None:
            _check_count(name, count, step, most)
    kept = {}
    groups_of = {**_head_groups(model, importance), **_unit_groups(importance, multiple)}
    for name, groups in groups_of.items():
        count, step = (heads, group) if name in importance.heads else (units, multiple)
        wanted = len(groups) if count is None else math.ceil(count / step)
        kept[name] = sorted(index for group, _ in groups[:wanted] for index in group)
    return kept


def remove(model: Transformer, kept: Kept) -> Transformer:
    """Make the smaller model: the same function as `model` with gates of 0 on what is not kept.

    Args:
        model: Left as it is; the new one's weights are copies.
        kept: For every attention and feed-forward block.

    Returns:
        A model in the same mode, of the same dtype.
    """
    weights = dict(model.state_dict())
    for name, attention in attentions(model).items():
        size, group = attention.head_size, attention.nhead // attention.kv_heads
        own = _spread(kept[name], size)
        # Heads of a group stay or go together, so that the first of each stands for its key and
        # value.
        shared = _spread(kept[name][::group], size, divisor=group)
        offset = attention.kv_heads * size
        if isinstance(attention, SelfAttention):
            queries = attention.nhead * size
            # in_proj holds the rows of all queries, then of all keys, then of all values.
            rows = [own, shared + queries, shared + queries + offset]
            _take(weights, f"{name}.in_proj", torch.cat(rows), 0)
        else:
            _take(weights, f"{name}.q_proj", own, 0)
            _take(weights, f"{name}.kv_proj", torch.cat([shared, shared + offset]), 0)
        # Its columns are what the heads give, so that those of a head that is gone go with it.
        _take(weights, f"{name}.out_proj", own, 1)
    for name, block in feed_forwards(model).items():
        units = torch.tensor(kept[name])
        width = block.linear2.in_features
        # A gated block's first projection gives the values, then the gates, each as wide as the
        # layer.
        _take(weights, f"{name}.linear1", torch.cat([units, units + width]) if block.gated else units, 0)
        _take(weights, f"{name}.linear2", units, 1)
    # Loaded strictly: a weight that was not cut to its size would fail here.
    smaller = Transformer(dataclasses.replace(model.config, **_counts(model, kept)))
    smaller.to(next(model.parameters()).dtype).load_state_dict(weights)
    return smaller.train(model.training)


def _counts(model: Transformer, kept: Kept) -> dict[str, Any]:
    counts: dict[str, list[int]] = {}
    for name in [*attentions(model), *feed_forwards(model)]:
        side, _, _, part = name.split(".")
        field = "cross_heads" if part == "cross_attn" else f"{side}_heads"
        field = f"{side}_feedforward" if part == "feed_forward" else field
        counts.setdefault(field, []).append(len(kept[name]))
    config = model.config
    return {
        # A field says something only where a layer differs from the whole model's number.
        field: None if set(found) == {config.dim_feedforward if "feed" in field else config.nhead} else tuple(found)
        for field, found in counts.items()
    }


Groups = list[tuple[list[int], float]]
"""What stays or goes together, with the sum of squares of its importance, the most important first."""


def _head_groups(model: Transformer, importance: Importance) -> dict[str, Groups]:
    size = model.config.nhead // model.config.kv_heads
    found = {}
    for name, rms_N in importance.heads.items():
        groups = [
            (list(range(i, i + size)), float(rms_N[i : i + size].square().sum())) for i in range(0, len(rms_N), size)
        ]
        found[name] = sorted(groups, key=lambda group: -group[1])
    return found


def _unit_groups(importance: Importance, multiple: int) -> dict[str, Groups]:
    found = {}
    for name, rms_F in importance.units.items():
        # Groups are made by rank, not by place: the most important units stand together.
        order = rms_F.argsort(descending=True, stable=True)
        parts = torch.split(order, multiple)
        found[name] = [(part.tolist(), float(rms_F[part].square().sum())) for part in parts]
    return found


def _best(groups_of: Mapping[str, Groups], share: float) -> dict[str, list[int]]:
    """Keep the best group of each module, then the best of all that fit into the share."""
    # A share such as 0.7 of 10 is 7, not 6.999….
    room = math.floor(share * sum(len(group) for groups in groups_of.values() for group, _ in groups) + 1e-9)
    kept = {name: list(groups[0][0]) for name, groups in groups_of.items()}
    room -= sum(map(len, kept.values()))
    rest = [(value, name, group) for name, groups in groups_of.items() for group, value in groups[1:]]
    for _, name, group in sorted(rest, key=lambda one: -one[0]):
        if len(group) > room:
            break
        room -= len(group)
        kept[name] += group
    return {name: sorted(indices) for name, indices in kept.items()}


def _check_count(name: str, count: int, step: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ConfigError(f"the number of {name} to keep must be in [1, {most}], but is {count}")
    if count < most and count % step:
        raise ConfigError(f"{name} are kept in multiples of {step}, but {count} were asked for")


def _check_multiple(multiple: int) -> None:
    if multiple < 1:
        raise ConfigError(f"units stay in groups of at least 1, but the multiple is {multiple}")


def _check_heads(model: Transformer, cut: bool) -> None:
    if cut and model.config.positions in ("relative", "alibi"):
        raise ConfigError(
            f"heads cannot be removed from a model with {model.config.positions} positions, whose layers share one "
            "bias per head; keep them all, and cut units alone: --units"
        )


def _spread(heads: Sequence[int], size: int, divisor: int = 1) -> Tensor:
    """Rows of heads in a projection."""
    return torch.cat([torch.arange(size) + head // divisor * size for head in heads])


def _take(weights: dict[str, Tensor], name: str, index: Tensor, dim: int) -> None:
    """Keep rows (of weight and bias) or columns (of the weight) of a linear layer."""
    weights[f"{name}.weight"] = weights[f"{name}.weight"].index_select(dim, index)
    if dim == 0 and f"{name}.bias" in weights:
        weights[f"{name}.bias"] = weights[f"{name}.bias"].index_select(0, index)
