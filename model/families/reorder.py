"""Rows of a projection in another order than ours: pairs of neighbors that turn, heads' parts beside each other.

Shapes: D model size, N heads, H head size.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tfm.errors import CheckpointError

from ..config import TransformerConfig
from .common import Weights


def halves(file: Path, name: str, weight: Tensor, heads: int, turned: int | None = None) -> Tensor:
    """Reorder the rows of queries or keys, (N·H, D) or (N·H), from pairs of neighbors to pairs of halves.

    Of each of N heads' H entries `turned` turn; None: all.
    """
    size, rest = divmod(len(weight) if weight.ndim else 0, heads)
    turned = size if turned is None else turned
    if rest or not size or turned % 2 or turned > size:
        raise CheckpointError(
            f"{file}: {name} has {len(weight) if weight.ndim else 0} rows, not {heads} heads of one size"
        )
    # 0, 2, 4, … and then 1, 3, 5, …; entries that do not turn stay behind them.
    pairs = torch.arange(turned).view(turned // 2, 2).T.flatten()
    order = torch.cat([pairs, torch.arange(turned, size)])
    return weight.reshape(heads, size, *weight.shape[1:])[:, order].flatten(0, 1)


def split_thirds(folder: Path, weights: Weights, module: str, heads: int) -> None:
    """Reorder a projection whose heads have their queries, keys and values beside each other: (N·3·H, D) or (N·3·H)."""
    split_groups(folder, weights, module, heads, 1)


def split_groups(folder: Path, weights: Weights, module: str, groups: int, queries: int) -> None:
    """Reorder a projection of groups, each some heads of queries, then one of keys and one of values.

    The weights are changed in place: (K·(Q + 2)·H, D) or (K·(Q + 2)·H), of K groups with Q heads of queries each.
    """
    for name in (f"{module}.weight", f"{module}.bias"):
        if name not in weights:  # a bias may be absent; what must be there is told by the loader
            continue
        # Told here, as the loader would name the packed weight, which no file has.
        rows = len(weights[name]) if weights[name].ndim else 0
        if not rows or rows % (groups * (queries + 2)):
            heads = f"{groups * queries} heads" + (f" in {groups} groups" if queries > 1 else "")
            raise CheckpointError(f"{folder}: {name} has {rows} rows, not queries, keys and values of {heads}")
        parts = weights[name].reshape(groups, queries + 2, -1, *weights[name].shape[1:])  # (K, Q + 2, H, D)
        kinds = (parts[:, :queries], parts[:, queries], parts[:, queries + 1])
        weights[name] = torch.cat([kinds[0].flatten(0, 2), kinds[1].flatten(0, 1), kinds[2].flatten(0, 1)])


def turn_neighbors(folder: Path, weights: Weights, config: TransformerConfig) -> Weights:
    """Give Llama's q_proj and k_proj with neighbors that turn together, where ours turns entries half a head apart."""
    heads = {"q_proj": config.nhead, "k_proj": config.kv_heads}
    parts = {name: name.split(".")[-2] for name in weights if name.count(".") and ".self_attn." in name}
    turned = {
        name: halves(folder, name, weights[name], heads[part], config.rotary_size)
        for name, part in parts.items()
        if part in heads
    }
    return weights | turned


def split_gates(folder: Path, weights: Weights) -> Weights:
    """Give Llama's gate_proj and up_proj in the place of one projection whose first half is the gate."""
    found = dict(weights)
    for name in weights:
        if not name.endswith(".gate_up_proj.weight"):
            continue
        weight = found.pop(name)
        if weight.ndim == 0 or len(weight) % 2:
            raise CheckpointError(f"{folder}: {name} of shape {tuple(weight.shape)} has no two halves of rows")
        for part, half in zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True):
            found[name.replace("gate_up_proj", part)] = half
    return found


def add_zero_biases(weights: Weights) -> Weights:
    """Give norms that only multiply a bias of zeros, which ours have."""
    norms = [name for name in weights if name.endswith("norm.weight")]
    return {name.removesuffix("weight") + "bias": torch.zeros_like(weights[name]) for name in norms} | weights


def swap_halves(folder: Path, weights: Weights, names: Iterable[str]) -> None:
    """Put the second half of each weight's rows before the first."""
    for name in names:
        if name not in weights:
            continue
        # An odd number of rows is none of a gated layer's.
        if weights[name].ndim == 0 or len(weights[name]) % 2:
            raise CheckpointError(f"{folder}: {name} of shape {tuple(weights[name].shape)} has no two halves of rows")
        weights[name] = torch.cat([*weights[name].chunk(2)][::-1])


def skip_rows(weights: Weights, names: Iterable[str], count: int) -> None:
    """Drop the first rows of tables, which no token has."""
    for name in names:
        if name in weights and weights[name].ndim == 2:
            weights[name] = weights[name][count:]
