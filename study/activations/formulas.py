"""What each activation computes, as its paper writes it; σ is the logistic function, Φ the normal distribution's."""

import dataclasses
from collections.abc import Sequence

import torch

from tfm.model import make_activation

_SHAZEER = "Shazeer 2020, arXiv:2002.05202"
_HENDRYCKS = "Hendrycks & Gimpel 2016, arXiv:1606.08415"


@dataclasses.dataclass(frozen=True)
class Formula:
    """A formula of x, or of the value v and the gate g of a gated activation, and the paper it is from."""

    text: str
    source: str


FORMULAS: dict[str, Formula] = {
    "elu": Formula("x for x > 0, else eˣ − 1", "Clevert et al. 2015, arXiv:1511.07289"),
    "gelu": Formula("x Φ(x)", _HENDRYCKS),
    "gelu_tanh": Formula("½x (1 + tanh(√(2/π) (x + 0.044715 x³)))", _HENDRYCKS),
    "hardswish": Formula("x min(max(x + 3, 0), 6) / 6", "Howard et al. 2019, arXiv:1905.02244"),
    "mish": Formula("x tanh(ln(1 + eˣ))", "Misra 2019, arXiv:1908.08681"),
    "quick_gelu": Formula("x σ(1.702 x)", _HENDRYCKS),
    "relu": Formula("max(x, 0)", "Nair & Hinton 2010"),
    "sigmoid": Formula("σ(x) = 1 / (1 + e⁻ˣ)", "Rumelhart et al. 1986"),
    "silu": Formula("x σ(x)", "Elfwing et al. 2017, arXiv:1702.03118"),
    "softplus": Formula("ln(1 + eˣ)", "Dugas et al. 2000"),
    "squared_relu": Formula("max(x, 0)²", "So et al. 2021, arXiv:2109.08668"),
    "tanh": Formula("tanh(x)", "LeCun et al. 1998"),
    "glu": Formula("v σ(g)", "Dauphin et al. 2016, arXiv:1612.08083"),
    "reglu": Formula("v max(g, 0)", _SHAZEER),
    "geglu": Formula("v g Φ(g)", _SHAZEER),
    "geglu_tanh": Formula("v gelu_tanh(g)", _SHAZEER),
    "swiglu": Formula("v g σ(g)", _SHAZEER),
}
"""By the names of `tfm.model.ACTIVATIONS` and `GATED`."""


def derivative(name: str, x: Sequence[float]) -> list[float]:
    """Differentiate the eager activation, of a gated one that of its gate, in float64 at each x; at a kink as torch."""
    points = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(make_activation(name)(points).sum(), points)
    return list(slope.tolist())
