"""What counts as which kind of op in eager PyTorch and in the exported graph, as `tfm.ops.KINDS` has it."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfm.ops import KINDS

# One function has several objects: F.gelu, torch.relu, Tensor.relu, torch.special.softmax, and
# "relu_" that works in place. Whichever a model calls, it is the same op.
_NAMESPACES: tuple[Any, ...] = (F, torch, Tensor, torch.special)


def kinds_of_functions() -> dict[Callable[..., Any], str]:
    """Give the kind of every function and method of eager PyTorch that is an op."""
    return {function: kind for kind, entry in KINDS.items() for name in entry.functions for function in _named(name)}


def _named(name: str) -> list[Callable[..., Any]]:
    if "." in name:
        found: Any = functools.reduce(getattr, name.split("."), torch)
        return [found]
    both = [(space, each) for each in (name, f"{name}_") for space in _NAMESPACES]
    return [getattr(space, each) for space, each in both if hasattr(space, each)]


def kinds_of_aten() -> dict[str, str]:
    """Give the kind of every name that the exporter gives those functions."""
    return {name: kind for kind, entry in KINDS.items() for name in entry.aten}


def kinds_of_modules() -> dict[str, str]:
    """Give the kind of every class, "package.file.Class", whose modules are one op."""
    return {name: kind for kind, entry in KINDS.items() for name in entry.modules}


def class_name(module: nn.Module) -> str:
    """Name a module's class as `kinds_of_modules` does."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
