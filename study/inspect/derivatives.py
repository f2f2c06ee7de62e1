"""σ′ of every activation, in float64: how much of a gradient passes."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array64 = npt.NDArray[np.float64]

GATES = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}
"""The σ of a gated activation's gate (Shazeer 2020, "GLU Variants Improve Transformer")."""

_QUICK = 1.702
"""β of QuickGELU, x · sigmoid(β x) (Hendrycks & Gimpel 2016)."""

_TANH = math.sqrt(2 / math.pi)
_CUBE = 0.044715
"""Of GELU by tanh: ½ x (1 + tanh(_TANH (x + _CUBE x³)))."""

_erf = np.frompyfunc(math.erf, 1, 1)


def _sigmoid(x: Array64) -> Array64:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _swish(x: Array64, beta: float) -> Array64:
    """Of x · sigmoid(β x)."""
    return _sigmoid(beta * x) * (1.0 + beta * x * _sigmoid(-beta * x))


def _gelu(x: Array64) -> Array64:
    """Φ(x) + x φ(x)."""
    cumulative = 0.5 * (1.0 + np.asarray(_erf(x / math.sqrt(2)), dtype=np.float64))
    return cumulative + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Array64) -> Array64:
    t = np.tanh(_TANH * (x + _CUBE * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _TANH * (1.0 + 3 * _CUBE * x * x)


def _mish(x: Array64) -> Array64:
    t = np.tanh(np.logaddexp(0.0, x))
    return t + x * (1.0 - t * t) * _sigmoid(x)


DERIVATIVES: dict[str, Callable[[Array64], Array64]] = {
    "elu": lambda x: np.exp(np.minimum(x, 0.0)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hardswish": lambda x: np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0).astype(np.float64),
    "mish": _mish,
    "quick_gelu": lambda x: _swish(x, _QUICK),
    "relu": lambda x: (x > 0).astype(np.float64),
    "sigmoid": lambda x: _sigmoid(x) * _sigmoid(-x),
    "silu": lambda x: _swish(x, 1.0),
    "softplus": _sigmoid,
    "squared_relu": lambda x: 2.0 * np.maximum(x, 0.0),
    "tanh": lambda x: 1.0 - np.tanh(x) ** 2,
}
"""σ′ by the name of σ in a bundle's configuration; at a kink as PyTorch has it."""


def derivative_of(activation: str) -> Callable[[npt.NDArray[np.floating]], Array64] | None:
    """σ′ of an activation; of a gated one, that of its gate; None: the name is not known.

    Args:
        activation: As in a bundle's configuration, "gelu" or "swiglu".

    Returns:
        A function of an array of any shape and floating dtype, to float64 of the same shape.
    """
    derivative = DERIVATIVES.get(GATES.get(activation, activation))
    return None if derivative is None else lambda x: derivative(np.asarray(x, dtype=np.float64))
