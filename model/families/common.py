"""What the families' mappings share: reading of options, heads and labels, and the renaming and packing of weights."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm.errors import CheckpointError, ConfigError

Weights = dict[str, Tensor]

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Hugging Face's names of activations → ours."""


def read_activation(name: object) -> str:
    """Give our name of an activation; an unknown name stays as it is, for TransformerConfig to refuse."""
    return _ACTIVATIONS.get(str(name), str(name))


@contextmanager
def required_keys(family: str) -> Iterator[None]:
    """Turn the KeyError of a key that config.json lacks into a ConfigError that names it."""
    try:
        yield
    except KeyError as error:
        raise ConfigError(f"a {family} configuration needs {error.args[0]!r}, which this one lacks") from error


def check_options(family: str, values: Mapping[str, Any], supported: Mapping[str, Sequence[object]]) -> None:
    """Refuse options that would make the model another function.

    Args:
        family: Its name in messages.
        values: The values of config.json.
        supported: Key → the values of it that are supported; absent and null are always.

    Raises:
        ConfigError: An option has another value, or the folder asks for code of its own.
    """
    if values.get("auto_map"):
        raise ConfigError("auto_map asks for Python code that comes with the checkpoint, and none is ever run")
    for key, allowed in supported.items():
        value = values.get(key)
        if value is not None and value not in allowed:
            expected = " or ".join(repr(option) for option in allowed)
            raise ConfigError(f"{family} with {key} = {value!r} is not supported; expected {expected}")


def read_task(values: Mapping[str, Any], prefix: str, known: Collection[str]) -> str | None:
    """Read which of a family's classes a checkpoint was saved from.

    Args:
        values: The values of config.json.
        prefix: What the family's class names begin with, e.g. "Bert".
        known: The rest of the supported ones, e.g. "Model", "ForMaskedLM".

    Returns:
        One of `known`, or None where config.json has no `architectures`.
    """
    named = values.get("architectures")
    if not named:
        return None
    classes = {prefix + task: task for task in known}
    if not isinstance(named, list) or len(named) != 1 or named[0] not in classes:
        raise ConfigError(f"architectures {named!r} is not supported; known: one of {', '.join(classes)}")
    return classes[named[0]]


def read_labels(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the names of a classifier's labels from id2label; made up from num_labels where there is none."""
    names, count = values.get("id2label"), values.get("num_labels")
    if names is None:
        if count is not None and type(count) is not int:
            raise ConfigError(f"num_labels must be an int, but is {count!r}")
        return tuple(f"LABEL_{index}" for index in range(2 if count is None else count))
    by_index = {str(index): str(name) for index, name in names.items()} if isinstance(names, dict) else {}
    if not by_index or set(by_index) != {str(index) for index in range(len(by_index))}:
        raise ConfigError(f"id2label must name the labels 0, 1, 2 and so on, but is {names!r}")
    if count not in (None, len(by_index)):
        raise ConfigError(f"num_labels is {count}, but id2label names {len(by_index)} labels")
    return tuple(by_index[str(index)] for index in range(len(by_index)))


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
    if name in names:
        return names[name]
    if module in names:
        return f"{names[module]}.{kind}"
    parts = module.split(".")
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
        parts = [weights.pop(name) for name in names]
        if any(part.ndim != 2 - (kind == "bias") or part.shape[1:] != parts[0].shape[1:] for part in parts):
            shapes = [tuple(part.shape) for part in parts]
            raise CheckpointError(f"{folder}: {', '.join(names)} differ in shape: {shapes}")
        weights[f"{into}.{kind}"] = torch.cat(parts)
