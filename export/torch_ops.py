"""What counts as which op in eager PyTorch and in the exported graph."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfm.model import ComposedActivation
from tfm.ops import ACTIVATION, ATTENTION, EMBEDDING, LINEAR, NORM, SOFTMAX, Kind

_ACTIVATIONS = (  # noqa: SIM905 (a list would be a page)
    "celu elu erf gelu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish prelu relu relu6 selu sigmoid silu "
    "softplus tanh"
).split()
"""As ATen names them."""

# One function has several objects: F.gelu, torch.relu, Tensor.relu, torch.special.softmax, and
# "relu_" that works in place. Whichever a model calls, it is the same op.
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

# Softmax and prelu are here under the names that torch.export decomposes them to, too.
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

COMPOSITE_CLASSES = {f"{ComposedActivation.__module__}.{ComposedActivation.__qualname__}"} | {
    f"transformers.activations.{name}" for name in _COMPOSITES_OF_TRANSFORMERS
}
"""Modules that are one activation, perhaps made of several functions."""


def is_composite(module: nn.Module) -> bool:
    """Whether a module is one activation as a whole."""
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}" in COMPOSITE_CLASSES
