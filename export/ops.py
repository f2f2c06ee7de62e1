"""What counts as an attention, a softmax or an activation, in eager PyTorch and in the exported graph, and its name.

The linear layers, norms and embeddings around them are named and compared too, so that a fault is found where it is
and not at the next attention.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfm.model import COMPOSITES

Kind = Literal["attention", "softmax", "activation", "linear", "norm", "embedding"]
ATTENTION: Kind = "attention"
SOFTMAX: Kind = "softmax"
ACTIVATION: Kind = "activation"
LINEAR: Kind = "linear"
NORM: Kind = "norm"
EMBEDDING: Kind = "embedding"

LAYERS = (LINEAR, NORM, EMBEDDING)
"""The kinds that have weights, and stand between the ops that are promised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpId:
    """One call of one attention, softmax, activation or layer.

    Attributes:
        kind: "attention" (a scaled dot-product attention), "softmax" (in an attention written by hand, where no other
            function shows it), "activation", or one of `LAYERS`.
        path: The module it is called in, as `named_modules` names it.
        call: How many calls of this kind that module made before it in one forward pass.
    """

    kind: Kind
    path: str
    call: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" {self.call}" if self.call else "")

    @classmethod
    def parse(cls, text: str) -> "OpId":
        """Read what `str` wrote."""
        kind, path, *call = text.split(" ")
        return cls(kind=kind, path=path, call=int(call[0]) if call else 0)  # type: ignore[arg-type]


_ACTIVATIONS = (  # noqa: SIM905 (a list would be a page)
    "celu elu erf gelu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish prelu relu relu6 selu sigmoid silu "
    "softplus tanh"
).split()
"""As ATen names them."""

FUNCTIONS: dict[Callable[..., Any], Kind] = {
    F.scaled_dot_product_attention: ATTENTION,
    torch.ops.tfm.softcapped_attention.default: ATTENTION,
    **{
        getattr(namespace, name): kind
        for names, kind in (([*_ACTIVATIONS, "logsigmoid"], ACTIVATION), (["softmax"], SOFTMAX))
        for name in (*names, *(f"{name}_" for name in names))
        for namespace in (F, torch, Tensor, torch.special)
        if hasattr(namespace, name)
    },
    torch.special.expit: ACTIVATION,
    F.linear: LINEAR,
    F.layer_norm: NORM,
    F.rms_norm: NORM,
    F.embedding: EMBEDDING,
}
"""Functions and methods of eager PyTorch that are an op."""

OPS_OF_ATEN: dict[str, Kind] = {
    "aten.scaled_dot_product_attention.default": ATTENTION,
    "tfm.softcapped_attention.default": ATTENTION,
    "aten.softmax.int": SOFTMAX,
    "aten._softmax.default": SOFTMAX,
    "aten._prelu_kernel.default": ACTIVATION,
    "aten.special_expit.default": ACTIVATION,
    "aten.linear.default": LINEAR,
    "aten.layer_norm.default": NORM,
    "aten.rms_norm.default": NORM,
    "aten.embedding.default": EMBEDDING,
    **{f"aten.{name}{end}.default": ACTIVATION for name in _ACTIVATIONS for end in ("", "_")},
}
"""Names that the exporter gives those functions."""

_COMPOSITES_OF_TRANSFORMERS = (  # noqa: SIM905
    "AccurateGELUActivation ClippedGELUActivation FastGELUActivation GELUActivation GELUTanh LaplaceActivation "
    "MishActivation NewGELUActivation PytorchGELUTanh QuickGELUActivation ReLUSquaredActivation SiLUActivation "
    "SqrtSoftplusActivation XIELUActivation"
).split()

COMPOSITE_CLASSES = {f"{cls.__module__}.{cls.__qualname__}" for cls in COMPOSITES} | {
    f"transformers.activations.{name}" for name in _COMPOSITES_OF_TRANSFORMERS
}
"""Modules that are one activation, perhaps made of several functions."""


def is_composite(module: nn.Module) -> bool:
    """Whether a module is one activation as a whole."""
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}" in COMPOSITE_CLASSES
