"""The activations of `tfm.ops` as modules of eager PyTorch."""

import difflib

import torch
from torch import Tensor, nn

from tfm.errors import NotNativeError
from tfm.ops import ACTIVATIONS, activation_names, gate_of

from .fields import shown


class ComposedActivation(nn.Module):
    """An activation that torch has no single function for: it is one op all the same."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise; any shape, floating dtype kept."""
        compose = ACTIVATIONS[self.name].compose
        assert compose is not None
        return compose(torch, x)

    def extra_repr(self) -> str:
        """Its name."""
        return self.name


def check_activation(name: str) -> None:
    """Raise NotNativeError, naming the nearest known activation, unless `name` is one."""
    known = activation_names()
    if name not in known:
        # Cut, as the time of comparing grows with the length.
        near = difflib.get_close_matches(str(name)[:100], known, n=1, cutoff=0.0)
        raise NotNativeError(
            f"unknown activation {shown(name)}; the nearest is {near[0]!r} (known: {', '.join(sorted(known))})"
        )


def make_activation(name: str) -> nn.Module:
    """Make σ of the activation `name`; for a gated one, the σ of its gate."""
    check_activation(name)
    plain = gate_of(name)
    entry = ACTIVATIONS[plain]
    if entry.module is None:
        return ComposedActivation(plain)
    module: nn.Module = getattr(nn, entry.module)(**entry.options)
    return module
