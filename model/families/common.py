"""What the families' mappings share: reading of options, heads and labels, and the renaming and packing of weights."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tfm.errors import CheckpointError, ConfigError, NotNativeError

from ..fields import Fields, shown

Weights = dict[str, Tensor]

_MOST_LABELS = 1 << 20
"""Whose names are made up."""


def check_options(values: Fields, supported: Mapping[str, Sequence[object]]) -> None:
    """Refuse options that would make the model another function: what is neither absent, null nor listed."""
    if values.values.get("auto_map"):
        raise ConfigError(
            f"{values.source}: auto_map asks for Python code that comes with the checkpoint, and none is ever run"
        )
    for key, allowed in supported.items():
        values.supports(key, allowed)


def read_task(values: Fields, prefix: str, known: Collection[str]) -> str | None:
    """Read which class, `prefix` and one of `known`, a checkpoint was saved from; None: it does not say."""
    named = values.texts("architectures")
    if not named:
        return None
    classes = {prefix + task: task for task in known}
    if len(named) != 1 or named[0] not in classes:
        raise NotNativeError(
            f"{values.source}: architectures {shown(named)} is not supported; known: one of {', '.join(classes)}"
        )
    return classes[named[0]]


def read_labels(values: Fields) -> tuple[str, ...]:
    """Read the names of a classifier's labels from id2label; made up from num_labels where there is none."""
    names, count = values.values.get("id2label"), values.optional_size("num_labels", least=0, most=_MOST_LABELS)
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(2 if count is None else count))
    labels = _in_order(names)
    if not labels:
        raise values.error("id2label", "the names of labels 0, 1, 2 and so on")
    if count not in (None, len(labels)):
        raise ConfigError(f"{values.source}: num_labels is {count}, but id2label names {len(labels)} labels")
    return labels


def _in_order(names: object) -> tuple[str, ...]:
    """Names by number, where they are names and none is left out; else nothing."""
    if not isinstance(names, dict) or any(type(name) not in (str, int) for name in names.values()):
        return ()
    # Keys are numbers in Python and text in JSON.
    by_index = {str(index): str(name) for index, name in names.items()}
    order = [str(index) for index in range(len(names))]
    return tuple(by_index[index] for index in order) if by_index.keys() == set(order) else ()


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

    The weights are changed in place; `bias` says whether there are biases.
    """
    for kind in ("weight", "bias") if bias else ("weight",):
        weights[f"{into}.{kind}"] = _joined(folder, weights, [f"{module}.{kind}" for module in modules])


def _joined(folder: Path, weights: Weights, names: Sequence[str]) -> Tensor:
    absent = [name for name in names if name not in weights]
    if absent:
        raise CheckpointError(f"{folder}: the weights lack {absent[0]}")
    # Taken out, so that the parts and their packed copy are held together for one module only.
    parts = [weights.pop(name) for name in names]
    dims = 1 if names[0].endswith(".bias") else 2
    if any(part.ndim != dims or part.shape[1:] != parts[0].shape[1:] for part in parts):
        shapes = [tuple(part.shape) for part in parts]
        raise CheckpointError(f"{folder}: {', '.join(names)} differ in shape: {shapes}")
    return torch.cat(parts)


def matrix(file: Path, weights: Weights, name: str) -> Tensor:
    """Give a weight that sizes are read off."""
    found = weights.get(name)
    if found is None or found.ndim != 2:
        raise CheckpointError(f"{file}: the weights lack the matrix {name}")
    return found


def take_embeddings(folder: Path, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Take the source's, the target's and the output's embedding out of an encoder-decoder's weights.

    Files name a shared embedding once or under all of its names; an absent name stands for the one before it.
    """
    shared = weights.pop("shared.weight", None)
    source = weights.pop("encoder.embed_tokens.weight", shared)
    target = weights.pop("decoder.embed_tokens.weight", source if shared is None else shared)
    head = weights.pop("lm_head.weight", target)
    if source is None or target is None or head is None:
        raise CheckpointError(f"{folder}: the weights lack shared.weight, the embedding of tokens")
    return source, target, head
