"""What the families' mappings share: reading of options, heads and labels, and the renaming and packing of weights."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tfm.errors import CheckpointError, ConfigError

from ..fields import Fields, shown

Weights = dict[str, Tensor]

_MOST_LABELS = 1 << 20
"""Whose names are made up."""


def check_options(values: Fields, supported: Mapping[str, Sequence[object]]) -> None:
    """Refuse options that would make the model another function.

    Args:
        values: The fields of config.json.
        supported: Key → the values of it that are supported; absent and null are always.

    Raises:
        ConfigError: An option has another value, or the folder asks for code of its own.
    """
    if values.values.get("auto_map"):
        raise ConfigError(
            f"{values.source}: auto_map asks for Python code that comes with the checkpoint, and none is ever run"
        )
    for key, allowed in supported.items():
        values.supports(key, allowed)


def read_task(values: Fields, prefix: str, known: Collection[str]) -> str | None:
    """Read which of a family's classes a checkpoint was saved from.

    Args:
        values: The fields of config.json.
        prefix: What the family's class names begin with, e.g. "Bert".
        known: The rest of the supported ones, e.g. "Model", "ForMaskedLM".

    Returns:
        One of `known`, or None where config.json has no `architectures`.
    """
    named = values.texts("architectures")
    if not named:
        return None
    classes = {prefix + task: task for task in known}
    if len(named) != 1 or named[0] not in classes:
        raise ConfigError(
            f"{values.source}: architectures {shown(named)} is not supported; known: one of {', '.join(classes)}"
        )
    return classes[named[0]]


def read_labels(values: Fields) -> tuple[str, ...]:
    """Read the names of a classifier's labels from id2label; made up from num_labels where there is none."""
    names, count = values.values.get("id2label"), values.optional_size("num_labels", least=0, most=_MOST_LABELS)
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(2 if count is None else count))
    known = isinstance(names, dict) and all(type(name) in (str, int) for name in names.values())
    # Keys are numbers in Python and text in JSON.
    by_index = {str(index): str(name) for index, name in names.items()} if known else {}
    if not by_index or set(by_index) != {str(index) for index in range(len(by_index))}:
        raise values.error("id2label", "the names of labels 0, 1, 2 and so on")
    if count not in (None, len(by_index)):
        raise ConfigError(f"{values.source}: num_labels is {count}, but id2label names {len(by_index)} labels")
    return tuple(by_index[str(index)] for index in range(len(by_index)))


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two weights are one, or alike in every entry."""
    if one is other:
        return True
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def strip_prefix(weights: Weights, prefix: str) -> Weights:
    """Take `prefix` off the names that have it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def drop(weights: Weights, prefixes: Sequence[str]) -> Weights:
    """Leave out the weights whose names begin with one of `prefixes`."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(tuple(prefixes))}


def rename(weights: Weights, names: Mapping[str, str], layers: Mapping[str, str], into: str) -> Weights:
    """Give weights our names; one that no table knows keeps its own, for the loader to refuse.

    Args:
        weights: Under their names.
        names: Their weights' or modules' (a name without its last part) names → ours, outside the layers.
        layers: The same within a layer: "encoder.layer.*.output.dense" → "feed_forward.linear2".
        into: What our names of the layers begin with, e.g. "encoder.layers".
    """
    return {_rename(name, names, layers, into): tensor for name, tensor in weights.items()}


def _rename(name: str, names: Mapping[str, str], layers: Mapping[str, str], into: str) -> str:
    module, _, kind = name.rpartition(".")
    # Some weights are of no module: a table of positions, a class token.
    if name in names:
        return names[name]
    if module in names:
        return f"{names[module]}.{kind}"
    parts = module.split(".")
    # The first number in a name is that of its layer.
    for place, number in enumerate(parts):
        if number.isdigit():
            ours = layers.get(".".join([*parts[:place], "*", *parts[place + 1 :]]))
            return name if ours is None else f"{into}.{number}.{ours}.{kind}"
    return name


def pack(folder: Path, weights: Weights, modules: Sequence[str], into: str, *, bias: bool = True) -> None:
    """Replace several projections of one input by the one that our attention has: their rows, one after another.

    Args:
        folder: Named in messages.
        weights: Changed in place.
        modules: Names of the modules, e.g. of query, key and value.
        into: Name of the module that takes their place.
        bias: They have biases.

    Raises:
        CheckpointError: One is absent, or their inputs differ in size.
    """
    for kind in ("weight", "bias") if bias else ("weight",):
        names = [f"{module}.{kind}" for module in modules]
        absent = [name for name in names if name not in weights]
        if absent:
            raise CheckpointError(f"{folder}: the weights lack {absent[0]}")
        # Taken out, so that the parts and their packed copy are held together for one module only.
        parts = [weights.pop(name) for name in names]
        if any(part.ndim != 2 - (kind == "bias") or part.shape[1:] != parts[0].shape[1:] for part in parts):
            shapes = [tuple(part.shape) for part in parts]
            raise CheckpointError(f"{folder}: {', '.join(names)} differ in shape: {shapes}")
        weights[f"{into}.{kind}"] = torch.cat(parts)
