"""How large a configuration of Hugging Face's makes a model, beside the weights that are there: told before it is made.

The families are transformers' own, so their keys are known by their names only. What would be counted up in a loop is
bounded first; then the module is made without memory, as far as its parts may be those of the weights.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from tfm.errors import CheckpointError, ConfigError

_MOST = 1 << 24
"""The largest of all other integers that may be sizes. Beyond it float32 does not hold every whole number."""

_ANY = re.compile(r"vocab|token|ids?$|length|window|seed|theta|base|factor|scale|freq")
"""Keys whose integers are no sizes, or are checked as the size of a matrix."""

_LAYERS = re.compile(r"(^|_)(layers?|depths?)$|^(num|n)_layers?_|^layers?_num")
_POSITIONS = re.compile(r"position_embeddings$|positions$|n_ctx$|seq_len|sequence_length$|block_size$")
_TURNED = re.compile(r"rope|rotary|alibi")
"""Keys of layers, of lengths, and of positions that need no table."""

_SPARE_LAYERS, _SHORT, _LABELS = 1_000, 1 << 16, 1 << 20
"""Layers that may have no weights of their own; positions of a table that is computed; labels with names made up."""

_TIMES, _SPARE = 4, 1 << 20
"""A module may have so many numbers for each that the file holds, and so many more: weights may be tied, or
be made where the file has none."""

_PARTS_TIMES, _SPARE_PARTS, _BUFFERS = 20, 2_000, 1 << 30
"""Likewise modules and parameters for each weight, and so many more; and bytes of tables that are computed."""


def check_counts(source: Path, values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse integers that would make a loop or a table endless.

    Args:
        source: The configuration's file, named in messages.
        values: Its content.
        weights: Those beside it.

    Raises:
        ConfigError: There is one.
    """
    # At any depth: text_config and vision_config hold sizes too.
    pairs = list(_pairs(values))
    turned = any(_TURNED.search(key) for key, _ in pairs)
    # A table of positions has a row for each, so no more are needed than the largest weight has
    # rows.
    rows = max((weight.shape[0] for weight in weights.values() if weight.ndim), default=0)
    for key, value in pairs:
        # True is an int, and no size. What is no number is left to transformers.
        if type(value) is not int:
            continue
        # The more special rule first: a key may match several. Layers are counted up in a loop, and
        # each has weights; a few may share another's.
        if _LAYERS.search(key):
            most, why = _SPARE_LAYERS + len(weights), f"which has {len(weights)} weights"
        # Each label gets a name, made in a loop before there is a module.
        elif key == "num_labels":
            most, why = _LABELS, "whose names are made up"
        elif _POSITIONS.search(key):
            most, why = _MOST if turned else max(_SHORT, rows), f"whose largest table has {rows} rows"
        # Vocabularies and the like are sides of a matrix, which check_parts bounds as a whole.
        elif _ANY.search(key):
            continue
        else:
            most, why = _MOST, "of which none is larger"
        if abs(value) > most:
            # Python refuses to print an integer of more than 4,300 digits.
            found = value if value.bit_length() < 1024 else f"of {value.bit_length()} bits"
            raise ConfigError(f"{source}: {key} must be at most {most} in a checkpoint {why}, but is {found}")


def check_parts(folder: Path, make: Callable[[], nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Make a module without memory, and refuse one whose parts cannot be those of the weights.

    Args:
        folder: Named in messages.
        make: Makes it.
        weights: Those that are to fill it.

    Raises:
        CheckpointError: It has too many parts, or they are too large.
    """
    # Both are needed: on the meta device numbers take no memory, but a thousand million modules do.
    with _Bounded(folder, _SPARE_PARTS + _PARTS_TIMES * len(weights)), torch.device("meta"):
        module = make()
    # parameters() gives a tied one once, as the file has it.
    found, there = _count(module.parameters()), _count(weights.values())
    if found > _TIMES * there + _SPARE:
        raise CheckpointError(
            f"{folder}: the configuration makes a {type(module).__name__} of {found} parameters, but the weights hold "
            f"{there} numbers"
        )
    # Tables that are computed are not among the weights, so these say nothing of their size.
    tables = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    if tables > _BUFFERS:
        raise CheckpointError(f"{folder}: the configuration asks for tables of {tables} bytes, beside the weights")


def left_out(names: list[str], module: nn.Module) -> list[str]:
    """Tell which of the weights that a module has no place for are of layers beyond its own.

    Args:
        names: Of weights that it has no place for.
        module: It has layers of the same kind, of other numbers.
    """
    # "encoder.layer.1.weight" and "encoder.layer.7.weight" are of one kind,
    # "encoder.layer.*.weight".
    kinds = {re.sub(r"\d+", "*", name) for name, _ in module.named_parameters()}
    prefix = getattr(module, "base_model_prefix", "") + "."
    # A checkpoint of the bare model has no prefix, one with a head has it; either may be read as
    # the other.
    kinds |= {prefix + kind for kind in kinds} | {kind.removeprefix(prefix) for kind in kinds}
    return [name for name in names if re.search(r"\d", name) and re.sub(r"\d+", "*", name) in kinds]


class _Bounded:
    """While this is entered, modules are made of so many parts at most."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._left = folder, most

    def __enter__(self) -> None:
        self._hooks = [
            # torch calls these for every module that is made, wherever: they are taken away at the
            # end.
            registration.register_module_parameter_registration_hook(self._note),
            registration.register_module_module_registration_hook(self._note),
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, *_: object) -> None:
        self._left -= 1
        if self._left < 0:
            raise CheckpointError(f"{self._folder}: the configuration makes far more parts than there are weights")


def _pairs(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Give the keys and values of all objects within, the items of a list under its key."""
    # A stack of its own in place of recursion: how deep a configuration nests is its writer's
    # choice.
    rest: list[tuple[str, Any]] = list(values.items())
    while rest:
        key, value = rest.pop()
        if isinstance(value, Mapping):
            rest.extend(value.items())
        elif isinstance(value, list):
            rest.extend((key, item) for item in value)
        else:
            yield key, value


def _count(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)
