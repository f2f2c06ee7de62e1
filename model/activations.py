"""The activation functions a feed-forward block may use, by their field's names.

A plain activation is σ in W₂σ(W₁x+b₁)+b₂ (Vaswani et al. 2017, section 3.3). A gated one computes
W₂(V x ⊙ σ(G x)) with W₁ = [V; G] (Shazeer 2020, "GLU Variants Improve Transformer").
"""

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tfm.errors import ConfigError

from .fields import shown


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the sigmoid approximation of GELU (Hendrycks & Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise; any shape, floating dtype kept."""
        return x * torch.sigmoid(1.702 * x)


class SquaredReLU(nn.Module):
    """relu(x)² (So et al. 2021, "Primer")."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise; any shape, floating dtype kept."""
        y = torch.relu(x)
        return y * y


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "squared_relu": SquaredReLU,
    "tanh": nn.Tanh,
}

GATED: dict[str, str] = {
    "glu": "sigmoid",
    "reglu": "relu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "swiglu": "silu",
}

COMPOSITES: tuple[type[nn.Module], ...] = (QuickGELU, SquaredReLU)
"""Activations that torch has no single function for: each is one op all the same."""


def check_activation(name: str) -> None:
    """Raise ConfigError, naming the nearest known activation, unless `name` is one."""
    known = [*ACTIVATIONS, *GATED]
    if name not in known:
        near = difflib.get_close_matches(str(name)[:100], known, n=1, cutoff=0.0)
        raise ConfigError(
            f"unknown activation {shown(name)}; the nearest is {near[0]!r} (known: {', '.join(sorted(known))})"
        )


def is_gated(name: str) -> bool:
    """Whether `name` multiplies the activated half of a doubled first projection by the other."""
    return name in GATED


def make_activation(name: str) -> nn.Module:
    """Make σ of the activation `name`; for a gated one, the σ of its gate."""
    check_activation(name)
    return ACTIVATIONS[GATED.get(name, name)]()
