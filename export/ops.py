"""What counts as an attention or an activation, in eager PyTorch and in the exported graph, and how one is named."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F

from tfm.model import COMPOSITES

Kind = Literal["attention", "activation"]
ATTENTION: Kind = "attention"
ACTIVATION: Kind = "activation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpId:
    """One call of one attention or activation.

    Attributes:
        kind: "attention" or "activation".
        path: The module it is called in, as `named_modules` names it.
        call: How many calls of this kind that module made before it in one forward pass.
    """

    kind: Kind
    path: str
    call: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" {self.call}" if self.call else "")


FUNCTIONS: dict[Callable[..., Any], Kind] = {
    F.scaled_dot_product_attention: ATTENTION,
    torch.ops.tfm.softcapped_attention.default: ATTENTION,
    **dict.fromkeys(
        [F.gelu, F.silu, F.mish, F.hardswish, F.elu, F.softplus, torch.relu, torch.sigmoid, torch.tanh, F.relu],
        ACTIVATION,
    ),
}
"""Functions of eager PyTorch that are an op; all that `tfm.model.ACTIVATIONS` and attention call."""

OPS_OF_ATEN: dict[str, Kind] = {
    "aten.scaled_dot_product_attention.default": ATTENTION,
    "tfm.softcapped_attention.default": ATTENTION,
    **{
        f"aten.{name}.default": ACTIVATION
        for name in ("gelu", "silu", "mish", "hardswish", "elu", "softplus", "relu", "sigmoid", "tanh")
    },
}
"""Names that the exporter gives those functions."""

COMPOSITE_CLASSES = {f"{cls.__module__}.{cls.__qualname__}" for cls in COMPOSITES}
"""Modules that are one activation made of several functions."""
